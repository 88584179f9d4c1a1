package addrguard_test

import (
	"fmt"
	"testing"

	"golang.org/x/sys/unix"
)

// echo sends an echo request and gives who answered.
func (s sock) echo(to string) (from string, err unix.Errno) {
	s.t.Helper()
	family := unix.AF_INET
	if to[0] == '[' {
		family = unix.AF_INET6
	}
	if err := s.send(to, echoRequest(family)); err != 0 {
		return "", err
	}
	a := s.do(Call{Name: "receive", FD: s.fd, Timeout: 2000})
	if a.Err != 0 {
		return "", a.Err
	}
	return ipOf(s.t, a.Addr), 0
}

func pinger(b *box, family int) sock {
	b.t.Helper()
	if family == unix.AF_INET6 {
		return b.socket(family, udp, unix.IPPROTO_ICMPV6)
	}
	return b.socket(family, udp, unix.IPPROTO_ICMP)
}

func TestPing(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	network := h.network(1, v4|v6)
	a, b := h.box(network, 1, v4|v6), h.box(network, 2, v4|v6)
	_ = a // who is pinged need not run, but exist
	for _, c := range []struct {
		family int
		to     []string
	}{
		{unix.AF_INET, []string{"10.77.0.1", "10.77.0.2", "127.0.0.1"}},
		{unix.AF_INET6, []string{"fd00:77::1", "fd00:77::2", "::1"}},
	} {
		for _, to := range c.to {
			if others := to == c.to[0] || to == "fd00:77::2"; others && !devicesSince(t) {
				echoed(t, b, c.family, to)
			} else {
				from, err := pinger(b, c.family).echo(join(to, 0))
				expect(t, "ping "+to, fmt.Sprint(from, err), fmt.Sprint(to, unix.Errno(0)))
			}
			s := pinger(b, c.family)
			expect(t, "connect to "+to, s.connect(join(to, 0)), 0)
			expect(t, "connected ping to "+to, s.send("", echoRequest(c.family)), 0)
			_, who := s.received("connected ping to " + to)
			expect(t, "who answers", ipOf(t, who), to)
			s = pinger(b, c.family)
			own := map[bool]string{true: b.addr(c.family), false: to}[to != "127.0.0.1" && to != "::1"]
			expect(t, "bind to "+own, s.do(Call{Name: "bind", FD: s.fd, Addr: join(own, 0)}).Err, 0)
			from, err := s.echo(join(to, 0))
			expect(t, "bound ping to "+to, fmt.Sprint(from, err), fmt.Sprint(to, unix.Errno(0)))
		}
	}
	n, err := h.Counters(b.id)
	if err != nil || n.PingsRewritten == 0 && devicesSince(t) {
		t.Errorf("counters %+v, %v; want some rewritten", n, err)
	}
}

// The kernel binds these sockets without asking anybody. What they send has the
// own source all the same.
func TestPingIsNotForged(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	network := h.network(1, v4|v6)
	b := h.box(network, 2, v4|v6)
	h.cgroup(h.top + "-outside")
	sniffer := h.start(h.top+"-outside", h.spaces[network])
	for family, c := range map[int]struct {
		proto           int
		own, forged, to string
	}{
		unix.AF_INET:  {unix.IPPROTO_ICMP, "10.77.0.2", "10.77.0.3", "10.77.0.1"},
		unix.AF_INET6: {unix.IPPROTO_ICMPV6, "fd00:77::2", "fd00:77::3", "fd00:77::1"},
	} {
		// What arrives at c.to, and is not an answer: both go over lo.
		arrived := sniffer.socket(family, unix.SOCK_RAW, c.proto)
		arrived.must(Call{Name: "bind", FD: arrived.fd, Addr: join(c.to, 0)})
		s := pinger(b, family)
		expect(t, "bind", s.do(Call{Name: "bind", FD: s.fd, Addr: join(c.forged, 0)}).Err, 0)
		if !devicesSince(t) { // what nobody sets right goes nowhere; what follows arrives first
			_ = s.send(join(c.to, 0), echoRequest(family))
			named := pinger(b, family)
			_ = named.do(Call{Name: "send", FD: named.fd, Addr: join(c.to, 0), Source: c.forged, Text: echoRequest(family)})
			honest := pinger(b, family)
			expect(t, "connect", honest.connect(join(c.to, 0)), 0)
			expect(t, "ping", honest.send("", echoRequest(family)), 0)
			_, from := arrived.received("the honest one")
			expect(t, "the source of the first to arrive", ipOf(t, from), c.own)
			continue
		}
		expect(t, "ping", s.send(join(c.to, 0), echoRequest(family)), 0)
		_, from := arrived.received("bound to " + c.forged)
		expect(t, "the source of one bound to "+c.forged, ipOf(t, from), c.own)
		if err := s.connect(join(c.to, 0)); err != unix.EADDRNOTAVAIL {
			t.Errorf("connect one bound to %s: %v", c.forged, err)
		}
		s = pinger(b, family)
		r := s.do(Call{Name: "send", FD: s.fd, Addr: join(c.to, 0), Source: c.forged, Text: echoRequest(family)})
		expect(t, "ping", r.Err, 0)
		_, from = arrived.received("with source " + c.forged)
		expect(t, "the source of one that names "+c.forged, ipOf(t, from), c.own)
	}
	n, err := h.Counters(b.id)
	if want := map[bool]uint64{true: 4}[devicesSince(t)]; err != nil || n.PingsRewritten != want {
		t.Errorf("counters %+v, %v; want %d rewritten", n, err, want)
	}
}

func echoRequest(family int) string {
	if family == unix.AF_INET6 {
		return "\x80\x00\x00\x00\x00\x00\x00\x01particle"
	}
	return "\x08\x00\x00\x00\x00\x00\x00\x01particle"
}
