package overlay_test

import (
	"fmt"
	"net"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/internal/netnstest"
)

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
