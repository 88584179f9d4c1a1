package overlay_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/particle-net/particle/internal/netnstest"
	"github.com/particle-net/particle/overlay"
	"github.com/particle-net/particle/topology"
)

// tenantWithUplink4 is tenantWithUplink for a network that has no IPv6.
func (m *machine) tenantWithUplink4(n int) *netnstest.Namespace {
	m.t.Helper()
	m.apply(segment(n, 0, "", "10.9.0.0/24"), true)
	up := uplink(m.t, n)
	up.Host6, up.Tenant6 = topology.Uplink{}.Host6, topology.Uplink{}.Tenant6
	for _, want := range []bool{true, false} {
		if changed, err := m.ApplyUplink(m.t.Context(), up); err != nil || changed != want {
			m.t.Fatalf("ApplyUplink(%d) changed = %v, want %v: %v", n, changed, want, err)
		}
	}
	return m.tenant(network(n))
}

func TestUplinkWithoutIPv6(t *testing.T) {
	t.Parallel()
	m, _ := routed(t)
	ns := m.tenantWithUplink4(1)
	pu := "pu" + network(1).Short()
	if on := sysctl(m.Namespace, "net/ipv6/conf/all/forwarding"); on != "0" {
		t.Error("the host forwards IPv6 for nobody")
	}
	if rules := m.Run("ip6tables", "-S"); strings.Contains(rules, "DROP") || strings.Contains(rules, "pu+") {
		t.Errorf("the host's firewall was changed for nobody:\n%s", rules)
	}
	for end, of := range map[string]*netnstest.Namespace{pu: m.Namespace, "up0": ns, "in0": m.gateway(network(1))} {
		if have := of.Run("ip", "-6", "address", "show", "dev", end); have != "" {
			t.Errorf("%s has %s", end, have)
		}
	}
	if route := ns.Run("ip", "-6", "route", "show", "default"); route != "" {
		t.Errorf("the tenant has a way out for IPv6: %s", route)
	}
	// Nothing that root in the gateway could send reaches the host.
	ns = m.gateway(network(1))
	ownTable(ns)
	six := versions()["IPv6"]
	_, own := six.ends(uplink(t, 1))
	mac := strings.TrimSpace(m.Run("sh", "-c", "ip -o link show "+pu+" | sed 's/.*ether //; s/ .*//'"))
	ns.Run("ip", "address", "add", own, "dev", "up0", "nodad")
	ns.Run("ip", "-6", "route", "add", "default", "dev", "up0")
	ns.Run("ip", "neighbour", "add", six.host, "lladdr", mac, "dev", "up0", "nud", "permanent")
	known, every := bindUDP(t, m.Namespace, "192.0.2.1:1000"), bindUDP(t, m.Namespace, at("::", 1000))
	bindUDP(t, ns, at(own, 1000)).send(at(six.host, 1000), "IPv6")
	bindUDP(t, ns, "169.254.192.3:1000").send("192.0.2.1:1000", "IPv4")
	known.want("IPv4")
	every.wantNothing()
}

// udev leaves a link's address alone only if somebody has set it.
func TestUplinkKnowsItsHardwareAddresses(t *testing.T) {
	t.Parallel()
	m, internet := routed(t)
	ns := m.tenantWithUplink(1)
	pu, up := "pu"+network(1).Short(), uplink(t, 1)
	for want, link := range map[string]string{
		overlay.HardwareAddr(up.Host.Addr()).String():            m.Run("ip", "link", "show", pu),
		overlay.HardwareAddr(up.Tenant.Addr()).String():          m.gateway(network(1)).Run("ip", "link", "show", "up0"),
		overlay.HardwareAddr(up.Inside().Host.Addr()).String():   m.gateway(network(1)).Run("ip", "link", "show", "in0"),
		overlay.HardwareAddr(up.Inside().Tenant.Addr()).String(): ns.Run("ip", "link", "show", "up0"),
	} {
		if !strings.Contains(link, want) {
			t.Errorf("want %s: %s", want, link)
		}
	}
	// An end made by an earlier version keeps what it has.
	six := versions()["IPv6"]
	serve(t, listenTCP(t, internet, at(six.outside, 80)), "internet")
	m.Run("ip", "link", "set", pu, "address", "02:00:00:00:00:01")
	m.gateway(network(1)).Run("ip", "link", "set", "up0", "address", "02:00:00:00:00:02")
	m.applyUplink(1, true)
	m.applyUplink(1, false)
	if got, err := ask(ns, six.container, at(six.outside, 80)); err != nil {
		t.Errorf("got %q, %v", got, err)
	}
}

// "A network has IPv6 to the outside if" the host has it. Hosts without IPv6 get it
// when they have it themselves, and stay as they are until then.
func TestUplinkOnHostWithoutIPv6(t *testing.T) {
	t.Parallel()
	six := versions()["IPv6"]
	for name, off := range map[string]struct{ lose, find []string }{
		"no address": {
			lose: []string{"ip -6 address flush dev eth0 scope global", "ip -6 route flush default"},
		},
		"switched off": {
			lose: []string{"echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6"},
			find: []string{"echo 0 > /proc/sys/net/ipv6/conf/all/disable_ipv6", "echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6"},
		},
		"that of a bridge of containers": {
			lose: []string{"ip -6 address flush dev eth0 scope global", "ip -6 route flush default",
				"ip link add mine type bridge", "ip address add fd00:17::1/64 dev mine nodad", "ip link set mine up"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m, internet := routed(t)
			for _, a := range versions() {
				serve(t, listenTCP(t, internet, at(a.outside, 80)), "internet")
			}
			for _, command := range off.lose {
				m.Run("sh", "-c", command)
			}
			ns := m.tenantWithUplink(1)
			m.applyUplink(1, false)
			if _, err := ask(ns, "10.9.0.5", outside+":80"); err != nil {
				t.Error(err)
			}
			if _, err := ask(ns, six.container, at(six.outside, 80)); err == nil || !strings.Contains(err.Error(), "unreachable") {
				t.Errorf("IPv6 without a way out: %v", err)
			}
			if on := sysctl(m.Namespace, "net/ipv6/conf/all/forwarding"); on != "0" {
				t.Error("the host forwards IPv6 for nobody")
			}
			for _, command := range off.find {
				m.Run("sh", "-c", command)
			}
			m.Run("ip", "address", "add", six.host+"/64", "dev", "eth0", "nodad")
			m.Run("ip", "-6", "route", "add", "default", "via", six.router)
			m.applyUplink(1, true)
			for _, ns := range []*netnstest.Namespace{ns, m.tenantWithUplink(2)} {
				if _, err := ask(ns, six.container, at(six.outside, 80)); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// A host that has lost its IPv6 still has the routes to uplinks made before.
func TestUplinksAreNoWayOutThemselves(t *testing.T) {
	t.Parallel()
	m, _ := routed(t)
	m.tenantWithUplink(1)
	m.Run("ip", "-6", "address", "flush", "dev", "eth0", "scope", "global")
	m.Run("ip", "-6", "route", "flush", "default")
	m.applyUplink(1, false)
	m.tenantWithUplink(2)
	if have := m.Run("ip", "-6", "address", "show", "dev", "pu"+network(2).Short()); have != "" {
		t.Errorf("the uplink has %s", have)
	}
}

// await repeats a look until it shows what is wanted.
func await(t *testing.T, what string, look func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); !look(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatal("still not: ", what)
		}
	}
}

// A host that has its IPv6 from router advertisements keeps it when it becomes
// a router itself for the first uplink.
func TestRouterAdvertisementsAreKept(t *testing.T) {
	t.Parallel()
	m, internet := routed(t)
	m.Run("ip", "-6", "route", "delete", "default")
	m.Run("ip", "link", "add", "deaf", "type", "bridge")
	m.Run("sh", "-c", "echo 0 > /proc/sys/net/ipv6/conf/deaf/accept_ra")
	internet.Run("ip", "address", "add", "fe80::53/64", "dev", "eth0", "nodad")
	internet.Run("sh", "-c", "echo 1 > /proc/sys/net/ipv6/conf/all/forwarding") // as its answers to solicitations say
	learned := func() bool {
		return strings.Contains(m.Run("ip", "-6", "route", "show", "default"), "via fe80::53 dev eth0 proto ra")
	}
	hear := func() {
		t.Helper()
		var err error
		internet.Do(func() { err = advertise("eth0") })
		if err != nil {
			t.Fatal(err)
		}
		await(t, "a default route from the router", learned)
	}
	hear()
	ns := m.tenantWithUplink(1)
	if !learned() {
		t.Error("the default route is lost")
	}
	for link, want := range map[string]string{"eth0": "2", "deaf": "0", "default": "1", "lo": "1", "pu" + network(1).Short(): "0"} {
		if have := sysctl(m.Namespace, "net/ipv6/conf/"+link+"/accept_ra"); have != want {
			t.Errorf("accept_ra of %s is %s, want %s", link, have, want)
		}
	}
	m.Run("ip", "-6", "route", "delete", "default")
	hear()
	six := versions()["IPv6"]
	serve(t, listenTCP(t, internet, at(six.outside, 80)), "internet")
	if got, err := ask(ns, six.container, at(six.outside, 80)); err != nil {
		t.Errorf("got %q, %v", got, err)
	}
}

// "For its first network with IPv6 a host becomes an IPv6 router". What it forwards
// for uplinks it must not forward for others, unless
// somebody wants it to.
func TestHostBecomesNoOpenRouter(t *testing.T) {
	t.Parallel()
	for _, before := range []string{"0", "1"} {
		t.Run("forwarding="+before, func(t *testing.T) {
			t.Parallel()
			m, internet := routed(t)
			m.Run("sh", "-c", fmt.Sprintf("echo %s > /proc/sys/net/ipv6/conf/all/forwarding", before))
			neighbour := netnstest.New(t)
			netnstest.Connect(m.Namespace, "eth1", "2001:db8:3::1/64", neighbour, "eth0", "2001:db8:3::2/64")
			neighbour.Run("ip", "route", "add", "default", "via", "2001:db8:3::1")
			accepted := sysctl(m.Namespace, "net/ipv6/conf/eth0/accept_ra")
			ns := m.tenantWithUplink(1)
			six := versions()["IPv6"]
			server := bindUDP(t, internet, at(six.outside, 53))
			bindUDP(t, neighbour, "[2001:db8:3::2]:1000").send(at(six.outside, 53), "from a neighbour")
			if before == "1" {
				server.want("from a neighbour")
			}
			bindUDP(t, ns, at(six.container, 1000)).send(at(six.outside, 53), "from a tenant")
			server.want("from a tenant")
			if have := sysctl(m.Namespace, "net/ipv6/conf/eth0/accept_ra"); (have == accepted) != (before == "1") {
				t.Errorf("accept_ra was %s and is %s", accepted, have)
			}
		})
	}
}
