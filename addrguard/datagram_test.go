package addrguard_test

import (
	"fmt"
	"testing"

	"golang.org/x/sys/unix"
)

// exchange sends a datagram and has the server answer to where it came from.
func exchange(t testing.TB, what string, client, server sock, to string) (clientSeen, serverSeen string) {
	t.Helper()
	if err := client.send(to, what); err != 0 {
		t.Errorf("%s: send: %v", what, err)
		return "", ""
	}
	text, from := server.received(what)
	expect(t, what+": text", text, what)
	if from == "" {
		return "", ""
	}
	if err := server.send(from, "re: "+what); err != 0 {
		t.Errorf("%s: answer to %s: %v", what, from, err)
		return from, ""
	}
	text, back := client.received(what)
	expect(t, what+": answer", text, "re: "+what)
	return from, back
}

func TestDatagrams(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	network := h.network(1, v4|v6)
	a, b := h.box(network, 1, v4|v6), h.box(network, 2, v4|v6)
	inet := func(b *box) sock { return b.socket(unix.AF_INET, udp) }
	inet6 := func(b *box) sock { return b.socket(unix.AF_INET6, udp) }
	bind := func(addr string, o ...[3]int) func(*box) sock {
		return func(b *box) sock { return b.bound(udp, addr, o...) }
	}
	for n, c := range []struct {
		name      string
		server    string
		options   [][3]int
		from      *box
		client    func(*box) sock
		to        string
		seen      string // the client's address, to the server
		connected bool
		steered   bool // the answer needs a program on a device
	}{
		{name: "unbound", server: "0.0.0.0", from: b, client: inet, to: "10.77.0.1", seen: "10.77.0.2"},
		{name: "connected", server: "0.0.0.0", from: b, client: inet, to: "10.77.0.1", seen: "10.77.0.2", connected: true},
		{name: "bound to the wildcard", server: "0.0.0.0", from: b, client: bind("0.0.0.0:0"), to: "10.77.0.1", seen: "10.77.0.2"},
		{name: "bound and connected", server: "0.0.0.0", from: b, client: bind("0.0.0.0:0"), to: "10.77.0.1", seen: "10.77.0.2", connected: true},
		{name: "mapped", server: "0.0.0.0", from: b, client: inet6, to: "::ffff:10.77.0.1", seen: "10.77.0.2"},
		{name: "mapped connected", server: "0.0.0.0", from: b, client: inet6, to: "::ffff:10.77.0.1", seen: "10.77.0.2", connected: true},
		{name: "mapped to a server of both", server: "::", from: b, client: inet, to: "10.77.0.1", seen: "::ffff:10.77.0.2"},
		{name: "IPv6", server: "::", options: [][3]int{v6only}, from: b, client: inet6, to: "fd00:77::1", seen: "fd00:77::2"},
		{name: "IPv6 connected", server: "::", options: [][3]int{v6only}, from: b, client: inet6, to: "fd00:77::1", seen: "fd00:77::2", connected: true},
		{name: "IPv6 bound to both", server: "::", options: [][3]int{v6only}, from: b, client: bind("[::]:0"), to: "fd00:77::1", seen: "fd00:77::2", steered: true},
		{name: "to itself", server: "0.0.0.0", from: a, client: inet, to: "10.77.0.1", seen: "10.77.0.1"},

		{name: "loopback", server: "127.0.0.1", from: a, client: inet, to: "127.0.0.1", seen: "127.0.0.1"},
		{name: "loopback connected", server: "127.0.0.1", from: a, client: inet, to: "127.0.0.1", seen: "127.0.0.1", connected: true},
		{name: "loopback bound", server: "127.0.0.1", from: a, client: bind("127.0.0.1:0"), to: "127.0.0.1", seen: "127.0.0.1"},
		{name: "loopback bound to the wildcard", server: "127.0.0.1", from: a, client: bind("0.0.0.0:0"), to: "127.0.0.1", seen: "127.0.0.1"},
		{name: "loopback of a wildcard", server: "0.0.0.0", from: a, client: inet, to: "127.0.0.1", seen: "127.0.0.1"},
		{name: "loopback of a wildcard connected", server: "0.0.0.0", from: a, client: inet, to: "127.0.0.1", seen: "127.0.0.1", connected: true},
		{name: "loopback of a wildcard bound", server: "0.0.0.0", from: a, client: bind("127.0.0.1:0"), to: "127.0.0.1", seen: "127.0.0.1"},
		{name: "loopback of a wildcard from one", server: "0.0.0.0", from: a, client: bind("0.0.0.0:0"), to: "127.0.0.1", seen: "127.0.0.1"},
		{name: "loopback of both families", server: "::", from: a, client: inet, to: "127.0.0.1", seen: "::ffff:127.0.0.1"},
		{name: "::1", server: "::1", from: a, client: inet6, to: "::1", seen: "::1"},
		{name: "::1 connected", server: "::1", from: a, client: inet6, to: "::1", seen: "::1", connected: true},
		{name: "::1 of a wildcard", server: "::", options: [][3]int{v6only}, from: a, client: inet6, to: "::1", seen: "::1"},
		{name: "::1 of a wildcard connected", server: "::", options: [][3]int{v6only}, from: a, client: inet6, to: "::1", seen: "::1", connected: true},
		{name: "::1 of a wildcard from one", server: "::", options: [][3]int{v6only}, from: a, client: bind("[::]:0", v6only), to: "::1", seen: "::1"},
	} {
		server := a.bound(udp, join(c.server, 2000+n), c.options...)
		client, to := c.client(c.from), join(c.to, 2000+n)
		target := to
		if c.connected {
			if err := client.connect(to); err != 0 {
				t.Errorf("%s: connect: %v", c.name, err)
				continue
			}
			target = ""
		}
		if c.steered && !devicesSince(t) {
			expect(t, c.name+": send", client.send(target, "x"), 0)
			_, from := server.received(c.name)
			unanswered(t, server, from)
			continue
		}
		seen, back := exchange(t, c.name, client, server, target)
		if seen == "" || back == "" {
			continue
		}
		expect(t, c.name+": the client", ipOf(t, seen), c.seen)
		expect(t, c.name+": who answers", back, to)
	}
}

func join(ip string, port int) string {
	for _, c := range ip {
		if c == ':' {
			return fmt.Sprintf("[%s]:%d", ip, port)
		}
	}
	return fmt.Sprintf("%s:%d", ip, port)
}

// A connected socket that sends ancillary data asks the guard about a datagram
// without a destination.
func TestAncillaryDataOfConnectedSockets(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	network := h.network(1, v4|v6)
	a, b := h.box(network, 1, v4|v6), h.box(network, 2, v4|v6)
	servers := map[string]sock{
		"10.77.0.1:53": a.bound(udp, "0.0.0.0:53"), "[fd00:77::1]:53": a.bound(udp, "[::]:53", v6only),
		"127.0.0.1:53": b.bound(udp, "127.0.0.1:53"), "[::1]:53": b.bound(udp, "[::1]:53"),
		"127.0.0.1:54": b.bound(udp, "0.0.0.0:54"), "[::1]:54": b.bound(udp, "[::]:54", v6only),
	}
	mapped := func(b *box) sock { return b.socket(unix.AF_INET6, udp) }
	inet := func(b *box) sock { return b.socket(unix.AF_INET, udp) }
	wildcard := func(b *box) sock { return b.bound(udp, "0.0.0.0:0") }
	for _, c := range []struct {
		name   string
		client func(*box) sock
		to     string // connected to
		server string
		source string
		err    unix.Errno
		from   string
	}{
		{"none", inet, "10.77.0.1:53", "10.77.0.1:53", "0.0.0.0", 0, "10.77.0.2"},
		{"own", inet, "10.77.0.1:53", "10.77.0.1:53", "10.77.0.2", 0, "10.77.0.2"},
		{"a neighbour's", inet, "10.77.0.1:53", "10.77.0.1:53", "10.77.0.1", unix.EADDRNOTAVAIL, ""},
		{"loopback to a neighbour", inet, "10.77.0.1:53", "10.77.0.1:53", "127.0.0.1", unix.EINVAL, ""},
		{"none of the wildcard", wildcard, "10.77.0.1:53", "10.77.0.1:53", "0.0.0.0", 0, "10.77.0.2"},
		{"none, mapped", mapped, "[::ffff:10.77.0.1]:53", "10.77.0.1:53", "::ffff:0.0.0.0", 0, "10.77.0.2"},
		{"none to loopback", inet, "127.0.0.1:53", "127.0.0.1:53", "0.0.0.0", 0, "127.0.0.1"},
		{"loopback to loopback", inet, "127.0.0.1:53", "127.0.0.1:53", "127.0.0.1", 0, "127.0.0.1"},
		{"none to loopback of a wildcard", inet, "127.0.0.1:54", "127.0.0.1:54", "0.0.0.0", 0, "127.0.0.1"},
		{"IPv6, none", mapped, "[fd00:77::1]:53", "[fd00:77::1]:53", "::", 0, "fd00:77::2"},
		{"IPv6, a neighbour's", mapped, "[fd00:77::1]:53", "[fd00:77::1]:53", "fd00:77::1", unix.EADDRNOTAVAIL, ""},
		{"IPv6, loopback to a neighbour", mapped, "[fd00:77::1]:53", "[fd00:77::1]:53", "::1", unix.EINVAL, ""},
		{"IPv6, none to loopback", mapped, "[::1]:53", "[::1]:53", "::", 0, "::1"},
		{"IPv6, none to loopback of a wildcard", mapped, "[::1]:54", "[::1]:54", "::", 0, "::1"},
	} {
		s := c.client(b)
		expect(t, c.name+": connect", s.connect(c.to), 0)
		expect(t, c.name+": send", s.do(Call{Name: "send", FD: s.fd, Source: c.source, Text: c.name}).Err, c.err)
		if c.err != 0 {
			continue
		}
		text, from := servers[c.server].received(c.name)
		expect(t, c.name+": text", text, c.name)
		if text == c.name {
			expect(t, c.name+": source", ipOf(t, from), c.from)
		}
	}
}

func TestForgedSources(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	network := h.network(1, v4|v6)
	a, b := h.box(network, 1, v4|v6), h.box(network, 2, v4|v6)
	server4, server6 := a.bound(udp, "0.0.0.0:53"), a.bound(udp, "[::]:53", v6only)
	for _, c := range []struct {
		family    int
		server    sock
		to        string
		source    string
		err       unix.Errno
		from      string
		connected bool
	}{
		{unix.AF_INET, server4, "10.77.0.1:53", "10.77.0.2", 0, "10.77.0.2", false},
		{unix.AF_INET, server4, "10.77.0.1:53", "10.77.0.3", unix.EADDRNOTAVAIL, "", false},
		{unix.AF_INET, server4, "10.77.0.1:53", "10.77.0.3", unix.EADDRNOTAVAIL, "", true},
		{unix.AF_INET, server4, "10.77.0.1:53", "10.77.0.1", unix.EADDRNOTAVAIL, "", false},
		{unix.AF_INET, server4, "10.77.0.1:53", "8.8.8.8", unix.EADDRNOTAVAIL, "", false},
		{unix.AF_INET, server4, "10.77.0.1:53", "127.0.1.1", unix.EADDRNOTAVAIL, "", false},
		{unix.AF_INET, server4, "10.77.0.1:53", "127.0.0.1", unix.EINVAL, "", false},
		{unix.AF_INET6, server6, "[fd00:77::1]:53", "fd00:77::2", 0, "fd00:77::2", false},
		{unix.AF_INET6, server6, "[fd00:77::1]:53", "fd00:77::3", unix.EADDRNOTAVAIL, "", false},
		{unix.AF_INET6, server6, "[fd00:77::1]:53", "fd00:77::3", unix.EADDRNOTAVAIL, "", true},
		{unix.AF_INET6, server6, "[fd00:77::1]:53", "::1", unix.EINVAL, "", false},
	} {
		s := b.socket(c.family, udp)
		to := c.to
		if c.connected {
			expect(t, "connect", s.connect(c.to), 0)
			to = ""
		}
		err := s.do(Call{Name: "send", FD: s.fd, Addr: to, Source: c.source, Text: c.source}).Err
		expect(t, fmt.Sprintf("send from %s, connected %v", c.source, c.connected), err, c.err)
		if err == 0 {
			text, from := c.server.receive()
			expect(t, "text", text, c.source)
			expect(t, "source", ipOf(t, from), c.from)
		}
	}
	// What was forged did not arrive either: the next is this one.
	expect(t, "send", b.socket(unix.AF_INET, udp).send("10.77.0.1:53", "last"), 0)
	text, _ := server4.receive()
	expect(t, "after the forged ones", text, "last")
	n, err := h.Counters(b.id)
	if err != nil || n.SourcesDenied != 9 {
		t.Errorf("counters %+v, %v; want 9 sources denied", n, err)
	}
}
