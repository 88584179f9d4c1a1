package main

import (
	"fmt"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	maxEndpoints = 60000 // that a /16 of addresses holds
	bridgePorts  = 1023  // that a Linux bridge takes
)

// space is a network namespace and a socket to change it by.
type space struct {
	file  *os.File
	route *netlink.Handle
}

func (s *space) fd() netlink.NsFd { return netlink.NsFd(s.file.Fd()) }

func (s *space) close() {
	s.route.Close()
	_ = s.file.Close()
}

// newSpace moves the calling thread into a new namespace. The thread stays
// there: sockets act where they were opened, so the ways measured never need
// to go back, and none pays for switching.
func newSpace() (*space, error) {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return nil, fmt.Errorf("create namespace: %w", err)
	}
	file, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, err
	}
	route, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		_ = file.Close()
		return nil, err
	}
	return &space{file: file, route: route}, nil
}

// withoutIPv6 switches IPv6 off for links made later in the thread's namespace.
func withoutIPv6() error {
	return os.WriteFile("/proc/sys/net/ipv6/conf/default/disable_ipv6", []byte("1"), 0)
}

// addr is the address of the i-th endpoint.
func addr(i int) netip.Addr {
	base := pool().Addr().As4()
	base[2], base[3] = byte((i+2)>>8), byte(i+2)
	return netip.AddrFrom4(base)
}

func pool() netip.Prefix { return netip.MustParsePrefix("10.9.0.0/16") }

func assigned(i int) *netlink.Addr {
	a, err := netlink.ParseAddr(fmt.Sprintf("%s/%d", addr(i), pool().Bits()))
	if err != nil {
		panic(err) // a constant of this program
	}
	return a
}

// usable fails unless the i-th endpoint's address can be used in the thread's
// namespace.
func usable(i int) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: addr(i).As4()}); err != nil {
		return fmt.Errorf("endpoint %d is not connected: bind %s: %w", i, addr(i), err)
	}
	return nil
}
