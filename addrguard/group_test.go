package addrguard_test

import (
	"fmt"
	"net"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/addrguard"
	"github.com/particle-net/particle/internal/netnstest"
	"github.com/particle-net/particle/topology"
)

// groupNetwork is a network with a link to the world, on which no program looks, and
// one to a container with a namespace of its own.
func groupNetwork(h *host) (id topology.NetworkID, links map[string]int, own sock) {
	h.t.Helper()
	id = h.network(1, v4|v6)
	ns, apart := h.spaces[id], netnstest.New(h.t)
	ns.Run("ip", "link", "add", "up0", "type", "veth", "peer", "name", "world")
	ns.Run("ip", "link", "set", "world", "up")
	ns.Run("ip", "link", "set", "up0", "up")
	netnstest.Connect(ns, "pb1", "192.0.2.1/24", apart, "eth0", "192.0.2.2/24")
	apart.Run("ip", "route", "add", "default", "via", "192.0.2.1")
	if err := h.Protect(h.t.Context(), id, true); err != nil {
		h.t.Fatal(err)
	}
	links = map[string]int{}
	for _, name := range []string{"lo", "up0", "pb1"} {
		ns.Do(func() {
			link, err := net.InterfaceByName(name)
			if err != nil {
				h.t.Fatal(err)
			}
			links[name] = link.Index
		})
	}
	return id, links, h.start(h.top, apart).bound(udp, "[::]:5353")
}

var groups = []struct {
	family int
	to     func(link int, port string) string
	name   string
}{
	{unix.AF_INET, func(_ int, port string) string { return "224.0.0.251:" + port }, "224.0.0.251"},
	{unix.AF_INET, func(_ int, port string) string { return "255.255.255.255:" + port }, "255.255.255.255"},
	{unix.AF_INET6, func(link int, port string) string { return fmt.Sprintf("[ff02::fb%%%d]:%s", link, port) }, "ff02::fb"},
}

// "Multicast and broadcast reach nobody, the container itself included", on whatever
// link they leave and however somebody listens.
func TestGroupsReachNobody(t *testing.T) {
	t.Parallel()
	t.Run("now", func(t *testing.T) { t.Parallel(); reachNobody(t, newHost(t)) })
	t.Run("before 6.15", func(t *testing.T) { t.Parallel(); reachNobody(t, newHost(t, addrguard.Before615)) })
	t.Run("before 6.6", func(t *testing.T) { t.Parallel(); reachNobody(t, newHost(t, addrguard.Before66)) })
}

func reachNobody(t *testing.T, h *host) {
	network, links, own := groupNetwork(h)
	a, b := h.box(network, 1, v4|v6), h.box(network, 2, v4|v6)
	for _, g := range groups {
		own.do(Call{Name: "join", FD: own.fd, Addr: g.to(0, "0")}) // on its only link
		for _, hearer := range []*box{b, a} {                      // one's own, too
			bound := hearer.bound(udp, g.to(links["lo"], "5353"))
			unbound, p := hearer.autobound(g.family, udp)
			for name, link := range links {
				for _, s := range []sock{bound, unbound} {
					s.do(Call{Name: "join", FD: s.fd, Addr: g.to(link, "0"), Value: link}) // nobody can join everybody
				}
				// IPv6 has no route to a group by lo.
				want := map[bool]unix.Errno{true: unix.ENETUNREACH}[g.family == unix.AF_INET6 && name == "lo"]
				for _, port := range []string{"5353", p} {
					s := a.socket(g.family, udp)
					s.must(Call{Name: "setsockopt", FD: s.fd, Proto: unix.SOL_SOCKET, Opt: unix.SO_BROADCAST, Value: 1})
					s.must(Call{Name: "device", FD: s.fd, Text: name})
					expect(t, "send to "+g.to(link, port)+" by "+name, s.send(g.to(link, port), "to all"), want)
					s.close()
				}
			}
			expect(t, g.name+" at a socket bound to it", bound.do(Call{Name: "receive", FD: bound.fd, Timeout: 1}), Answer{Err: unix.ETIMEDOUT})
			expect(t, "send", a.socket(g.family, udp).send(joined(hearer.addr(g.family), p), "to one"), 0)
			text, _ := unbound.received("what is sent to one")
			expect(t, "what arrives first at a socket that was not bound, of "+g.name, text, "to one")
			bound.close()
		}
	}
	expect(t, "send", a.socket(unix.AF_INET, udp).send("192.0.2.2:5353", "to one"), 0)
	text, _ := own.received("what is sent to a container with a namespace of its own")
	expect(t, "what arrives first there", text, "to one")
}

// "A UDP socket can be bound to a group, by every container", and what is sent from there
// comes from the own address.
func TestGroupsAreBoundByAll(t *testing.T) {
	t.Parallel()
	onKernels(t, func(t *testing.T, h *host) {
		network := h.network(1, v4|v6)
		a, b := h.box(network, 1, v4|v6), h.box(network, 2, v4|v6)
		server4, server6 := b.bound(udp, "10.77.0.2:53"), b.bound(udp, "[fd00:77::2]:53")
		own4, own6 := a.bound(udp, "127.0.0.1:54"), a.bound(udp, "[::1]:54")
		for _, c := range []struct {
			group, shown      string
			server, own       sock
			to, toOwn         string
			source, sourceOwn string
		}{
			{"224.0.0.251:5353", "0.0.0.0:5353", server4, own4, "10.77.0.2:53", "127.0.0.1:54", "10.77.0.1:5353", "127.0.0.1:5353"},
			{"224.0.0.252:5353", "0.0.0.0:5353", server4, own4, "10.77.0.2:53", "127.0.0.1:54", "10.77.0.1:5353", "127.0.0.1:5353"},
			{"255.255.255.255:67", "0.0.0.0:67", server4, own4, "10.77.0.2:53", "127.0.0.1:54", "10.77.0.1:67", "127.0.0.1:67"},
			{"[::ffff:239.255.255.250]:1900", "[::ffff:0.0.0.0]:1900", server4, own4, "[::ffff:10.77.0.2]:53", "[::ffff:127.0.0.1]:54", "10.77.0.1:1900", "127.0.0.1:1900"},
			{"[ff02::fb%1]:5353", "[::]:5353", server6, own6, "[fd00:77::2]:53", "[::1]:54", "[fd00:77::1]:5353", "[::1]:5353"},
			{"[ff15::1]:5353", "[::]:5353", server6, own6, "[fd00:77::2]:53", "[::1]:54", "[fd00:77::1]:5353", "[::1]:5353"},
		} {
			s := a.bound(udp, c.group)
			b.bound(udp, c.group)
			expect(t, "getsockname of "+c.group, s.name(), c.shown)
			expect(t, "send from "+c.group, s.send(c.to, "out"), 0)
			_, from := c.server.received("what is sent from " + c.group)
			expect(t, "the sender that is bound to "+c.group, from, c.source)
			expect(t, "send from "+c.group, s.send(c.toOwn, "in"), 0)
			_, from = c.own.received("what is sent over loopback from " + c.group)
			expect(t, "the sender over loopback", from, c.sourceOwn)
			_, err := a.at(udp, c.group)
			expect(t, "bind "+c.group+" again", err, unix.EADDRINUSE)
			expect(t, "connect what is bound to "+c.group, s.connect(c.to), map[bool]unix.Errno{true: unix.EADDRNOTAVAIL, false: unix.EINVAL}[c.own == own6])
			_, err = a.at(tcp, c.group)
			expect(t, "bind TCP to "+c.group, err, unix.EADDRNOTAVAIL)
		}
	})
}

// joinGroup makes the socket hear a group on the link whose index is Value.
func joinGroup(c Call, _ *Answer) error {
	ap, err := netip.ParseAddrPort(c.Addr)
	if err != nil {
		return err
	}
	if group := ap.Addr(); group.Is6() {
		return unix.SetsockoptIPv6Mreq(c.FD, unix.SOL_IPV6, unix.IPV6_ADD_MEMBERSHIP, &unix.IPv6Mreq{Multiaddr: group.As16(), Interface: uint32(c.Value)})
	}
	return unix.SetsockoptIPMreqn(c.FD, unix.SOL_IP, unix.IP_ADD_MEMBERSHIP, &unix.IPMreqn{Multiaddr: ap.Addr().As4(), Ifindex: int32(c.Value)})
}
