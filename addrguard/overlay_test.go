package addrguard_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/addrguard"
	"github.com/particle-net/particle/internal/netnstest"
	"github.com/particle-net/particle/overlay"
	"github.com/particle-net/particle/topology"
)

// machine is a host with the data plane of package overlay.
type machine struct {
	*host
	root  *netnstest.Namespace
	plane *overlay.Host
	vtep  string
	pools []netip.Prefix

	segment topology.Segment
}

// newMachine has network 1 with the pools given.
func newMachine(t *testing.T, root *netnstest.Namespace, vtep string, pools ...string) *machine {
	t.Helper()
	m := &machine{root: root, vtep: vtep, pools: addrguard.Prefixes()}
	for _, p := range pools {
		m.pools = append(m.pools, netip.MustParsePrefix(p))
	}
	dir := netnstest.RunDir(t)
	var err error
	root.Do(func() { m.plane, err = overlay.Open(t.Context(), overlay.Options{NamespaceDir: dir}) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(m.plane.Remove(context.Background(), networkID(1)), m.plane.Close()); err != nil {
			t.Error(err)
		}
	})
	m.segment = topology.Segment{Network: networkID(1), VNI: 7, VTEP: netip.MustParseAddr(vtep), Port: 4789, MTU: 1450, Pools: m.pools,
		Subnets: []netip.Prefix{netip.MustParsePrefix("10.77.0.0/16"), netip.MustParsePrefix("fd00:77::/32")}}
	if _, err := m.plane.Apply(t.Context(), m.segment); err != nil {
		t.Fatal(err)
	}
	m.host = newHost(t)
	m.opts.Spaces = m.plane
	if err := m.Guard.Close(); err != nil {
		t.Fatal(err)
	}
	m.open()
	m.protect()
	m.spaces[networkID(1)] = netnstest.At(t, dir+"/"+string(networkID(1)))
	return m
}

func (m *machine) protect() {
	m.t.Helper()
	if err := m.Protect(m.t.Context(), networkID(1), slices.ContainsFunc(m.pools[1:], func(p netip.Prefix) bool { return p.Addr().Is6() })); err != nil {
		m.t.Fatal(err)
	}
}

// introduce routes another machine's pools to it.
func (m *machine) introduce(other *machine) {
	m.t.Helper()
	vtep := netip.MustParseAddr(other.vtep)
	there := []topology.Peer{{VTEP: vtep, Prefixes: other.pools[1:]}}
	err := errors.Join(m.plane.SetMembers(m.t.Context(), []netip.AddrPort{netip.AddrPortFrom(vtep, 0)}), m.plane.ChangePeers(m.t.Context(), m.segment, nil, there))
	if err != nil {
		m.t.Fatal(err)
	}
}

func (m *machine) container(addr4, addr6 string) *box {
	m.t.Helper()
	cgroup := fmt.Sprintf("%s/c%d", m.top, boundary.Add(1))
	m.cgroup(cgroup)
	return m.admitted(cgroup, addrguard.Identity{Identity: topology.Identity{Network: networkID(1), Slot: 1,
		IPv4: netip.MustParseAddr(addr4), IPv6: netip.MustParseAddr(addr6)}})
}

// Two hosts, each with a guard of its own: between them, and out into the world.
func TestOnTheOverlay(t *testing.T) {
	t.Parallel()
	netnstest.RequireTool(t, "iptables")
	rootA, rootB := netnstest.New(t), netnstest.New(t)
	netnstest.Connect(rootA, "eth0", "192.0.2.1/24", rootB, "eth0", "192.0.2.2/24")
	one := newMachine(t, rootA, "192.0.2.1", "10.77.1.0/24", "fd00:77:1::/64")
	two := newMachine(t, rootB, "192.0.2.2", "10.77.2.0/24", "fd00:77:2::/64")
	one.introduce(two)
	two.introduce(one)
	a, b := one.container("10.77.1.5", "fd00:77:1::5"), two.container("10.77.2.5", "fd00:77:2::5")

	s := b.socket(unix.AF_INET6, tcp)
	expect(t, "bind", s.do(Call{Name: "bind", FD: s.fd, Addr: "[::]:80"}).Err, 0)
	s.must(Call{Name: "listen", FD: s.fd})
	expect(t, "by IPv4", dial(t, a, s, "10.77.2.5:80").from, "::ffff:10.77.1.5")
	u := b.bound(udp, "[::]:53")
	if unmet(t, a, "[fd00:77:2::5]:80") {
		unanswered(t, a.socket(unix.AF_INET6, udp), "[fd00:77:2::5]:53")
	} else {
		expect(t, "by IPv6", dial(t, a, s, "[fd00:77:2::5]:80").from, "fd00:77:1::5")
		seen, back := exchange(t, "datagram", a.socket(unix.AF_INET6, udp), u, "[fd00:77:2::5]:53")
		expect(t, "the client", ipOf(t, seen), "fd00:77:1::5")
		expect(t, "the server", back, "[fd00:77:2::5]:53")
	}
	for family, to := range map[int]string{unix.AF_INET: "10.77.2.5", unix.AF_INET6: "fd00:77:2::5"} {
		echoed(t, a, family, to)
		large := pinger(a, family) // more than a packet holds: each piece has the source
		if !devicesSince(t) {
			expect(t, "connect to "+to, large.connect(join(to, 0)), 0)
		}
		expect(t, "large ping", large.send(map[bool]string{true: join(to, 0)}[devicesSince(t)], echoRequest(family)+strings.Repeat("x", 4000)), 0)
		_, who := large.received("large ping")
		expect(t, "who answers a large ping", ipOf(t, who), to)
	}
	neighbour := one.container("10.77.1.6", "fd00:77:1::6")
	for family, c := range map[int]struct{ to, neighbours, others, any string }{
		unix.AF_INET:  {"10.77.2.5:54", "10.77.1.6", "10.77.2.5", "10.77.1.99"},
		unix.AF_INET6: {"[fd00:77:2::5]:54", "fd00:77:1::6", "fd00:77:2::5", "fd00:77:1::99"},
	} {
		server := b.bound(udp, c.to)
		for _, forged := range []string{c.neighbours, c.others, c.any} {
			if _, err := a.at(udp, join(forged, 0)); err == 0 {
				t.Errorf("bound to %s", forged)
			}
			s := a.socket(family, udp)
			if err := s.do(Call{Name: "send", FD: s.fd, Addr: c.to, Source: forged, Text: "forged"}).Err; err == 0 {
				t.Errorf("sent from %s", forged)
			}
		}
		expect(t, "send", neighbour.socket(family, udp).send(c.to, "true"), 0)
		text, from := server.received("after the forged ones")
		expect(t, "what arrives on the other host", text+" from "+ipOf(t, from), "true from "+c.neighbours)
	}
	one.outside(t, a)
}

// outside gives the network an uplink and uses it.
func (m *machine) outside(t *testing.T, a *box) {
	t.Helper()
	internet := netnstest.New(t)
	netnstest.Connect(m.root, "eth1", "198.51.100.1/24", internet, "eth0", "198.51.100.9/24")
	up, err := topology.NewUplink(networkID(1), 3, 1450)
	if err != nil {
		t.Fatal(err)
	}
	m.root.Run("sysctl", "-q", "-w", "net.ipv4.ip_forward=1")
	if _, err := m.plane.ApplyUplink(t.Context(), up); err != nil {
		t.Fatal(err)
	}
	server := m.start(m.top, internet) // nobody admitted it, in nobody's namespace
	echo := server.bound(udp, "198.51.100.9:53")
	m.protect()
	for _, connected := range []bool{false, true} {
		client, to := a.socket(unix.AF_INET, udp), "198.51.100.9:53"
		if connected {
			expect(t, "connect", client.connect(to), 0)
			to = ""
		}
		seen, back := exchange(t, fmt.Sprint("out, connected ", connected), client, echo, to)
		expect(t, "the sender", ipOf(t, seen), "198.51.100.1")
		expect(t, "who answers", back, "198.51.100.9:53")
	}
	d := dial(t, a, server.listening("198.51.100.9:80"), "198.51.100.9:80")
	expect(t, "the client", d.from, "198.51.100.1")
	expect(t, "the client to itself", ipOf(t, d.client.name()), "10.77.1.5")
	from, errno := pinger(a, unix.AF_INET).echo("198.51.100.9:0")
	expect(t, "ping", fmt.Sprint(from, errno), fmt.Sprint("198.51.100.9", unix.Errno(0)))
}
