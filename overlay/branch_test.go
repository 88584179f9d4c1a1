package overlay_test

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/particle-net/particle/internal/netnstest"
	"github.com/particle-net/particle/topology"
)

func endpoint(i int) topology.EndpointID {
	return topology.EndpointID(fmt.Sprintf("%012x", i) + strings.Repeat("e", 52))
}

// branched is a container with a namespace of its own.
type branched struct {
	*netnstest.Namespace
	topology.Branch
}

// branch connects a new container to network n, as 10.9.0.I and fd00:9::I.
func (m *machine) branch(n, i int) branched {
	m.t.Helper()
	c := branched{netnstest.New(m.t), topology.Branch{
		Network: network(n), Endpoint: endpoint(i), Link: "eth%d", MTU: 1450,
		IPv4: netip.AddrFrom4([4]byte{10, 9, 0, byte(i)}), IPv6: netip.MustParseAddr(fmt.Sprintf("fd00:9::%x", i)),
	}}
	c.Branch.Namespace = c.Path()
	m.attach(c.Branch)
	return c
}

func (m *machine) attach(b topology.Branch) {
	m.t.Helper()
	if err := m.ApplyBranch(m.t.Context(), b); err != nil {
		m.t.Fatal(err)
	}
}

func (m *machine) detach(n int, endpoints ...topology.EndpointID) {
	m.t.Helper()
	if err := m.RemoveBranches(m.t.Context(), network(n), endpoints); err != nil {
		m.t.Fatal(err)
	}
}

// place is where a program runs, and the address it has there.
type place struct {
	name string
	ns   *netnstest.Namespace
	addr netip.Addr
}

func TestBranchAndSharedNamespace(t *testing.T) {
	t.Parallel()
	for name, prepare := range map[string]func(tenant *netnstest.Namespace){
		"plain": func(*netnstest.Namespace) {},
		// Somebody's routing rule makes the kernel look at table local first.
		"with a routing rule": func(tenant *netnstest.Namespace) {
			tenant.Run("ip", "rule", "add", "from", "10.99.0.0/16", "table", "99")
			tenant.Run("ip", "-6", "rule", "add", "from", "fd99::/16", "table", "99")
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newMachine(t, "")
			m.apply(segment(1, 0, "", "10.9.0.0/24", "fd00:9::/64"), true)
			tenant := m.tenant(network(1))
			own, other := m.branch(1, 2), m.branch(1, 3)
			prepare(tenant)
			for _, family := range []struct{ shared, own, other netip.Addr }{
				{netip.MustParseAddr("10.9.0.9"), own.IPv4, other.IPv4},
				{netip.MustParseAddr("fd00:9::9"), own.IPv6, other.IPv6},
			} {
				shared, a, b := place{"shared", tenant, family.shared}, place{"own", own.Namespace, family.own}, place{"other", other.Namespace, family.other}
				for _, pair := range [][2]place{{shared, a}, {a, shared}, {a, b}, {b, a}} {
					converse(t, pair[0], pair[1])
				}
			}
		})
	}
}

// converse has one place reach the other by TCP, UDP and ICMP.
func converse(t *testing.T, from, to place) {
	t.Helper()
	l := listenTCP(t, to.ns, netip.AddrPortFrom(to.addr, 0).String())
	serve(t, l, to.name)
	got, err := ask(from.ns, from.addr.String(), l.Addr().String())
	if want := fmt.Sprintf("%s sees %s", to.name, from.addr); err != nil || got != want {
		t.Errorf("TCP from %s to %s: got %q, %v; want %q", from.name, to.name, got, err, want)
	}
	server, client := openUDP(t, to.ns, to.addr), openUDP(t, from.ns, from.addr)
	client.send(server.LocalAddr().String(), "hello")
	if source := server.want("hello"); source != client.LocalAddr().String() {
		t.Errorf("UDP from %s to %s: comes from %s", from.name, to.name, source)
	}
	server.send(client.LocalAddr().String(), "answer")
	client.want("answer")
	if err := ping(from.ns, from.addr, to.addr); err != nil {
		t.Errorf("ICMP from %s to %s: %v", from.name, to.name, err)
	}
}

// What a container asks first is answered, on however busy a host.
func TestFirstAnswerToABranchArrives(t *testing.T) {
	t.Parallel()
	m := newMachine(t, "")
	m.apply(segment(1, 0, "", "10.9.0.0/24", "fd00:9::/64"), true)
	server := openUDP(t, m.tenant(network(1)), netip.MustParseAddr("fd00:9::ff"))
	for i := 2; i < 60; i++ {
		own := m.branch(1, i)
		client := openUDP(t, own.Namespace, own.IPv6)
		client.send(server.LocalAddr().String(), "question")
		server.send(server.want("question"), "answer")
		client.want("answer")
		m.detach(1, own.Endpoint)
	}
}

// "To it, programs in the shared namespace that bind no source come from the
// network's first address".
func TestUnboundSenderReachesBranch(t *testing.T) {
	t.Parallel()
	m := newMachine(t, "")
	m.apply(segment(1, 0, "", "10.9.0.0/24", "fd00:9::/64"), true)
	own := m.branch(1, 2)
	for a, first := range map[netip.Addr]string{own.IPv4: "10.9.0.0", own.IPv6: "fd00:9::"} {
		l := listenTCP(t, own.Namespace, netip.AddrPortFrom(a, 0).String())
		serve(t, l, "own")
		if got, err := ask(m.tenant(network(1)), "", l.Addr().String()); err != nil {
			t.Errorf("got %q, %v", got, err)
		}
		if route := m.tenant(network(1)).Run("ip", "route", "get", a.String()); !strings.Contains(route, " src "+first+" ") {
			t.Errorf("to %s: %s", a, route)
		}
	}
}

func TestBranchAddressIsNobodyElses(t *testing.T) {
	t.Parallel()
	m := newMachine(t, "")
	m.apply(segment(1, 0, "", "10.9.0.0/24"), true)
	own := m.branch4(1, 2)
	bind := func() error {
		l, err := m.Listen(t.Context(), network(1), "tcp", "10.9.0.2:80")
		if err == nil {
			_ = l.Close()
		}
		return err
	}
	if bind() == nil {
		t.Error("a container in the shared namespace took the address")
	}
	m.detach(1, own.Endpoint)
	if err := bind(); err != nil {
		t.Errorf("the address is not given back: %v", err)
	}
}

func TestBranchGoesOut(t *testing.T) {
	t.Parallel()
	m, internet := routed(t)
	serve(t, listenTCP(t, internet, outside+":80"), "internet")
	tenant := m.tenantWithUplink(1)
	own := m.branch4(1, 2)
	got, err := ask(own.Namespace, "", outside+":80")
	if want := "internet sees 192.0.2.1"; err != nil || got != want {
		t.Errorf("got %q, %v; want %q", got, err, want)
	}
	server, client := openUDP(t, internet, netip.MustParseAddr(outside)), openUDP(t, own.Namespace, own.IPv4)
	client.send(server.LocalAddr().String(), "hello")
	peer := server.want("hello")
	server.send(peer, "answer")
	client.want("answer")
	if err := ping(own.Namespace, own.IPv4, netip.MustParseAddr(outside)); err != nil {
		t.Errorf("ping: %v", err)
	}
	// Nothing comes in unasked: neither from the host, nor from beyond it.
	m.Run("ip", "route", "add", "10.9.0.0/24", "via", "169.254.192.3")
	internet.Run("ip", "route", "add", "10.9.0.0/24", "via", "192.0.2.1")
	for _, from := range []place{{"host", m.Namespace, netip.MustParseAddr("192.0.2.1")}, {"outside", internet, netip.MustParseAddr("192.0.2.2")}} {
		stranger := openUDP(t, from.ns, from.addr)
		stranger.send(client.LocalAddr().String(), "from "+from.name)
		server.send(peer, "answer")
		client.want("answer")
	}
	ownTable(m.Namespace) // the gateway's rules alone
	stranger := openUDP(t, m.Namespace, netip.MustParseAddr("192.0.2.1"))
	stranger.send(client.LocalAddr().String(), "from the host")
	neighbour := openUDP(t, tenant, netip.MustParseAddr("10.9.0.9"))
	neighbour.send(client.LocalAddr().String(), "from the network")
	client.want("from the network")
}

// branch4 is branch for a network without IPv6.
func (m *machine) branch4(n, i int) branched {
	m.t.Helper()
	c := branched{netnstest.New(m.t), topology.Branch{
		Network: network(n), Endpoint: endpoint(i), Link: "eth%d", MTU: 1450, IPv4: netip.AddrFrom4([4]byte{10, 9, 0, byte(i)}),
	}}
	c.Branch.Namespace = c.Path()
	m.attach(c.Branch)
	return c
}

func TestBranchesAcrossHosts(t *testing.T) {
	t.Parallel()
	hosts := peers(t, "198.51.100.1", "198.51.100.2", 24)
	var own [2]branched
	for i, m := range hosts {
		m.apply(shared(segment(1, 42, fmt.Sprintf("198.51.100.%d", i+1), fmt.Sprintf("10.9.%d.0/24", i+1))), true)
		m.introduce(1, fmt.Sprintf("10.9.%d.0/24", 2-i), fmt.Sprintf("198.51.100.%d", 2-i))
		own[i] = branched{netnstest.New(t), topology.Branch{Network: network(1), Endpoint: endpoint(2), Link: "eth%d", MTU: 1450,
			IPv4: netip.MustParseAddr(fmt.Sprintf("10.9.%d.2", i+1))}}
		own[i].Branch.Namespace = own[i].Path()
		m.attach(own[i].Branch)
	}
	together := place{"shared", hosts[0].tenant(network(1)), netip.MustParseAddr("10.9.1.9")}
	here, there := place{"here", own[0].Namespace, own[0].IPv4}, place{"there", own[1].Namespace, own[1].IPv4}
	for _, pair := range [][2]place{{together, there}, {there, together}, {here, there}} {
		converse(t, pair[0], pair[1])
	}
	for i, m := range hosts {
		if n := sysctl(m.tenant(network(1)), "net/netfilter/nf_conntrack_count"); n != "0" {
			t.Errorf("host %d tracks %s connections, want none", i, n)
		}
	}
}

func TestBranchMayBeRepeated(t *testing.T) {
	t.Parallel()
	m := newMachine(t, "")
	m.apply(segment(1, 0, "", "10.9.0.0/24", "fd00:9::/64"), true)
	own := m.branch(1, 2)
	picture := func() string {
		return pictureOf(m.tenant(network(1))) + pictureOf(own.Namespace)
	}
	before := picture()
	m.attach(own.Branch)
	m.restart()
	m.attach(own.Branch)
	if diff := cmp.Diff(before, picture()); diff != "" {
		t.Errorf("the second ApplyBranch changed the kernel (-want +got):\n%s", diff)
	}
	sound := m.tenant(network(1)).Run("nft", "-s", "list", "ruleset")
	pb := "pb" + endpoint(2).Short()
	for _, drift := range []struct {
		in   *netnstest.Namespace
		args []string
	}{
		{m.tenant(network(1)), []string{"ip", "link", "delete", pb}},
		{m.tenant(network(1)), []string{"ip", "link", "set", pb, "down"}},
		{m.tenant(network(1)), []string{"ip", "link", "set", pb, "arp", "on"}},
		{m.tenant(network(1)), []string{"ip", "address", "flush", "dev", pb}},
		{m.tenant(network(1)), []string{"ip", "route", "delete", "10.9.0.2", "table", "local"}},
		{m.tenant(network(1)), []string{"ip", "neighbour", "flush", "all", "nud", "permanent"}},
		{m.tenant(network(1)), []string{"nft", "flush", "table", "inet", "particle-branches"}},
		{m.tenant(network(1)), []string{"nft", "delete", "table", "inet", "particle"}},
		{m.tenant(network(1)), []string{"sh", "-c", "echo 0 > /proc/sys/net/ipv4/ip_forward"}},
		{own.Namespace, []string{"ip", "link", "delete", "eth0"}},
		{own.Namespace, []string{"ip", "link", "set", "eth0", "down"}},
		{own.Namespace, []string{"ip", "link", "set", "lo", "down"}},
		{own.Namespace, []string{"ip", "address", "flush", "dev", "eth0"}},
		{own.Namespace, []string{"sh", "-c", "echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6"}}, // Docker up to 25
	} {
		drift.in.Run(drift.args[0], drift.args[1:]...)
		m.attach(own.Branch)
		if rules := m.tenant(network(1)).Run("nft", "-s", "list", "ruleset"); rules != sound {
			t.Errorf("rules: %s", rules)
		}
		together := place{"shared", m.tenant(network(1)), netip.MustParseAddr("10.9.0.9")}
		converse(t, place{"own", own.Namespace, own.IPv4}, together)
		together.addr = netip.MustParseAddr("fd00:9::9")
		converse(t, place{"own", own.Namespace, own.IPv6}, together)
		if t.Failed() {
			t.Fatalf("after %v", drift.args)
		}
	}
}

// pictureOf is what belongs to branches in a namespace.
func pictureOf(ns *netnstest.Namespace) string {
	return ns.Run("ip", "-o", "address") + ns.Run("ip", "-4", "route", "show", "table", "all") +
		// Routes to own addresses of IPv6 come a moment after the address.
		ns.Run("sh", "-c", "ip -6 route show table all | grep -v 'proto kernel'") + ns.Run("ip", "neighbour", "show", "nud", "permanent") +
		ns.Run("nft", "-a", "list", "ruleset")
}

// openUDP binds a free port of an address.
func openUDP(t *testing.T, ns *netnstest.Namespace, a netip.Addr) socket {
	t.Helper()
	var conn net.PacketConn
	var err error
	ns.Do(func() { conn, err = net.ListenPacket("udp", netip.AddrPortFrom(a, 0).String()) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return socket{conn, t}
}
