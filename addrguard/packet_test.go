package addrguard_test

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/addrguard"
	"github.com/particle-net/particle/internal/netnstest"
)

// autobound is a socket whose port the kernel chose for all addresses, without
// any hook: a listener that was not bound, or one that sent first.
func (b *box) autobound(family, kind int, proto ...int) (sock, string) {
	b.t.Helper()
	s := b.socket(family, kind, proto...)
	to := "10.77.200.200:9"
	if family == unix.AF_INET6 {
		to = "[fd00:77::ffff]:9"
	}
	if kind == tcp {
		s.must(Call{Name: "listen", FD: s.fd})
	} else {
		expect(b.t, "send before bind", s.send(to, "x"), 0)
	}
	return s, port(b.t, s.name())
}

func TestAutobindLeaksNothing(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	network := h.network(1, v4|v6)
	a, b := h.box(network, 1, v4|v6), h.box(network, 2, v4|v6)
	for _, c := range []struct {
		family   int
		own      string
		strays   []string // addresses that are not a's
		loopback string
	}{
		{unix.AF_INET, "10.77.0.1", []string{"10.77.0.2", "10.77.0.3"}, "127.0.0.1"},
		{unix.AF_INET6, "fd00:77::1", []string{"fd00:77::2", "fd00:77::3"}, "::1"},
	} {
		// Datagrams to anybody's address but the own end nowhere.
		s, p := a.autobound(c.family, udp)
		from := b.socket(c.family, udp)
		for _, stray := range c.strays {
			expect(t, "send to "+stray, from.send(joined(stray, p), "stray"), 0)
		}
		expect(t, "send to loopback", from.send(joined(c.loopback, p), "stray"), 0)
		expect(t, "send to "+c.own, from.send(joined(c.own, p), "mine"), 0)
		text, sender := s.received("autobound UDP")
		expect(t, "what arrives first", text, "mine")
		expect(t, "its sender", ipOf(t, sender), ipOf(t, joined(b.addr(c.family), p)))
		own := a.socket(c.family, udp)
		expect(t, "send over loopback", own.send(joined(c.loopback, p), "loop"), 0)
		text, sender = s.received("autobound UDP over loopback")
		expect(t, "what arrives", text, "loop")
		expect(t, "its sender", ipOf(t, sender), c.loopback)

		for _, proto := range []int{0, unix.IPPROTO_MPTCP} {
			s, p := a.autobound(c.family, tcp, proto)
			before, err := h.Counters(a.id)
			if err != nil {
				t.Fatal(err)
			}
			for _, stray := range append(c.strays, c.loopback) {
				client := b.socket(c.family, tcp)
				client.must(Call{Name: "patience", FD: client.fd, Value: 100})
				if err := client.connect(joined(stray, p)); err != unix.EINPROGRESS && err != unix.ECONNREFUSED {
					t.Errorf("connect to an autobound listener by %s: %v", stray, err)
				}
			}
			after, err := h.Counters(a.id)
			if err != nil || after.IngressDropped-before.IngressDropped < 3 {
				t.Errorf("counters %+v, then %+v, %v; want 3 packets dropped", before, after, err)
			}
			client := b.socket(c.family, tcp)
			expect(t, "connect to "+c.own, client.connect(joined(c.own, p)), 0)
			_, peer := s.accept()
			expect(t, "its peer", ipOf(t, peer), b.addr(c.family))
		}
	}
}

// What sends without being asked may not reach a loopback that is not its own.
func TestLoopbackTakesNothingFromElsewhere(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	network := h.network(1, v4)
	a, helper := h.box(network, 1, v4), h.top+"/helper"
	h.cgroup(helper)
	if _, err := h.Admit(t.Context(), helper, addrguard.Identity{Exempt: true}); err != nil {
		t.Fatal(err)
	}
	private := a.bound(udp, "127.0.0.1:53")
	base, _ := addrguard.Loopback(a.slot)
	sender := h.start(helper, h.spaces[network]).bound(udp, "10.77.0.9:0")
	expect(t, "send to "+base.Next().String(), sender.send(join(base.Next().String(), 53), "forbidden"), 0)
	expect(t, "send", a.socket(unix.AF_INET, udp).send("127.0.0.1:53", "own"), 0)
	text, _ := private.received("what arrives")
	expect(t, "what arrives", text, "own")
}

// The kernel binds a socket for ping to any address, and two to one identifier if both
// agree: an answer is not the neighbour's to take even so.
func TestAnswersToPingsAreNotTaken(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	network := h.network(1, v4|v6)
	a, b := h.box(network, 1, v4|v6), h.box(network, 2, v4|v6)
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		before, err := h.Counters(b.id)
		if err != nil {
			t.Fatal(err)
		}
		asker, taker := pinger(a, family), pinger(b, family)
		for _, s := range []sock{asker, taker} { // the kernel asks the last one first
			s.must(Call{Name: "setsockopt", FD: s.fd, Proto: unix.SOL_SOCKET, Opt: unix.SO_REUSEADDR, Value: 1})
			expect(t, "bind", s.do(Call{Name: "bind", FD: s.fd, Addr: join(a.addr(family), 7)}).Err, 0)
		}
		expect(t, "connect", asker.connect(join(b.addr(family), 0)), 0)
		expect(t, "ping", asker.send("", echoRequest(family)), 0)
		eventually(t, "the answer is kept from the neighbour", func() bool {
			after, err := h.Counters(b.id)
			return err == nil && after.IngressDropped > before.IngressDropped
		})
	}
}

func (b *box) addr(family int) string {
	if family == unix.AF_INET6 {
		return b.addr6
	}
	return b.addr4
}

func joined(ip, port string) string {
	if ap := join(ip, 1); ap[0] == '[' {
		return "[" + ip + "]:" + port
	}
	return ip + ":" + port
}

// A neighbour that holds a port on all addresses takes no traffic of another's.
func TestAutobindTakesNothing(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	network := h.network(1, v4|v6)
	a, b := h.box(network, 1, v4|v6), h.box(network, 2, v4|v6)
	_, p := a.autobound(unix.AF_INET6, tcp)
	s := b.socket(unix.AF_INET6, tcp)
	// b's server of both families on that port: on its IPv4 address it stands
	// before the neighbour's, and its IPv6 address is steered to it.
	s.must(Call{Name: "setsockopt", FD: s.fd, Proto: unix.SOL_SOCKET, Opt: unix.SO_REUSEADDR, Value: 1})
	if err := s.do(Call{Name: "bind", FD: s.fd, Addr: "[::]:" + p}).Err; err != unix.EADDRINUSE {
		t.Errorf("bind a port that a neighbour holds on all addresses: %v", err)
	}
}

// "Raw sockets, packet sockets, SCTP, DCCP and the like are refused. Ping through ICMP
// sockets works." SCTP and DCCP are on kernels that have them.
func TestRefusedSockets(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	network := h.network(1, v4|v6)
	a := h.box(network, 1, v4|v6)
	for _, c := range []struct {
		family, kind, proto int
		err                 unix.Errno
	}{
		{unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP, unix.EPERM},
		{unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_RAW, unix.EPERM},
		{unix.AF_INET6, unix.SOCK_RAW, unix.IPPROTO_ICMPV6, unix.EPERM},
		{unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_UDP, unix.EPERM},
		{unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_UDPLITE, unix.EPROTONOSUPPORT},
		{unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_SCTP, unix.EPROTONOSUPPORT},
		{unix.AF_INET, unix.SOCK_SEQPACKET, unix.IPPROTO_SCTP, h.spacesErr(network, unix.SOCK_SEQPACKET, unix.IPPROTO_SCTP)},
		{unix.AF_INET, unix.SOCK_DCCP, unix.IPPROTO_DCCP, h.spacesErr(network, unix.SOCK_DCCP, unix.IPPROTO_DCCP)},
		{unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_ICMP, 0},
		{unix.AF_INET6, unix.SOCK_DGRAM, unix.IPPROTO_ICMPV6, 0},
		{unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_MPTCP, 0},
	} {
		err := a.do(Call{Name: "socket", Family: c.family, Type: c.kind, Proto: c.proto}).Err
		if err != c.err {
			t.Errorf("socket(%d, %d, %d): %v, want %v", c.family, c.kind, c.proto, err, c.err)
		}
	}
}

// What no hook on calls has seen is dropped on its way: at the device, or where
// that has no programs, at the cgroup.
func TestForgedPackets(t *testing.T) {
	t.Parallel()
	now := map[bool]unix.Errno{false: unix.EPERM}[devicesSince(t)]
	t.Run("now", func(t *testing.T) { t.Parallel(); forgePackets(t, newHost(t), now) })
	t.Run("before 6.6", func(t *testing.T) { t.Parallel(); forgePackets(t, newHost(t, addrguard.Before66), unix.EPERM) })
}

func forgePackets(t *testing.T, h *host, want unix.Errno) {
	network := h.network(1, v4|v6)
	a := h.box(network, 1, v4|v6)
	id := identityOf(network, 2, v4|v6)
	id.Raw = true
	h.cgroup(h.top + "/raw")
	raw := h.admitted(h.top+"/raw", id)
	for _, c := range []struct {
		family, level, option int
		to                    string
		forged                []string
		own                   string
	}{
		{unix.AF_INET, unix.IPPROTO_IP, unix.IP_HDRINCL, "10.77.0.1", []string{"10.77.0.3", "10.77.0.1", "8.8.8.8", "127.0.2.1"}, "10.77.0.2"},
		{unix.AF_INET6, unix.IPPROTO_IPV6, unix.IPV6_HDRINCL, "fd00:77::1", []string{"fd00:77::3", "fd00:77::1", "2001:db8::1", "::1"}, "fd00:77::2"},
	} {
		server := a.bound(udp, join(c.to, 53))
		s := raw.socket(c.family, unix.SOCK_RAW, unix.IPPROTO_RAW)
		s.must(Call{Name: "setsockopt", FD: s.fd, Proto: c.level, Opt: c.option, Value: 1})
		for _, from := range c.forged {
			expect(t, "a packet from "+from, s.send(join(c.to, 0), rawDatagram(from, c.to)), want)
		}
		expect(t, "a packet from "+c.own, s.send(join(c.to, 0), rawDatagram(c.own, c.to)), 0)
		_, from := server.received("a packet from " + c.own)
		expect(t, "the source of what arrives first", ipOf(t, from), c.own)
	}
	n, err := h.Counters(raw.id)
	if err != nil || n.EgressDropped != 8 {
		t.Errorf("counters %+v, %v; want 8 packets dropped", n, err)
	}
	_, errno := pinger(raw, unix.AF_INET).echo("10.77.0.1:0")
	expect(t, "ping", errno, want)
}

// rawDatagram is one without text to port 53, with its headers.
func rawDatagram(from, to string) string {
	src, dst := netip.MustParseAddr(from), netip.MustParseAddr(to)
	ports := []byte{0, 53, 0, 53, 0, 8, 0, 0}
	if src.Is4() { // the kernel fills in length and checksum; UDP does without
		return string(slices.Concat([]byte{0x45, 0, 0, 0, 0, 0, 0, 0, 64, unix.IPPROTO_UDP, 0, 0}, src.AsSlice(), dst.AsSlice(), ports))
	}
	head := slices.Concat([]byte{0x60, 0, 0, 0, 0, 8, unix.IPPROTO_UDP, 64}, src.AsSlice(), dst.AsSlice())
	sum := uint32(unix.IPPROTO_UDP + 8) // of the pseudo header
	for _, part := range [][]byte{head[8:], ports} {
		for i := 0; i < len(part); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(part[i:]))
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(ports[6:], ^uint16(sum))
	return string(slices.Concat(head, ports))
}

// Where devices check what leaves, datagrams of a container that was expelled reach
// nobody until it is admitted again.
func TestExpelledSendNothing(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	network := h.network(1, v4|v6)
	a, b := h.box(network, 1, v4|v6), h.box(network, 2, v4|v6)
	for family, to := range map[int]string{unix.AF_INET: "10.77.0.1:53", unix.AF_INET6: "[fd00:77::1]:53"} {
		server, s := a.bound(udp, to), b.socket(family, udp)
		if err := h.Expel(b.id); err != nil {
			t.Fatal(err)
		}
		expect(t, "send", s.send(to, "expelled"), 0)
		if _, err := h.Admit(t.Context(), b.cgroup, identityOf(network, 2, v4|v6)); err != nil {
			t.Fatal(err)
		}
		expect(t, "send", s.send(to, "admitted"), 0)
		text, _ := server.received("what arrives")
		expect(t, "what arrives first", text, map[bool]string{true: "admitted", false: "expelled"}[devicesSince(t)])
	}
}

// spacesErr is what the kernel answers without the guard, which is not asked
// where the kernel has no such protocol.
func (h *host) spacesErr(_ any, kind, proto int) unix.Errno {
	fd, err := unix.Socket(unix.AF_INET, kind, proto)
	if err == nil {
		_ = unix.Close(fd)
		return unix.EPROTONOSUPPORT
	}
	return err.(unix.Errno) //nolint:errorlint // a system call's own
}

func TestFastOpen(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	network := h.network(1, v4)
	a, b := h.box(network, 1, v4), h.box(network, 2, v4)
	s := a.listening("0.0.0.0:80")
	c := b.socket(unix.AF_INET, tcp)
	r := c.do(Call{Name: "send", FD: c.fd, Addr: "10.77.0.1:80", Text: "early", Opt: unix.MSG_FASTOPEN})
	expect(t, "send and connect", r.Err, 0)
	conn, peer := s.accept()
	expect(t, "the peer", ipOf(t, peer), "10.77.0.2")
	text, _ := conn.receive()
	expect(t, "the text", text, "early")
	c = b.socket(unix.AF_INET, tcp)
	c.must(Call{Name: "setsockopt", FD: c.fd, Proto: unix.IPPROTO_TCP, Opt: unix.TCP_FASTOPEN_CONNECT, Value: 1})
	expect(t, "connect", c.connect("10.77.0.1:80"), 0)
	expect(t, "send", c.send("", "late"), 0)
	_, peer = s.accept()
	expect(t, "the peer", ipOf(t, peer), "10.77.0.2")
}

func TestRingBind(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	network := h.network(1, v4|v6)
	a, b := h.box(network, 1, v4|v6), h.box(network, 2, v4|v6)
	for async := range 2 {
		for n, box := range []*box{a, b} {
			s := box.socket(unix.AF_INET, tcp)
			if !netnstest.Since(t, 6, 11) { // rings have no such operation yet
				expect(t, "bind", box.do(Call{Name: "iouring", FD: s.fd, Addr: joined("0.0.0.0", "80"), Value: async}).Err, unix.EINVAL)
				continue
			}
			expect(t, "bind", box.do(Call{Name: "iouring", FD: s.fd, Addr: joined("0.0.0.0", "80"), Value: async}).Err, 0)
			expect(t, "getsockname", s.name(), "0.0.0.0:80")
			s.close()
			s = box.socket(unix.AF_INET, tcp)
			neighbour := []string{"10.77.0.2:80", "10.77.0.1:80"}[n]
			expect(t, "bind a neighbour's", box.do(Call{Name: "iouring", FD: s.fd, Addr: neighbour, Value: async}).Err, unix.EADDRNOTAVAIL)
		}
	}
}

func TestSocketOnLoopbackDevice(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	a := h.box(h.network(1, v4), 1, v4)
	s := a.bound(tcp, "127.0.0.1:80")
	s.must(Call{Name: "device", FD: s.fd, Text: "lo"})
	s.must(Call{Name: "listen", FD: s.fd})
	dial(t, a, s, "127.0.0.1:80")
}
