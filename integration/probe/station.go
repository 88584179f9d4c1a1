package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// stationPort is where a station is found, by TCP and UDP, over IPv4 and IPv6.
const stationPort = 80

// nobody is the name under which reach looks for what must not answer.
const nobody = "nobody"

// told is how a server describes what it was asked: its name, both ends, and what came.
func told(name string, local, peer any, content []byte) string {
	return fmt.Sprintf("%s local=%v peer=%v sum=%x\n", name, local, peer, sha256.Sum256(content))
}

// station answers whatever comes on any of its addresses by telling what that was. Of
// each datagram it says so on its output, too.
func station(ctx context.Context, out io.Writer, args []string) error {
	o, _, err := parse(args)
	if err != nil {
		return err
	}
	var lc net.ListenConfig
	var all errgroup.Group
	for _, family := range []string{"4", "6"} {
		at := net.JoinHostPort(map[string]string{"4": "0.0.0.0", "6": "::"}[family], fmt.Sprint(stationPort))
		l, err := lc.Listen(ctx, "tcp"+family, at)
		if err != nil {
			return err
		}
		packets, err := lc.ListenPacket(ctx, "udp"+family, at)
		if err != nil {
			return err
		}
		defer context.AfterFunc(ctx, func() { packets.Close() })()
		all.Go(func() error { return answerHTTP(ctx, l, o.name) })
		all.Go(func() error { return answerPackets(ctx, out, packets, o.name) })
	}
	fmt.Fprintln(out, "listening")
	return all.Wait()
}

// answerPackets tells each sender what it has sent.
func answerPackets(ctx context.Context, out io.Writer, conn net.PacketConn, name string) error {
	return eachPacket(ctx, conn, func(packet []byte, peer net.Addr) error {
		text, _, _ := strings.Cut(string(packet[:min(len(packet), 64)]), "\x00")
		fmt.Fprintf(out, "%d bytes from %s: %q\n", len(packet), peer, text)
		if _, err := conn.WriteTo([]byte(told(name, conn.LocalAddr(), peer, packet)), peer); err != nil {
			fmt.Fprintf(out, "no answer to %s: %v\n", peer, err)
		}
		return nil
	})
}

// transfer is how much reach sends to each station by TCP.
const transfer = 2 << 20

// reach finds stations, all at once: NAME=ADDR:PORT[,MTU] each. By TCP it sends much, by
// UDP little and, if there is an MTU between, as much as fits that in one piece, and one
// byte more in vain. Each must answer under its name, to this container's own address.
// What is called nobody must refuse instead, or be told to be out of reach.
func reach(ctx context.Context, out io.Writer, args []string) error {
	o, rest, err := parse(args)
	if err != nil {
		return err
	}
	own, err := ownAddresses()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	content := make([]byte, transfer)
	if _, err := rand.Read(content); err != nil {
		return err
	}
	errs := make([]error, len(rest))
	var all errgroup.Group
	for i, arg := range rest {
		t, err := parseTarget(arg)
		if err != nil {
			return err
		}
		t.own = own
		all.Go(func() error {
			if errs[i] = t.check(ctx, content); errs[i] != nil {
				errs[i] = fmt.Errorf("%s: %w", arg, errs[i])
			}
			return nil
		})
	}
	_ = all.Wait() // each has an error of its own
	if err := errors.Join(errs...); err != nil {
		return err
	}
	_, err = fmt.Fprintf(out, "%d reached\n", len(rest))
	return err
}

// target is a station to reach.
type target struct {
	name string
	at   netip.AddrPort
	own  []netip.Addr // of this container
	mtu  int          // 0 if nothing limits packets
}

func parseTarget(arg string) (t target, err error) {
	name, rest, _ := strings.Cut(arg, "=")
	at, mtu, limited := strings.Cut(rest, ",")
	t.name = name
	if t.at, err = netip.ParseAddrPort(at); err == nil && limited {
		t.mtu, err = strconv.Atoi(mtu)
	}
	return t, err
}

func (t target) family() string {
	if t.at.Addr().Is6() {
		return "6"
	}
	return "4"
}

func (t target) check(ctx context.Context, content []byte) error {
	if t.name == nobody {
		return errors.Join(t.refuses(ctx, "tcp"), t.refuses(ctx, "udp"))
	}
	if err := t.post(ctx, content); err != nil {
		return fmt.Errorf("TCP: %w", err)
	}
	if err := t.datagram(ctx, content[:16]); err != nil {
		return fmt.Errorf("UDP: %w", err)
	}
	if t.mtu == 0 {
		return nil
	}
	largest := t.mtu - 28 // headers of IPv4 and UDP
	if t.at.Addr().Is6() {
		largest = t.mtu - 48
	}
	if err := t.datagram(ctx, content[:largest]); err != nil {
		return fmt.Errorf("UDP of the MTU: %w", err)
	}
	if err := t.datagram(ctx, content[:largest+1]); !errors.Is(err, unix.EMSGSIZE) {
		return fmt.Errorf("UDP of one byte more than the MTU: %v, want %w", err, unix.EMSGSIZE)
	}
	return nil
}

// post sends the content by TCP.
func (t target) post(ctx context.Context, content []byte) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+t.at.String()+"/", bytes.NewReader(content))
	if err != nil {
		return err
	}
	resp, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	return t.accept(string(answer), content)
}

// accept says whether an answer is that of the station to this container.
func (t target) accept(answer string, content []byte) error {
	i := slices.IndexFunc(t.own, func(a netip.Addr) bool { return a.Is6() == t.at.Addr().Is6() })
	if i < 0 {
		return fmt.Errorf("this container has no address of the family of %s", t.at)
	}
	peer := " peer=" + strings.TrimSuffix(netip.AddrPortFrom(t.own[i], 0).String(), "0")
	if sum := fmt.Sprintf(" sum=%x\n", sha256.Sum256(content)); !strings.HasPrefix(answer, t.name+" ") ||
		!strings.Contains(answer, peer) || !strings.HasSuffix(answer, sum) {
		return fmt.Errorf("the answer is %q; want one of %s with%s and%s", answer, t.name, peer, sum)
	}
	return nil
}

// again is how long a datagram's answer is waited for before it is sent again.
const again = 200 * time.Millisecond

// datagram sends the content in one piece, and again until there is an answer. The
// socket is not connected, so that one from a wrong address is seen and not dropped.
func (t target) datagram(ctx context.Context, content []byte) error {
	lc := net.ListenConfig{Control: unfragmented}
	conn, err := lc.ListenPacket(ctx, "udp"+t.family(), "")
	if err != nil {
		return err
	}
	defer conn.Close()
	answer := make([]byte, 64<<10)
	for {
		if _, err := conn.WriteTo(content, net.UDPAddrFromAddrPort(t.at)); err != nil {
			return err
		}
		if err := conn.SetReadDeadline(time.Now().Add(again)); err != nil {
			return err
		}
		n, from, err := conn.ReadFrom(answer)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded) && ctx.Err() == nil:
			continue
		case err != nil:
			return err
		case from.String() != t.at.String():
			return fmt.Errorf("the answer comes from %s", from)
		}
		return t.accept(string(answer[:n]), content)
	}
}

// unfragmented has a socket send packets whole or not at all.
func unfragmented(network, _ string, c syscall.RawConn) error {
	var failed error
	err := c.Control(func(fd uintptr) {
		if strings.HasSuffix(network, "6") {
			failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DO)
		} else {
			failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO)
		}
	})
	return errors.Join(err, failed)
}

// refuses says whether the network, or who is there, turns this container away.
func (t target) refuses(ctx context.Context, network string) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, network+t.family(), t.at.String())
	if err == nil {
		defer conn.Close()
		err = t.ask(ctx, conn)
	}
	for _, want := range []error{unix.ECONNREFUSED, unix.EHOSTUNREACH, unix.ENETUNREACH} {
		if errors.Is(err, want) {
			return nil
		}
	}
	return fmt.Errorf("%s is not refused: %w", network, err)
}

// ask sends something until it is answered or refused.
func (t target) ask(ctx context.Context, conn net.Conn) error {
	answer := make([]byte, 1024)
	for {
		if _, err := conn.Write([]byte("anybody?")); err != nil {
			return err
		}
		if err := conn.SetReadDeadline(time.Now().Add(again)); err != nil {
			return err
		}
		n, err := conn.Read(answer)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded) && ctx.Err() == nil:
			continue
		case err == nil:
			err = fmt.Errorf("there is an answer: %q", answer[:n])
		}
		return err
	}
}
