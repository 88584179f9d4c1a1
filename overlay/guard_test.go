package overlay_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/particle-net/particle/internal/netnstest"
)

func TestNothingComesInUnasked(t *testing.T) {
	eachVersion(t, func(t *testing.T, a addressing) {
		m, internet := routed(t)
		ns := m.tenantWithUplink(1)
		_, inside := a.ends(uplink(t, 1))
		server := bindUDP(t, ns, at(a.any, 53))
		known, stranger := bindUDP(t, m.Namespace, at(a.host, 1000)), bindUDP(t, m.Namespace, at(a.host, 1001))
		server.send(at(a.host, 1000), "hello")
		peer := known.want("hello")
		m.Run("ip", "route", "add", a.pool, "via", inside)
		for _, to := range []string{inside, a.container} {
			stranger.send(at(to, 53), "from the host, to "+to)
			known.send(peer, "answer")
			server.want("answer")
		}
		// From beyond the host, which forwards: its rules alone must hold.
		gate := m.gateway(network(1))
		ownTable(gate)
		inner := server
		server = bindUDP(t, gate, at(a.any, 53))
		server.send(at(a.host, 1000), "hello")
		peer = known.want("hello")
		internet.Run("ip", "route", "add", a.uplinks.String(), "via", a.host)
		internet.Run("ip", "route", "add", a.pool, "via", a.host)
		distant := bindUDP(t, internet, at(a.router, 1001))
		for _, to := range []string{inside, a.container} {
			distant.send(at(to, 53), "from outside, to "+to)
			known.send(peer, "answer")
			server.want("answer")
			inner.wantNothing()
		}
	})
}

// Nothing that listens in a gateway, such as what the kernel may put there, hears
// anybody.
func TestNobodyReachesTheGateway(t *testing.T) {
	eachVersion(t, func(t *testing.T, a addressing) {
		m, _ := routed(t)
		ns := m.tenantWithUplink(1)
		up := uplink(t, 1)
		_, outer := a.ends(up)
		inner, _ := a.ends(up.Inside())
		listener := bindUDP(t, m.gateway(network(1)), at(a.any, 53))
		container, known := bindUDP(t, ns, at(a.container, 1000)), bindUDP(t, m.Namespace, at(a.host, 1000))
		for _, to := range []string{inner, outer} {
			container.send(at(to, 53), "from a container, to "+to)
		}
		known.send(at(outer, 53), "from the host")
		container.send(at(a.host, 1000), "hello") // the same way, after it
		peer := known.want("hello")
		known.send(peer, "answer")
		container.want("answer")
		listener.wantNothing()
	})
}

func TestTenantsDoNotMeet(t *testing.T) {
	eachVersion(t, func(t *testing.T, a addressing) {
		m, _ := routed(t)
		one, two := m.tenantWithUplink(1), m.tenantWithUplink(2)
		hostOfTwo, endOfTwo := a.ends(uplink(t, 2))
		server := bindUDP(t, two, at(a.any, 53))
		known, every := bindUDP(t, m.Namespace, at(a.host, 1000)), bindUDP(t, m.Namespace, at(a.any, 1001))
		attacker := bindUDP(t, one, at(a.container, 1001))
		attempt := func(server socket) {
			t.Helper()
			server.send(at(a.host, 1000), "hello")
			peer := known.want("hello")
			attacker.send(at(endOfTwo, 53), "to the uplink of the other")
			attacker.send(at(a.neighbour, 53), "to an address that the other has too")
			known.send(peer, "answer")
			server.want("answer")
			attacker.send(at(hostOfTwo, 1001), "to the host by the uplink of the other")
			attacker.send(at(a.host, 1001), "to the host")
			every.want("to the host")
		}
		attempt(server)
		gate := m.gateway(network(2))
		ownTable(gate) // the host's rules alone
		attempt(bindUDP(t, gate, at(a.any, 53)))
		m.applyUplink(2, true)
		// The gateway's rules alone.
		m.Run("nft", "flush", "chain", "inet", "particle", "forward")
		attempt(server)
	})
}

func TestForgedSources(t *testing.T) {
	for version, lies := range map[string][]string{
		"IPv4": {"198.51.100.7"},
		"IPv6": {"2001:db8:66::7", "fd00:66::7", "fe80::7%up0"},
	} {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			a := versions()[version]
			m, _ := routed(t)
			m.tenantWithUplink(2)
			_, own := a.ends(uplink(t, 1))
			_, other := a.ends(uplink(t, 2))
			known := bindUDP(t, m.Namespace, at(a.host, 1000))
			m.tenantWithUplink(1)
			ns := m.gateway(network(1))
			ownTable(ns) // the host's rules alone
			honest := bindUDP(t, ns, at(own, 1001))
			// As network managers do, which makes a route that forged sources pass by.
			m.Run("ip", "address", "add", "fe80::2/64", "dev", "pu"+network(1).Short(), "nodad")
			for _, forged := range append(lies, a.container, other) {
				address, _, _ := strings.Cut(forged, "%")
				ns.Run("ip", "address", "add", address, "dev", "up0", "nodad")
				liar := bindUDP(t, ns, at(forged, 1001))
				liar.send(at(a.host, 1000), "from "+forged)
				honest.send(at(a.host, 1000), "honest")
				if source := known.want("honest"); source != at(own, 1001) {
					t.Errorf("from %s", source)
				}
			}
		})
	}
}

// The ends of an uplink know each other, so what one says of itself or of
// others is none of the host's concern.
func TestNoDiscoveryFromTenants(t *testing.T) {
	t.Parallel()
	m, _ := routed(t)
	m.tenantWithUplink(1)
	ns := m.gateway(network(1))
	host, tenant := versions()["IPv6"].ends(uplink(t, 1))
	ownTable(ns)
	ns.Run("ip", "address", "add", "fe80::1/64", "dev", "up0", "nodad")
	const echoRequest = 128
	for _, source := range []string{tenant, "fe80::1"} {
		var heard, said socket6
		var errHeard, errSaid error
		m.Do(func() { heard, errHeard = rawICMP("::", "") })
		ns.Do(func() { said, errSaid = rawICMP(source, "up0") })
		if err := errors.Join(errHeard, errSaid); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { heard.close(); said.close() })
		var honest socket6
		ns.Do(func() { honest, errSaid = rawICMP(tenant, "up0") })
		if errSaid != nil {
			t.Fatal(errSaid)
		}
		t.Cleanup(honest.close)
		for message := byte(133); message <= 137; message++ {
			for _, to := range []string{host, "ff02::1"} {
				if err := said.send(to, message); err != nil {
					t.Fatalf("type %d from %s to %s: %v", message, source, to, err)
				}
			}
			if err := honest.send(host, echoRequest); err != nil {
				t.Fatal(err)
			}
			if got, err := heard.next(); err != nil || got != echoRequest {
				t.Errorf("from %s the host heard type %d, %v; after type %d was sent, want %d", source, got, err, message, echoRequest)
			}
		}
	}
}

// A host believes any router on its links, unless told otherwise, and takes its
// default route for IPv6 from it. Both the rules and the link's settings stand
// against it: each alone is tried, and neither.
func TestForgedRouterAdvertisement(t *testing.T) {
	t.Parallel()
	for name, believed := range map[string]bool{"rules alone": false, "settings alone": false, "neither": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m, _ := routed(t)
			m.tenantWithUplink(1)
			ns := m.gateway(network(1))
			letSpeak(ns)
			pu := "pu" + network(1).Short()
			if name != "settings alone" {
				m.Run("sh", "-c", "echo 2 > /proc/sys/net/ipv6/conf/"+pu+"/accept_ra")
			}
			if name != "rules alone" {
				ownTable(m.Namespace)
			}
			m.Run("ip", "-6", "route", "delete", "default")
			known := bindUDP(t, m.Namespace, "192.0.2.1:1000")
			ns.Run("ip", "address", "add", "fe80::1/64", "dev", "up0", "nodad")
			m.Run("ip", "address", "add", "fe80::2/64", "dev", pu, "nodad") // as network managers do
			var err error
			ns.Do(func() { err = advertise("up0") })
			if err != nil {
				t.Fatal(err)
			}
			client := bindUDP(t, ns, "0.0.0.0:1000")
			client.send("192.0.2.1:1000", "after it, on the same link")
			known.want("after it, on the same link")
			if route := m.Run("ip", "-6", "route", "show", "default"); (route != "") != believed {
				t.Errorf("the host's default route: %q", route)
			}
		})
	}
}

// A VXLAN device believes any sender that is routed to it, and the host would
// give a tenant's packets its own address.
func TestForgedVXLAN(t *testing.T) {
	eachVersion(t, func(t *testing.T, a addressing) {
		m, internet := routed(t)
		ns := m.tenantWithUplink(1)
		attacker := bindUDP(t, ns, at(a.container, 1001))
		for address, there := range map[string]*netnstest.Namespace{a.host: m.Namespace, a.outside: internet} {
			tunnel, other := bindUDP(t, there, at(address, 4789)), bindUDP(t, there, at(address, 4790))
			attacker.send(at(address, 4789), "forged")
			attacker.send(at(address, 4790), "harmless")
			other.want("harmless")
			tunnel.wantNothing()
		}
	})
}

func TestTenantIsNoRouter(t *testing.T) {
	for version, v := range map[string]struct {
		family, block, far, near, local, host, gateway string
	}{
		"IPv4": {"-4", "10.9.%d.0/24", "10.9.2.7", "10.9.1.7", "10.9.1.8", "198.51.100.1", "169.254.1.1"},
		"IPv6": {"-6", "fd00:9:%d::/64", "fd00:9:2::7", "fd00:9:1::7", "fd00:9:1::8", "2001:db8:51::1", "fe80::1"},
	} {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			hosts := peers(t, "198.51.100.1", "198.51.100.2", 24)
			hosts[0].Run("ip", "address", "add", "2001:db8:51::1/64", "dev", "eth0", "nodad")
			for i, m := range hosts {
				m.Run("sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
				vtep := fmt.Sprintf("198.51.100.%d", i+1)
				m.apply(shared(segment(1, 42, vtep, fmt.Sprintf("10.9.%d.0/24", i+1), fmt.Sprintf("fd00:9:%d::/64", i+1))), true)
				m.introduce(1, fmt.Sprintf(v.block, 2-i), fmt.Sprintf("198.51.100.%d", 2-i))
			}
			hosts[0].applyUplink(1, true)
			exit := hosts[0].tenant(network(1))
			exit.Run("sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding")
			ownTable(hosts[0].Namespace) // the tenant's rules alone
			hosts[0].Run("sh", "-c", "for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 0 > $f; done")
			hosts[1].tenant(network(1)).Run("ip", "route", "add", v.host, "via", v.gateway, "dev", "vx0", "onlink")
			server := bindUDP(t, hosts[0].Namespace, at(v.host, 53))
			far, near := bindUDP(t, hosts[1].tenant(network(1)), at(v.far, 1000)), bindUDP(t, exit, at(v.near, 1000))
			local := bindUDP(t, exit, at(v.local, 1000))
			far.send(at(v.host, 53), "through a tenant on another host")
			far.send(at(v.local, 1000), "within the tenant") // the same way, after it
			local.want("within the tenant")
			near.send(at(v.host, 53), "direct")
			server.want("direct")
		})
	}
}

func TestTenantsTrackNothing(t *testing.T) {
	t.Parallel()
	hosts := peers(t, "198.51.100.1", "198.51.100.2", 24)
	for i, m := range hosts {
		m.apply(shared(segment(1, 42, fmt.Sprintf("198.51.100.%d", i+1), fmt.Sprintf("10.9.%d.0/24", i+1))), true)
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
	if n := sysctl(hosts[0].gateway(network(1)), "net/netfilter/nf_conntrack_count"); n != "1" {
		t.Errorf("the gateway tracks %s connections, want the one that leaves", n)
	}
	if n := sysctl(hosts[0].tenant(network(1)), "net/netfilter/nf_conntrack_count"); n != "0" {
		t.Errorf("the tenant tracks %s connections, want none", n)
	}
}
