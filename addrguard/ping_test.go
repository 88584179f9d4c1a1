package addrguard_test

import (
	"fmt"
	"testing"

	"golang.org/x/sys/unix"
)

// echo sends an echo request and gives who answered.
func (s sock) echo(to string) (from string, err unix.Errno) {
	s.t.Helper()
	request := "\x08\x00\x00\x00\x00\x00\x00\x01particle"
	if to != "" && to[0] == '[' {
		request = "\x80\x00\x00\x00\x00\x00\x00\x01particle"
	}
	if err := s.send(to, request); err != 0 {
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
			from, err := pinger(b, c.family).echo(join(to, 0))
			expect(t, "ping "+to, fmt.Sprint(from, err), fmt.Sprint(to, unix.Errno(0)))
			s := pinger(b, c.family)
			expect(t, "connect to "+to, s.connect(join(to, 0)), 0)
			if err := s.send("", "\x08\x00\x00\x00\x00\x00\x00\x01particle"); c.family == unix.AF_INET {
				expect(t, "connected ping to "+to, err, 0)
				a := s.must(Call{Name: "receive", FD: s.fd})
				expect(t, "who answers", ipOf(t, a.Addr), to)
			}
			s = pinger(b, c.family)
			own := map[bool]string{true: b.addr(c.family), false: to}[to != "127.0.0.1" && to != "::1"]
			expect(t, "bind to "+own, s.do(Call{Name: "bind", FD: s.fd, Addr: join(own, 0)}).Err, 0)
			from, err = s.echo(join(to, 0))
			expect(t, "bound ping to "+to, fmt.Sprint(from, err), fmt.Sprint(to, unix.Errno(0)))
		}
	}
	n, err := h.Counters(b.id)
	if err != nil || n.PingsRewritten == 0 {
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
	for family, c := range map[int]struct{ forged, to, filter string }{
		unix.AF_INET:  {"10.77.0.3", "10.77.0.1", "ip"},
		unix.AF_INET6: {"fd00:77::3", "fd00:77::1", "ip6"},
	} {
		s := pinger(b, family)
		expect(t, "bind", s.do(Call{Name: "bind", FD: s.fd, Addr: join(c.forged, 0)}).Err, 0)
		// The answer goes to the own address, where this socket is not.
		_, err := s.echo(join(c.to, 0))
		expect(t, "ping from "+c.forged, err, unix.ETIMEDOUT)
		p := pinger(b, family)
		r := p.do(Call{Name: "send", FD: p.fd, Addr: join(c.to, 0), Source: c.forged, Text: "\x08\x00\x00\x00\x00\x00\x00\x01particle"})
		if family == unix.AF_INET {
			expect(t, "ping with source "+c.forged, r.Err, 0)
			from, _ := p.received("the answer")
			_ = from
		}
	}
	n, err := h.Counters(b.id)
	if err != nil || n.PingsRewritten < 2 {
		t.Errorf("counters %+v, %v; want 3 rewritten", n, err)
	}
}
