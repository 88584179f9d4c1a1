package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
)

// addr prints the own addresses.
func addr(_ context.Context, out io.Writer, _ []string) error {
	own, err := ownAddresses()
	for _, a := range own {
		fmt.Fprintln(out, a)
	}
	return err
}

// ownAddresses are those that /etc/hosts gives the own host name.
func ownAddresses() ([]netip.Addr, error) {
	name, err := os.Hostname()
	if err != nil {
		return nil, err
	}
	f, err := os.Open("/etc/hosts")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	own, err := hostsEntries(f, name)
	if err == nil && len(own) == 0 {
		err = fmt.Errorf("/etc/hosts has no address for %s", name)
	}
	return own, err
}

// hostsEntries reads the addresses of one name from a hosts file, in order.
func hostsEntries(r io.Reader, name string) ([]netip.Addr, error) {
	var own []netip.Addr
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		text, _, _ := strings.Cut(lines.Text(), "#")
		fields := strings.Fields(text)
		if len(fields) < 2 || !slices.Contains(fields[1:], name) {
			continue
		}
		if a, err := netip.ParseAddr(fields[0]); err == nil && !slices.Contains(own, a) {
			own = append(own, a)
		}
	}
	return own, lines.Err()
}

// expand replaces "self" and "self6" as the host part of an address.
func expand(hostPort string) (string, error) {
	host, port, err := net.SplitHostPort(hostPort)
	if err != nil {
		return "", err
	}
	host, err = expandHost(host)
	return net.JoinHostPort(host, port), err
}

func expandHost(host string) (string, error) {
	if host != "self" && host != "self6" {
		return host, nil
	}
	own, err := ownAddresses()
	if err != nil {
		return "", err
	}
	for _, a := range own {
		if a.Is6() == (host == "self6") {
			return a.String(), nil
		}
	}
	return "", errors.New("no own address of that family")
}
