package addrguard_test

import (
	"fmt"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

// ipOf is the address without the port.
func ipOf(t testing.TB, addr string) string {
	t.Helper()
	ap, err := netip.ParseAddrPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	return ap.Addr().String()
}

// dial connects and tells how both ends call themselves and each other.
type dialled struct {
	client, server sock
	from           string // the peer as accept tells it, without the port
}

func dial(t testing.TB, from *box, to sock, addr string, proto ...int) dialled {
	t.Helper()
	family := unix.AF_INET
	if addr[0] == '[' {
		family = unix.AF_INET6
	}
	c := from.socket(family, tcp, proto...)
	if err := c.connect(addr); err != 0 {
		t.Fatalf("connect to %s: %v", addr, err)
	}
	s, peer := to.accept()
	expect(t, addr+": the port of both", port(t, peer), port(t, c.name()))
	expect(t, addr+": accept and getpeername", s.peer(), peer)
	return dialled{c, s, ipOf(t, peer)}
}

func TestConnectFromOwnAddress(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	network := h.network(1, v4|v6)
	a, b := h.box(network, 1, v4|v6), h.box(network, 2, v4|v6)
	for n, c := range []struct {
		listen, addr, from, as string // from: the client, as: the server's own name
		options                [][3]int
		proto                  int
	}{
		{listen: "0.0.0.0:%d", addr: "10.77.0.1:%d", from: "10.77.0.2", as: "10.77.0.1"},
		{listen: "10.77.0.1:%d", addr: "10.77.0.1:%d", from: "10.77.0.2", as: "10.77.0.1"},
		{listen: "[::]:%d", addr: "10.77.0.1:%d", from: "::ffff:10.77.0.2", as: "::ffff:10.77.0.1"},
		{listen: "0.0.0.0:%d", addr: "[::ffff:10.77.0.1]:%d", from: "10.77.0.2", as: "10.77.0.1"},
		{listen: "[::]:%d", addr: "[fd00:77::1]:%d", from: "fd00:77::2", as: "fd00:77::1", options: [][3]int{v6only}},
		{listen: "[::]:%d", addr: "[fd00:77::1]:%d", from: "fd00:77::2", as: "fd00:77::1"},
		{listen: "[::]:%d", addr: "[fd00:77::1]:%d", from: "fd00:77::2", as: "fd00:77::1", proto: unix.IPPROTO_MPTCP},
		{listen: "[fd00:77::1]:%d", addr: "[fd00:77::1]:%d", from: "fd00:77::2", as: "fd00:77::1"},
		{listen: "0.0.0.0:%d", addr: "10.77.0.1:%d", from: "10.77.0.2", as: "10.77.0.1", proto: unix.IPPROTO_MPTCP},
		{listen: "[::]:%d", addr: "[fd00:77::1]:%d", from: "fd00:77::2", as: "fd00:77::1", options: [][3]int{v6only}, proto: unix.IPPROTO_MPTCP},
	} {
		addr := fmt.Sprintf(c.addr, 1000+n)
		server := a.listening(fmt.Sprintf(c.listen, 1000+n), c.options...)
		if c.listen == "[::]:%d" && c.options == nil && unmet(t, b, addr) {
			continue
		}
		d := dial(t, b, server, addr, c.proto)
		expect(t, addr+": the client", d.from, c.from)
		expect(t, addr+": the server", ipOf(t, d.server.name()), c.as)
		expect(t, addr+": what was asked for", d.client.peer(), addr)
		expect(t, addr+": the client to itself", ipOf(t, netip.MustParseAddrPort(d.client.name()).String()), mappedLike(addr, c.from))
	}
}

// mappedLike gives an IPv4 address as a socket for addr's family shows it.
func mappedLike(addr, ip string) string {
	to, from := netip.MustParseAddrPort(addr).Addr(), netip.MustParseAddr(ip)
	if to.Is4() {
		return from.Unmap().String()
	}
	if from.Is4() {
		return netip.AddrFrom16(from.As16()).String()
	}
	return ip
}

func TestLoopbackIsPrivate(t *testing.T) {
	t.Parallel()
	for name, families := range map[string]int{"both": v4 | v6, "IPv4": v4, "IPv6": v6} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			onKernels(t, func(t *testing.T, h *host) { loopbackIsPrivate(t, h, families) })
		})
	}
}

func loopbackIsPrivate(t *testing.T, h *host, families int) {
	t.Helper()
	network := h.network(1, families)
	a, b := h.box(network, 1, families), h.box(network, 2, families)
	for n, c := range []struct {
		listen, addr, peer string
		options            [][3]int
	}{
		{listen: "127.0.0.1:%d", addr: "127.0.0.1:%d", peer: "127.0.0.1"},
		{listen: "127.0.0.9:%d", addr: "127.0.0.9:%d", peer: "127.0.0.1"},
		{listen: "0.0.0.0:%d", addr: "127.0.0.1:%d", peer: "127.0.0.1"},
		{listen: "0.0.0.0:%d", addr: "0.0.0.0:%d", peer: "127.0.0.1"},
		{listen: "[::1]:%d", addr: "[::1]:%d", peer: "::1"},
		{listen: "[::]:%d", addr: "[::1]:%d", peer: "::1", options: [][3]int{v6only}},
		{listen: "[::]:%d", addr: "[::1]:%d", peer: "::1"},
		{listen: "[::]:%d", addr: "[::]:%d", peer: "::1"},
		{listen: "[::]:%d", addr: "127.0.0.1:%d", peer: "::ffff:127.0.0.1"},
		{listen: "[::]:%d", addr: "[::ffff:127.0.0.1]:%d", peer: "::ffff:127.0.0.1"},
		{listen: "[::ffff:127.0.0.1]:%d", addr: "127.0.0.1:%d", peer: "::ffff:127.0.0.1"},
	} {
		addr := fmt.Sprintf(c.addr, 1000+n)
		family := unix.AF_INET
		if addr[0] == '[' {
			family = unix.AF_INET6
		}
		// A neighbour serves the same port, and is not met.
		b.listening(fmt.Sprintf(c.listen, 1000+n), c.options...)
		if err := a.socket(family, tcp).connect(addr); err != unix.ECONNREFUSED {
			t.Errorf("%s for %s, at nobody's: %v", addr, c.listen, err)
		}
		server := a.listening(fmt.Sprintf(c.listen, 1000+n), c.options...)
		if c.listen == "[::]:%d" && c.options == nil && unmet(t, a, addr) {
			continue
		}
		d := dial(t, a, server, addr)
		expect(t, addr+" for "+c.listen+": the peer", d.from, c.peer)
		asked := addr
		switch c.addr {
		case "0.0.0.0:%d":
			asked = fmt.Sprintf("127.0.0.1:%d", 1000+n)
		case "[::]:%d":
			asked = fmt.Sprintf("[::1]:%d", 1000+n)
		}
		expect(t, addr+" for "+c.listen+": getpeername", d.client.peer(), asked)
		expect(t, addr+" for "+c.listen+": the client", ipOf(t, d.client.name()), mappedLike(addr, c.peer))
		expect(t, addr+" for "+c.listen+": the server", d.server.name(), netip.AddrPortFrom(netip.MustParseAddr(mappedLike(asServer(c.peer), ipOf(t, asked))), uint16(1000+n)).String())
	}
	for _, addr := range []string{"127.0.2.1:1000", "127.9.9.9:1000", "[::ffff:127.0.2.1]:1000", "[fdb9:1f1f:eea::2]:1004"} {
		family := unix.AF_INET
		if addr[0] == '[' {
			family = unix.AF_INET6
		}
		for _, kind := range []int{tcp, udp} {
			if err := a.socket(family, kind).connect(addr); err != unix.ENETUNREACH {
				t.Errorf("connect to a neighbour's loopback %s: %v", addr, err)
			}
		}
		if err := a.socket(family, udp).send(addr, "x"); err != unix.ENETUNREACH {
			t.Errorf("send to a neighbour's loopback %s: %v", addr, err)
		}
	}
}

// asServer is some address of the family that a server with this peer has.
func asServer(peer string) string {
	return netip.AddrPortFrom(netip.MustParseAddr(peer), 1).String()
}

// A listener of a program in Go is one for MPTCP and both families.
func TestMultipathListener(t *testing.T) {
	t.Parallel()
	onKernels(t, func(t *testing.T, h *host) {
		network := h.network(1, v4|v6)
		a, b := h.box(network, 1, v4|v6), h.box(network, 2, v4|v6)
		for _, box := range []*box{a, b} {
			s := box.socket(unix.AF_INET6, tcp, unix.IPPROTO_MPTCP)
			expect(t, "bind", s.do(Call{Name: "bind", FD: s.fd, Addr: "[::]:80"}).Err, 0)
			s.must(Call{Name: "listen", FD: s.fd})
			expect(t, "getsockname", s.name(), "[::]:80")
			for _, c := range []struct {
				addr  string
				from  string
				proto int
			}{
				{addr: join(box.addr4, 80), from: "::ffff:10.77.0.2"},
				{addr: join(box.addr4, 80), from: "::ffff:10.77.0.2", proto: unix.IPPROTO_MPTCP},
				{addr: join(box.addr6, 80), from: "fd00:77::2"},
				{addr: join(box.addr6, 80), from: "fd00:77::2", proto: unix.IPPROTO_MPTCP},
			} {
				if unmet(t, b, c.addr) {
					continue
				}
				d := dial(t, b, s, c.addr, c.proto)
				expect(t, c.addr+": the client", d.from, c.from)
				expect(t, c.addr+": the server", ipOf(t, d.server.name()), mappedIn6(ipOf(t, c.addr)))
			}
			for _, addr := range []string{"127.0.0.1:80", "[::1]:80"} {
				if unmet(t, box, addr) {
					continue
				}
				d := dial(t, box, s, addr)
				expect(t, addr+": the client", d.from, mappedIn6(ipOf(t, addr)))
				expect(t, addr+": the server", ipOf(t, d.server.name()), mappedIn6(ipOf(t, addr)))
			}
		}
	})
}

// mappedIn6 is an address as an IPv6 socket shows it.
func mappedIn6(ip string) string { return mappedLike("[::1]:1", ip) }

func TestConnectErrors(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	network := h.network(1, v4|v6)
	a, b := h.box(network, 1, v4|v6), h.box(network, 2, v4|v6)
	b.listening("0.0.0.0:80")
	s := a.socket(unix.AF_INET, tcp)
	expect(t, "nobody listens", s.connect("127.0.0.1:80"), unix.ECONNREFUSED)
	expect(t, "the same socket again", s.connect("10.77.0.2:80"), 0)
	expect(t, "its source", ipOf(t, s.name()), "10.77.0.1")
	expect(t, "127.0.0.1 to elsewhere", a.bound(tcp, "127.0.0.1:0").connect("10.77.0.2:80"), unix.EINVAL)
	expect(t, "::1 to elsewhere", a.bound(tcp, "[::1]:0").connect("[fd00:77::2]:80"), unix.EINVAL)
	expect(t, "Docker's resolver", a.socket(unix.AF_INET, udp).connect("127.0.0.11:53"), unix.EHOSTUNREACH)
	u := a.socket(unix.AF_INET, udp)
	expect(t, "connect to loopback", u.connect("127.0.0.1:53"), 0)
	expect(t, "dissolve", u.connect("none"), 0)
	expect(t, "connect elsewhere", u.connect("10.77.0.2:53"), 0)
	expect(t, "its source", ipOf(t, u.name()), "10.77.0.1")
	expect(t, "dissolve", u.connect("none"), 0)
	expect(t, "connect to loopback", u.connect("127.0.0.1:53"), 0)
	expect(t, "its peer", u.peer(), "127.0.0.1:53")
	w := a.socket(unix.AF_INET, udp)
	expect(t, "send first", w.send("10.77.0.2:53", "x"), 0)
	expect(t, "then connect", w.connect("10.77.0.2:53"), unix.EADDRNOTAVAIL)
}
