package overlay_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/internal/netnstest"
	"github.com/particle-net/particle/overlay"
	"github.com/particle-net/particle/topology"
)

const outside = "203.0.113.80" // a server beyond the host's router

// routed is a machine with a router behind which everything else is. The router
// knows the way back to the machine's own address alone.
func routed(t *testing.T) (m *machine, internet *netnstest.Namespace) {
	t.Helper()
	netnstest.RequireTool(t, "nft")
	netnstest.RequireTool(t, "iptables")
	m = newMachine(t, "")
	internet = netnstest.New(t)
	netnstest.Connect(m.Namespace, "eth0", "192.0.2.1/24", internet, "eth0", "192.0.2.2/24")
	internet.Run("ip", "address", "add", outside+"/32", "dev", "lo")
	m.Run("ip", "route", "add", "default", "via", "192.0.2.2")
	// The strictest and the laxest of what distributions set are met below by
	// rules of ours alone.
	m.Run("sh", "-c", "echo 0 > /proc/sys/net/ipv4/conf/all/rp_filter; echo 0 > /proc/sys/net/ipv4/conf/default/rp_filter")
	return m, internet
}

// tenantWithUplink makes network n, local to the host, with the same subnet as
// all others.
func (m *machine) tenantWithUplink(n int) *netnstest.Namespace {
	m.t.Helper()
	m.apply(segment(n, 0, "", "10.9.0.0/24"), true)
	m.applyUplink(n, true)
	return m.tenant(network(n))
}

func uplink(t testing.TB, n int) topology.Uplink {
	t.Helper()
	up, err := topology.NewUplink(network(n), n, 1500)
	if err != nil {
		t.Fatal(err)
	}
	return up
}

func (m *machine) applyUplink(n int, wantChange bool) {
	m.t.Helper()
	changed, err := m.ApplyUplink(m.t.Context(), uplink(m.t, n))
	if err != nil {
		m.t.Fatal(err)
	}
	if changed != wantChange {
		m.t.Fatalf("ApplyUplink(%d) changed = %v, want %v", n, changed, wantChange)
	}
}

// socket is a UDP socket in a namespace that ends with the test.
type socket struct {
	net.PacketConn
	t *testing.T
}

func bindUDP(t *testing.T, ns *netnstest.Namespace, addr string) socket {
	t.Helper()
	var conn net.PacketConn
	var err error
	ns.Do(func() { conn, err = net.ListenPacket("udp4", addr) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return socket{conn, t}
}

func (s socket) send(to, text string) {
	s.t.Helper()
	if _, err := s.WriteTo([]byte(text), net.UDPAddrFromAddrPort(netip.MustParseAddrPort(to))); err != nil {
		s.t.Logf("send %q to %s: %v", text, to, err) // refused right away is as good as dropped
	}
}

// next waits for a datagram.
func (s socket) next() (text, source string) {
	s.t.Helper()
	_ = s.SetReadDeadline(time.Now().Add(patience))
	buffer := make([]byte, 512)
	n, addr, err := s.ReadFrom(buffer)
	if err != nil {
		s.t.Fatal("waiting for a datagram: ", err)
	}
	return string(buffer[:n]), addr.String()
}

// want fails the test unless the next datagram is text. Sent after one that must
// not arrive, it proves that one lost, without waiting for nothing.
func (s socket) want(text string) (source string) {
	s.t.Helper()
	got, source := s.next()
	if got != text {
		s.t.Errorf("got %q from %s, want %q", got, source, text)
		_, source = s.next()
	}
	return source
}

// wantNothing fails the test if a datagram is there.
func (s socket) wantNothing() {
	s.t.Helper()
	raw, err := s.PacketConn.(*net.UDPConn).SyscallConn()
	if err != nil {
		s.t.Fatal(err)
	}
	err = raw.Control(func(fd uintptr) {
		buffer := make([]byte, 512)
		n, _, err := unix.Recvfrom(int(fd), buffer, unix.MSG_DONTWAIT)
		if !errors.Is(err, unix.EAGAIN) {
			s.t.Errorf("got %q, %v, want nothing", buffer[:max(n, 0)], err)
		}
	})
	if err != nil {
		s.t.Error(err)
	}
}

func TestUplinkLetsTenantsOut(t *testing.T) {
	t.Parallel()
	m, internet := routed(t)
	server := listenTCP(t, internet, outside+":80")
	serve(t, server, "internet")
	host := listenTCP(t, m.Namespace, "192.0.2.1:8080")
	serve(t, host, "host")
	for n := 1; n <= 2; n++ {
		ns := m.tenantWithUplink(n)
		// The same address and port in both, bound as the address guard does.
		got, err := ask(ns, "10.9.0.5", outside+":80")
		if want := "internet sees 192.0.2.1"; err != nil || got != want {
			t.Errorf("tenant %d got %q, %v; want %q", n, got, err, want)
		}
		got, err = ask(ns, "10.9.0.5", "192.0.2.1:8080")
		if want := "host sees " + uplink(t, n).Tenant.Addr().String(); err != nil || got != want {
			t.Errorf("tenant %d got %q, %v; want %q", n, got, err, want)
		}
	}
	a, b := bindUDP(t, m.tenant(network(1)), "10.9.0.5:33333"), bindUDP(t, m.tenant(network(2)), "10.9.0.5:33333")
	echo := bindUDP(t, internet, outside+":53")
	a.send(outside+":53", "from a")
	sourceA := echo.want("from a")
	b.send(outside+":53", "from b")
	sourceB := echo.want("from b")
	echo.send(sourceA, "to a")
	echo.send(sourceB, "to b")
	a.want("to a")
	b.want("to b")
}

func listenTCP(t *testing.T, ns *netnstest.Namespace, addr string) net.Listener {
	t.Helper()
	var l net.Listener
	var err error
	ns.Do(func() { l, err = net.Listen("tcp", addr) })
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// ownTable takes our table away from a namespace, to see the other one alone.
func ownTable(ns *netnstest.Namespace) { ns.Run("nft", "delete", "table", "inet", "particle") }

func TestNothingComesInUnasked(t *testing.T) {
	t.Parallel()
	m, internet := routed(t)
	ns := m.tenantWithUplink(1)
	inside := "169.254.192.3" // of uplink 1
	server := bindUDP(t, ns, "0.0.0.0:53")
	known, stranger := bindUDP(t, m.Namespace, "192.0.2.1:1000"), bindUDP(t, m.Namespace, "192.0.2.1:1001")
	server.send("192.0.2.1:1000", "hello")
	peer := known.want("hello")
	m.Run("ip", "route", "add", "10.9.0.0/24", "via", inside)
	for _, to := range []string{inside, "10.9.0.5"} {
		stranger.send(to+":53", "from the host, to "+to)
		known.send(peer, "answer")
		server.want("answer")
	}
	// From beyond the host, which forwards: its rules alone must hold.
	ownTable(ns)
	internet.Run("ip", "route", "add", "169.254.192.0/18", "via", "192.0.2.1")
	internet.Run("ip", "route", "add", "10.9.0.0/24", "via", "192.0.2.1")
	distant := bindUDP(t, internet, "192.0.2.2:1001")
	for _, to := range []string{inside, "10.9.0.5"} {
		distant.send(to+":53", "from outside, to "+to)
		known.send(peer, "answer")
		server.want("answer")
	}
}

func TestTenantsDoNotMeet(t *testing.T) {
	t.Parallel()
	m, _ := routed(t)
	a, b := m.tenantWithUplink(1), m.tenantWithUplink(2)
	server := bindUDP(t, b, "0.0.0.0:53")
	known, every := bindUDP(t, m.Namespace, "192.0.2.1:1000"), bindUDP(t, m.Namespace, "0.0.0.0:1001")
	attacker := bindUDP(t, a, "10.9.0.5:1001")
	attempt := func() {
		t.Helper()
		server.send("192.0.2.1:1000", "hello")
		peer := known.want("hello")
		attacker.send("169.254.192.5:53", "to the uplink of b")
		attacker.send("10.9.0.7:53", "to an address that b has too")
		known.send(peer, "answer")
		server.want("answer")
		attacker.send("169.254.192.4:1001", "to the host by the uplink of b")
		attacker.send("192.0.2.1:1001", "to the host")
		every.want("to the host")
	}
	attempt()
	ownTable(b) // the host's rules alone
	attempt()
	m.applyUplink(2, true)
	// The tenant's rules alone.
	m.Run("nft", "flush", "chain", "inet", "particle", "forward")
	attempt()
}

func TestForgedSources(t *testing.T) {
	t.Parallel()
	m, _ := routed(t)
	a := m.tenantWithUplink(1)
	m.tenantWithUplink(2)
	known := bindUDP(t, m.Namespace, "192.0.2.1:1000")
	ownTable(a) // as root in the tenant could: nothing is rewritten there
	honest := bindUDP(t, a, "169.254.192.3:1001")
	for _, forged := range []string{"10.9.0.5", "169.254.192.5", "198.51.100.7"} {
		if forged != "10.9.0.5" { // which AnyIP makes local
			a.Run("ip", "address", "add", forged+"/32", "dev", "lo")
		}
		liar := bindUDP(t, a, forged+":1001")
		liar.send("192.0.2.1:1000", "from "+forged)
		honest.send("192.0.2.1:1000", "honest")
		if source := known.want("honest"); source != "169.254.192.3:1001" {
			t.Errorf("from %s", source)
		}
	}
}

// A host believes any router on its links, unless told otherwise, and takes its
// default route for IPv6 from it.
func TestForgedRouterAdvertisement(t *testing.T) {
	t.Parallel()
	m, _ := routed(t)
	ns := m.tenantWithUplink(1)
	known := bindUDP(t, m.Namespace, "192.0.2.1:1000")
	ns.Run("ip", "address", "add", "fe80::1/64", "dev", "up0", "nodad")
	m.Run("ip", "address", "add", "fe80::2/64", "dev", "pu"+network(1).Short(), "nodad") // as network managers do
	var err error
	ns.Do(func() { err = advertise("up0") })
	if err != nil {
		t.Fatal(err)
	}
	client := bindUDP(t, ns, "10.9.0.5:1000")
	client.send("192.0.2.1:1000", "after it, on the same link")
	known.want("after it, on the same link")
	if route := m.Run("ip", "-6", "route", "show", "default"); route != "" {
		t.Errorf("the host follows a tenant: %s", route)
	}
}

// advertise sends a router advertisement (RFC 4861 section 4.2) to all nodes.
func advertise(name string) error {
	link, err := net.InterfaceByName(name)
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMPV6)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_HOPS, 255); err != nil {
		return err
	}
	const routerAdvertisement, lifetime = 134, 0x0708
	message := []byte{routerAdvertisement, 0, 0, 0, 64, 0, lifetime >> 8, lifetime & 0xff, 0, 0, 0, 0, 0, 0, 0, 0}
	allNodes := netip.MustParseAddr("ff02::1").As16()
	return unix.Sendto(fd, message, 0, &unix.SockaddrInet6{Addr: allNodes, ZoneId: uint32(link.Index)})
}

// A VXLAN device believes any sender that is routed to it, and the host would
// give a tenant's packets its own address.
func TestForgedVXLAN(t *testing.T) {
	t.Parallel()
	m, internet := routed(t)
	ns := m.tenantWithUplink(1)
	attacker := bindUDP(t, ns, "10.9.0.5:1001")
	for address, there := range map[string]*netnstest.Namespace{"192.0.2.1": m.Namespace, outside: internet} {
		tunnel, other := bindUDP(t, there, address+":4789"), bindUDP(t, there, address+":4790")
		attacker.send(address+":4789", "forged")
		attacker.send(address+":4790", "harmless")
		other.want("harmless")
		tunnel.wantNothing()
	}
}

func TestTenantIsNoRouter(t *testing.T) {
	t.Parallel()
	netnstest.RequireTool(t, "bridge")
	hosts := peers(t, "198.51.100.1", "198.51.100.2", 24)
	for i, m := range hosts {
		m.Run("sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
		m.apply(segment(1, 42, fmt.Sprintf("198.51.100.%d", i+1), fmt.Sprintf("10.9.%d.0/24", i+1)), true)
		m.introduce(1, fmt.Sprintf("10.9.%d.0/24", 2-i), fmt.Sprintf("198.51.100.%d", 2-i))
	}
	hosts[0].applyUplink(1, true)
	exit := hosts[0].tenant(network(1))
	exit.Run("sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
	ownTable(hosts[0].Namespace) // the tenant's rules alone
	hosts[0].Run("sh", "-c", "for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 0 > $f; done")
	hosts[1].tenant(network(1)).Run("ip", "route", "add", "198.51.100.1/32", "via", "169.254.1.1", "dev", "vx0", "onlink")
	server := bindUDP(t, hosts[0].Namespace, "198.51.100.1:53")
	far, near := bindUDP(t, hosts[1].tenant(network(1)), "10.9.2.7:1000"), bindUDP(t, exit, "10.9.1.7:1000")
	local := bindUDP(t, exit, "10.9.1.8:1000")
	far.send("198.51.100.1:53", "through a tenant on another host")
	far.send("10.9.1.8:1000", "within the tenant") // the same way, after it
	local.want("within the tenant")
	near.send("198.51.100.1:53", "direct")
	server.want("direct")
}

func TestOverlayAndLoopbackAreNotTracked(t *testing.T) {
	t.Parallel()
	netnstest.RequireTool(t, "bridge")
	hosts := peers(t, "198.51.100.1", "198.51.100.2", 24)
	for i, m := range hosts {
		m.apply(segment(1, 42, fmt.Sprintf("198.51.100.%d", i+1), fmt.Sprintf("10.9.%d.0/24", i+1)), true)
		m.applyUplink(1, true)
		m.introduce(1, fmt.Sprintf("10.9.%d.0/24", 2-i), fmt.Sprintf("198.51.100.%d", 2-i))
	}
	server, err := hosts[1].Listen(t.Context(), network(1), "tcp", "10.9.2.7:80")
	if err != nil {
		t.Fatal(err)
	}
	serve(t, server, "there")
	for i, m := range hosts { // from afar, and within the host
		if _, err := ask(m.tenant(network(1)), fmt.Sprintf("10.9.%d.9", i+1), "10.9.2.7:80"); err != nil {
			t.Fatal(err)
		}
	}
	for i, m := range hosts {
		if n := sysctl(m.tenant(network(1)), "net/netfilter/nf_conntrack_count"); n != "0" {
			t.Errorf("host %d tracks %s connections, want none", i, n)
		}
	}
	out := bindUDP(t, hosts[0].tenant(network(1)), "10.9.1.9:1000")
	out.send("198.51.100.1:9", "tracked, for its answer must come back")
	if n := sysctl(hosts[0].tenant(network(1)), "net/netfilter/nf_conntrack_count"); n != "1" {
		t.Errorf("the tenant tracks %s connections, want the one that leaves by its uplink", n)
	}
}

// dockerFirewall is what dockerd does to the host's iptables.
func dockerFirewall(m *machine) {
	m.Run("iptables", "-P", "FORWARD", "DROP")
	m.Run("iptables", "-N", "DOCKER-USER")
	m.Run("iptables", "-A", "DOCKER-USER", "-j", "RETURN")
	m.Run("iptables", "-I", "FORWARD", "-j", "DOCKER-USER")
}

func TestForwardPolicyOfDocker(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		setup func(*machine)
		root  string
		chain string
	}{
		"with DOCKER-USER":    {dockerFirewall, "", "DOCKER-USER"},
		"policy alone":        {func(m *machine) { m.Run("iptables", "-P", "FORWARD", "DROP") }, "", "FORWARD"},
		"in the host's root":  {dockerFirewall, "/proc/self/root", "DOCKER-USER"},
		"no iptables to find": {func(*machine) {}, "/proc/sys", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m, internet := routed(t)
			m.opts.HostRoot = c.root
			m.restart()
			c.setup(m)
			before := m.Run("iptables", "-S")
			serve(t, listenTCP(t, internet, outside+":80"), "internet")
			ns := m.tenantWithUplink(1)
			if got, err := ask(ns, "10.9.0.5", outside+":80"); err != nil {
				t.Errorf("got %q, %v\n%s", got, err, m.Run("iptables", "-S"))
			}
			m.applyUplink(1, false)
			if n := strings.Count(m.Run("iptables", "-S"), "-A "+c.chain+" -i pu+"); c.chain != "" && n != 1 {
				t.Errorf("%d accept rules in %s, want 1", n, c.chain)
			}
			if c.chain != "" { // as firewalld does when it is reloaded
				m.Run("iptables", "-D", c.chain, "1")
				m.applyUplink(1, true)
			}
			if err := m.RemoveHostRules(t.Context()); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(before, m.Run("iptables", "-S")); diff != "" {
				t.Errorf("iptables after removal (-want +got):\n%s", diff)
			}
		})
	}
}

func TestBridgesOfDockerAreKeptApart(t *testing.T) {
	t.Parallel()
	for bridge, reachable := range map[string]bool{
		"docker0": false, "docker_gwbridge": false, "br-0123456789ab": false, "br-lan": true,
	} {
		t.Run(bridge, func(t *testing.T) {
			t.Parallel()
			m, _ := routed(t)
			dockerFirewall(m)
			container := netnstest.New(t)
			netnstest.Connect(m.Namespace, "veth1", "", container, "eth0", "172.17.0.2/16")
			m.Run("ip", "link", "add", bridge, "type", "bridge")
			m.Run("ip", "link", "set", "veth1", "master", bridge)
			m.Run("ip", "address", "add", "172.17.0.1/16", "dev", bridge)
			m.Run("ip", "link", "set", bridge, "up")
			container.Run("ip", "route", "add", "default", "via", "172.17.0.1")
			m.Run("iptables", "-t", "nat", "-A", "PREROUTING", "-d", "192.0.2.1", "-p", "udp", "--dport", "5353",
				"-j", "DNAT", "--to-destination", "172.17.0.2:53")
			client := bindUDP(t, m.tenantWithUplink(1), "10.9.0.5:1000")
			server := bindUDP(t, container, "172.17.0.2:53")
			client.send("172.17.0.2:53", "direct")
			client.send("192.0.2.1:5353", "published")
			if reachable {
				server.want("direct")
			}
			server.send(server.want("published"), "answer")
			client.want("answer")
		})
	}
}

// picture is everything that belongs to an uplink, with the handles of rules,
// so that rules made anew show.
func (m *machine) picture(n int) string {
	m.t.Helper()
	var b strings.Builder
	for _, ns := range []*netnstest.Namespace{m.Namespace, m.tenant(network(n))} {
		b.WriteString(ns.Run("nft", "-a", "list", "tables"))
		b.WriteString(ns.Run("nft", "-s", "list", "table", "inet", "particle"))
	}
	b.WriteString(m.Run("ip", "-br", "address", "show", "type", "veth"))
	b.WriteString(m.Run("ip", "-o", "link", "show", "type", "veth"))
	b.WriteString(m.tenant(network(n)).Run("ip", "route"))
	b.WriteString(dump(m.tenant(network(n))))
	return b.String()
}

func TestUplinkIsRepaired(t *testing.T) {
	t.Parallel()
	m, internet := routed(t)
	serve(t, listenTCP(t, internet, outside+":80"), "internet")
	ns := m.tenantWithUplink(1)
	pu := "pu" + network(1).Short()
	before := m.picture(1)
	m.applyUplink(1, false)
	if diff := cmp.Diff(before, m.picture(1)); diff != "" {
		t.Errorf("the second ApplyUplink changed the kernel (-want +got):\n%s", diff)
	}
	m.restart()
	m.applyUplink(1, false)
	for _, drift := range []struct {
		in   *netnstest.Namespace
		args []string
	}{
		{m.Namespace, []string{"ip", "link", "delete", pu}},
		{m.Namespace, []string{"ip", "link", "set", pu, "down"}},
		{m.Namespace, []string{"sh", "-c", "ip link set " + pu + " down name other; ip link add " + pu + " type veth peer name another"}},
		{m.Namespace, []string{"ip", "link", "set", pu, "mtu", "1400"}},
		{m.Namespace, []string{"ip", "address", "flush", "dev", pu}},
		{m.Namespace, []string{"ip", "address", "add", "169.254.192.40/31", "dev", pu}},
		{m.Namespace, []string{"nft", "flush", "chain", "inet", "particle", "forward"}},
		{m.Namespace, []string{"nft", "delete", "table", "inet", "particle"}},
		{m.Namespace, []string{"nft", "insert", "rule", "inet", "particle", "forward", "accept"}},
		{m.Namespace, []string{"sh", "-c", "echo 0 > /proc/sys/net/ipv4/ip_forward"}},
		{m.Namespace, []string{"sh", "-c", "echo 0 > /proc/sys/net/ipv4/conf/" + pu + "/forwarding"}},
		{ns, []string{"ip", "link", "delete", "up0"}},
		{ns, []string{"sh", "-c", "ip link set up0 down; ip link set up0 name other"}},
		{ns, []string{"ip", "link", "set", "up0", "down"}},
		{ns, []string{"sh", "-c", "nft flush chain inet particle forward; nft delete chain inet particle forward"}},
		{ns, []string{"ip", "route", "delete", "default"}},
		{ns, []string{"ip", "route", "replace", "default", "via", "169.254.192.2", "dev", "up0", "proto", "112", "metric", "7"}},
		{ns, []string{"nft", "flush", "table", "inet", "particle"}},
		{ns, []string{"nft", "delete", "table", "inet", "particle"}},
		{ns, []string{"sh", "-c", "nft delete table inet particle; nft add table inet particle; nft 'add chain inet particle input { type filter hook input priority 10; }'"}},
	} {
		drift.in.Run(drift.args[0], drift.args[1:]...)
		// A second default route with a worse metric is none of our concern.
		m.applyUplink(1, !slices.Contains(drift.args, "metric"))
		m.applyUplink(1, false)
		if got, err := ask(ns, "10.9.0.5", outside+":80"); err != nil {
			t.Errorf("after %v: got %q, %v", drift.args, got, err)
		}
	}
}

func TestRemoveUplink(t *testing.T) {
	t.Parallel()
	m, _ := routed(t)
	ns := m.tenantWithUplink(1)
	clean := dump(ns)
	for range 2 { // gone is success
		if err := m.RemoveUplink(t.Context(), network(1)); err != nil {
			t.Fatal(err)
		}
	}
	if tables := ns.Run("nft", "list", "tables"); tables != "" {
		t.Errorf("left in the tenant namespace: %s", tables)
	}
	if links := linksNamed(m.Namespace, "pu"); len(links) > 0 || strings.Contains(dump(ns), "up0") {
		t.Errorf("left: %v\n%s", links, dump(ns))
	}
	if clean == dump(ns) {
		t.Error("dump does not show uplinks")
	}
	m.applyUplink(1, true)
	if err := m.Remove(t.Context(), network(1)); err != nil {
		t.Fatal(err)
	}
	if links := linksNamed(m.Namespace, "pu"); len(links) > 0 {
		t.Errorf("Remove left %v", links)
	}
	if _, err := m.ApplyUplink(t.Context(), uplink(t, 1)); !errors.Is(err, overlay.ErrNoNetwork) {
		t.Errorf("ApplyUplink of a removed network: %v", err)
	}
	if err := m.RemoveUplink(t.Context(), network(1)); err != nil {
		t.Errorf("RemoveUplink of a removed network: %v", err)
	}
}

func TestCleanupLeavesNothing(t *testing.T) {
	t.Parallel()
	m, _ := routed(t)
	dockerFirewall(m)
	inventory := func() string {
		return m.Run("ip", "-br", "link") + m.Run("ip", "route") + m.Run("iptables", "-S") + m.Run("nft", "list", "tables")
	}
	before := inventory()
	dir := m.opts.NamespaceDir + "/made"
	m.opts.NamespaceDir = dir
	m.restart()
	m.tenantWithUplink(1)
	m.apply(segment(2, 7, "192.0.2.1", "10.9.0.0/24"), true)
	m.Run("ip", "link", "add", "pu0123456789ab", "type", "veth", "peer", "name", "stray") // of a network forgotten
	if err := os.WriteFile(dir+"/"+string(network(3)), nil, 0o644); err != nil {          // of a crash
		t.Fatal(err)
	}
	if before == inventory() {
		t.Fatal("the inventory shows nothing")
	}
	for range 2 {
		var err error
		m.Do(func() { err = overlay.Cleanup(context.WithoutCancel(t.Context()), m.opts) })
		if err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff(before, inventory()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory is still there: %v", err)
	}
	if err := os.Mkdir(dir, 0o755); err != nil { // for the checks at the end
		t.Fatal(err)
	}
}
