package overlay_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/internal/netnstest"
	"github.com/particle-net/particle/topology"
)

// The firewall tells what is encrypted by the link's name: here it is that of a
// plain one, so that any kernel shows what the rules are good for.

// tunnelled are two machines on a link of the name of WireGuard's at both ends,
// with their tunnel addresses, and a part of network 1 each.
func tunnelled(t *testing.T) (hosts [2]*machine, at [2]netip.Addr) {
	t.Helper()
	hosts = [2]*machine{newMachine(t, ""), newMachine(t, "")}
	for i := range at {
		at[i] = wireGuard(t, i+1).Address
	}
	whole := func(a netip.Addr) string { return netip.PrefixFrom(a, topology.WireGuardRange.Bits()).String() }
	netnstest.Connect(hosts[0].Namespace, "particle-wg", whole(at[0]), hosts[1].Namespace, "particle-wg", whole(at[1]))
	blocks := [2]string{"10.9.1.0/24", "10.9.2.0/24"}
	for i, m := range hosts {
		seg := part(blocks[i:i+1], []string{"10.9.0.0/16"}, peer(at[1-i].String(), blocks[1-i]))
		seg.VTEP, seg.MTU = at[i], 1430
		m.apply(seg, true)
		m.members(at[1-i].String())
	}
	for i, m := range hosts {
		m.neighbour(at[1-i], hosts[1-i].mac("particle-wg"), "particle-wg")
	}
	return hosts, at
}

// mac is a link's Ethernet address.
func (m *machine) mac(link string) string {
	m.t.Helper()
	fields := strings.Fields(m.Run("ip", "-o", "link", "show", link))
	return fields[slices.Index(fields, "link/ether")+1]
}

// neighbour is known for good: WireGuard asks for none.
func (m *machine) neighbour(addr netip.Addr, mac, link string) {
	m.t.Helper()
	m.Run("ip", "-6", "neighbour", "replace", addr.String(), "lladdr", mac, "dev", link)
}

// rename gives a machine's end of the tunnel another name: what passes is in plain
// from then on.
func (m *machine) rename(own, other netip.Addr, mac string) {
	m.t.Helper()
	m.Run("ip", "link", "set", "particle-wg", "down")
	m.Run("ip", "link", "set", "particle-wg", "name", "eth0")
	m.Run("ip", "link", "set", "eth0", "up")
	m.Run("ip", "address", "replace", netip.PrefixFrom(own, 48).String(), "dev", "eth0", "nodad")
	m.neighbour(other, mac, "eth0")
}

func TestTunnelAddressesInPlainAreNotHeard(t *testing.T) {
	t.Parallel()
	hosts, at := tunnelled(t)
	server, client := hosts[1].hearing(t, "10.9.2.7:53"), bindUDP(t, hosts[0].tenant(network(1)), "10.9.1.7:0")
	say := func(text string) { client.send(server.at, text) }
	if !server.tells(say) {
		t.Fatal("by the encrypted link nothing is heard; the test proves nothing")
	}
	hosts[1].rename(at[1], at[0], hosts[0].mac("particle-wg"))
	wire := listenAll(t, hosts[1].Namespace)
	if server.tells(func(text string) { say(text); wire.await(text) }) {
		t.Error("a tunnel address is believed in plain")
	}
}

// Others on the underlay send to a tunnel address in plain, in pieces that do not tell
// what they are of.
func TestPiecesInPlainAreNotHeard(t *testing.T) {
	t.Parallel()
	hosts, at := tunnelled(t)
	there, host := netnstest.New(t), hosts[1]
	netnstest.Connect(host.Namespace, "eth0", "198.51.100.1/24", there, "eth0", "198.51.100.2/24")
	server, hw := host.hearing(t, "10.9.2.7:53"), hardware(t, host.mac("eth0"))
	plain := bindUDP(t, host.Namespace, "198.51.100.1:5000")
	known := bindUDP(t, there, "198.51.100.2:0")
	for _, source := range []netip.Addr{at[0], netip.MustParseAddr("2001:db8::66")} {
		from, to := netip.AddrPortFrom(source, 1000), netip.AddrPortFrom(at[1], 4789)
		for _, first := range []int{8, 16} {
			if server.tells(func(text string) {
				for _, p := range pieces(from, to, forged(at[1].String(), server.at, text), first, false) {
					frame(t, there, "eth0", hw, unix.ETH_P_IPV6, p)
				}
				known.send("198.51.100.1:5000", "after it")
				plain.want("after it")
			}) {
				t.Errorf("what comes in plain from %s, in pieces of %d, is heard", source, first)
			}
		}
	}
}

func TestTunnelAddressesDoNotLeaveInPlain(t *testing.T) {
	t.Parallel()
	hosts, at := tunnelled(t)
	wire := listenAll(t, hosts[1].Namespace)
	client := bindUDP(t, hosts[0].tenant(network(1)), "10.9.1.7:0")
	client.send("10.9.2.7:53", marker+"encrypted")
	wire.await(marker + "encrypted")
	hosts[0].rename(at[0], at[1], hosts[1].mac("particle-wg"))
	client.send("10.9.2.7:53", marker+"plain")
	wire.settle(hosts[0], at[1]) // other packets leave by the link
	if wire.contains(marker + "plain") {
		t.Error("what tenants send leaves in plain")
	}
}

// A host whose record is wrong, or a tunnel address that is not this host's any
// more.
func TestTunnelAddressesMeetNoOthers(t *testing.T) {
	t.Parallel()
	encrypted := [2]string{wireGuard(t, 1).Address.String(), wireGuard(t, 2).Address.String()}
	plain := [2]string{"2001:db8::1", "2001:db8::2"}
	for name, c := range map[string]struct {
		from, to string
		port     uint16 // of the other host
		leaves   bool
	}{
		"from a tunnel address":                 {encrypted[0], plain[1], 0, false},
		"to a tunnel address":                   {plain[0], encrypted[1], 0, false},
		"between others":                        {plain[0], plain[1], 0, true},
		"to a tunnel address with another port": {plain[0], encrypted[1], 8472, false},
		"between others with another port":      {plain[0], plain[1], 8472, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m, there := newMachine(t, ""), netnstest.New(t)
			netnstest.Connect(m.Namespace, "eth0", plain[0]+"/64", there, "eth0", plain[1]+"/64")
			m.Run("ip", "address", "add", encrypted[0]+"/48", "dev", "eth0", "nodad")
			there.Run("ip", "address", "add", encrypted[1]+"/48", "dev", "eth0", "nodad")
			seg := part([]string{"10.9.1.0/24"}, []string{"10.9.0.0/16"}, peer(c.to, "10.9.2.0/24"))
			seg.VTEP, seg.MTU, seg.Peers[0].Port = netip.MustParseAddr(c.from), 1430, c.port
			if err := m.SetMembers(t.Context(), []netip.AddrPort{netip.AddrPortFrom(seg.Peers[0].VTEP, c.port)}); err != nil {
				t.Fatal(err)
			}
			m.apply(seg, true)
			reach(t, m, plain[0], plain[1])
			reach(t, m, encrypted[0], encrypted[1])
			wire := listenAll(t, there)
			bindUDP(t, m.tenant(network(1)), "10.9.1.7:0").send("10.9.2.7:53", marker)
			wire.settle(m, netip.MustParseAddr(plain[1]))
			if got := wire.contains(marker); got != c.leaves {
				t.Errorf("what tenants send from %s to %s leaves in plain: %v, want %v", c.from, c.to, got, c.leaves)
			}
		})
	}
}

// Tunnels are for this host's own VXLAN, not for containers behind it, and for
// nothing else that the other host has.
func TestTunnelsCarryVXLANAlone(t *testing.T) {
	t.Parallel()
	netnstest.RequireTool(t, "nft")
	hosts, at := tunnelled(t)
	container := netnstest.New(t)
	netnstest.Connect(hosts[0].Namespace, "docker0", "fd00:17::1/64", container, "eth0", "fd00:17::2/64")
	container.Run("ip", "route", "add", "default", "via", "fd00:17::1")
	hosts[0].Run("sysctl", "-q", "-w", "net.ipv6.conf.all.forwarding=1")
	hosts[0].Run("nft", "add table ip6 nat; add chain ip6 nat post { type nat hook postrouting priority 100; }; "+
		"add rule ip6 nat post ip6 saddr fd00:17::/64 masquerade")
	wire := listenAll(t, hosts[1].Namespace)
	liar, neighbour := bindUDP(t, container, "[::]:0"), bindUDP(t, hosts[0].Namespace, "[::]:0")
	service := fmt.Sprintf("[%s]:5000", at[1])
	liar.send(service, marker+"from a container")
	wire.settle(hosts[0], at[1])
	if wire.contains(marker) {
		t.Error("what a container sends to a tunnel address is forwarded")
	}
	server := bindUDP(t, hosts[1].Namespace, service)
	neighbour.send(service, marker+"from the host")
	wire.await(marker + "from the host")
	bindUDP(t, hosts[1].Namespace, "[::]:0").send(service, "known")
	server.want("known")
	behind := netnstest.New(t)
	netnstest.Connect(hosts[1].Namespace, "docker0", "fd00:18::1/64", behind, "eth0", "fd00:18::2/64")
	hosts[1].Run("sysctl", "-q", "-w", "net.ipv6.conf.all.forwarding=1")
	hosts[0].Run("ip", "route", "add", "fd00:18::/64", "via", at[1].String(), "dev", "particle-wg")
	inner := bindUDP(t, behind, "[fd00:18::2]:5000")
	neighbour.send("[fd00:18::2]:5000", marker+"from afar")
	wire.await(marker + "from afar")
	bindUDP(t, hosts[1].Namespace, "[::]:0").send("[fd00:18::2]:5000", "known")
	inner.want("known")
	// It is the firewall that keeps them out.
	for _, m := range hosts {
		m.Run("nft", "delete", "table", "inet", "particle-vxlan")
	}
	liar.send(service, "forwarded")
	server.want("forwarded")
	neighbour.send("[fd00:18::2]:5000", "forwarded")
	inner.want("forwarded")
}

// A host that has a tunnel address is not one that other machines are reached by
// over IPv6, and the address is not one to tunnel from.
func TestWireGuardIsNoWayToOtherMachines(t *testing.T) {
	t.Parallel()
	m := newMachine(t, "")
	netnstest.Connect(m.Namespace, "particle-wg", netip.PrefixFrom(wireGuard(t, 1).Address, 48).String(), netnstest.New(t), "other", "")
	if u, err := m.Underlay(t.Context(), netip.Addr{}); err != nil || u.VTEP.IsValid() {
		t.Errorf("Underlay() = %+v, %v, want no address", u, err)
	}
	if out := m.tenantWithUplink(1).Run("ip", "-6", "route", "show", "default"); out != "" {
		t.Errorf("containers go out over IPv6, by %s", out)
	}
}
