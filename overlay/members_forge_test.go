package overlay_test

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/internal/netnstest"
)

// behindBridge is a container of Docker's own on the first host, which leaves under the
// host's address.
func behindBridge(t *testing.T, hosts [2]*machine) *netnstest.Namespace {
	t.Helper()
	container := netnstest.New(t)
	netnstest.Connect(hosts[0].Namespace, "docker0", "172.17.0.1/16", container, "eth0", "172.17.0.2/16")
	container.Run("ip", "route", "add", "default", "via", "172.17.0.1")
	hosts[0].Run("sysctl", "-q", "-w", "net.ipv4.ip_forward=1")
	hosts[0].Run("nft", "add table ip nat; add chain ip nat post { type nat hook postrouting priority 100; }; "+
		"add rule ip nat post ip saddr 172.17.0.0/16 oifname eth0 masquerade")
	hosts[1].Run("ip", "route", "add", "172.17.0.0/16", "via", "192.0.2.1")
	return container
}

// notTakenForItsHost fails if a container of the first host gets into a network of the
// second one, or if it could not have done so under its host's address.
func notTakenForItsHost(t *testing.T, hosts [2]*machine, container *netnstest.Namespace) {
	t.Helper()
	server, liar := hosts[1].hearing(t, "10.9.2.7:53"), bindUDP(t, container, "0.0.0.0:0")
	plain := bindUDP(t, hosts[1].Namespace, "192.0.2.2:5000")
	if server.tells(func(text string) {
		liar.send("192.0.2.2:4789", forged("192.0.2.2", "10.9.2.7:53", text))
		liar.send("192.0.2.2:5000", "anything else")
		if from := plain.want("anything else"); !strings.HasPrefix(from, "192.0.2.1:") {
			t.Errorf("the container comes from %s; the test proves nothing", from)
		}
	}) {
		t.Error("a container of another network is taken for its host")
	}
}

// What containers of Docker's other networks send leaves under the host's address.
func TestContainersAreNotTakenForTheirHost(t *testing.T) {
	t.Parallel()
	netnstest.RequireTool(t, "nft")
	hosts := acquainted(t)
	container := behindBridge(t, hosts)
	notTakenForItsHost(t, hosts, container)
}

// "What containers of other networks" send to a host leaves under their own address. This
// one does not know all networks of another: those that are the other's alone, or
// that it does not have yet. It may have none at all.
func TestContainersAreNotTakenForHostWithoutTheNetwork(t *testing.T) {
	t.Parallel()
	netnstest.RequireTool(t, "nft")
	for name, remain := range map[string]func(m *machine){
		"it has another": func(m *machine) { m.apply(shared(segment(2, 77, "192.0.2.1", "10.9.8.0/24")), true) },
		"it has none":    func(*machine) {},
		"it had none since its start": func(m *machine) {
			m.Run("nft", "delete", "table", "inet", "particle-vxlan")
			m.restart()
			m.members("192.0.2.2")
		},
		"somebody has flushed its firewall": func(m *machine) {
			nat := m.Run("nft", "list", "table", "ip", "nat")
			m.Run("nft", "flush", "ruleset")
			m.Run("nft", nat)
			for _, want := range []bool{true, false} {
				if changed, err := m.RepairMembers(t.Context()); err != nil || changed != want {
					t.Errorf("RepairMembers() = %v, %v, want %v", changed, err, want)
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			hosts := acquainted(t)
			container := behindBridge(t, hosts)
			if err := hosts[0].Remove(t.Context(), network(1)); err != nil {
				t.Fatal(err)
			}
			remain(hosts[0])
			notTakenForItsHost(t, hosts, container)
		})
	}
}

// liar is a container behind a bridge of its host that sends what it likes.
type liar struct {
	t  *testing.T
	ns *netnstest.Namespace
	hw net.HardwareAddr
}

// newLiar gives a machine a bridge with a container behind.
func newLiar(t *testing.T, m *machine) liar {
	t.Helper()
	l := liar{t: t, ns: netnstest.New(t)}
	m.Run("ip", "link", "add", "docker0", "type", "bridge")
	netnstest.Connect(m.Namespace, "port", "", l.ns, "eth0", "172.17.0.2/16")
	m.Run("ip", "link", "set", "port", "master", "docker0")
	m.Run("ip", "address", "add", "172.17.0.1/16", "dev", "docker0")
	m.Run("ip", "address", "add", "fd00:17::1/64", "dev", "docker0", "nodad")
	m.Run("ip", "link", "set", "docker0", "up")
	l.ns.Run("ip", "address", "add", "fd00:17::2/64", "dev", "eth0", "nodad")
	l.ns.Run("ip", "route", "add", "default", "via", "172.17.0.1")
	l.ns.Run("ip", "route", "add", "default", "via", "fd00:17::1")
	// Filters of the kernel's own are not to be relied on: IPv6 has none.
	m.Run("sh", "-c", "for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 0 > $f; done")
	m.Run("sysctl", "-q", "-w", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
	l.hw = hardware(t, m.mac("docker0"))
	return l
}

func (l liar) send(from, to netip.AddrPort, text string) {
	l.t.Helper()
	proto := uint16(unix.ETH_P_IP)
	if to.Addr().Is6() {
		proto = unix.ETH_P_IPV6
	}
	frame(l.t, l.ns, "eth0", l.hw, proto, datagram(from, to, text))
}

// A container with raw sockets sends under addresses of hosts, to its own host and by it
// to another.
func TestContainersForgeNoHost(t *testing.T) {
	t.Parallel()
	for version, vteps := range map[string][3]string{
		"IPv4": {"192.0.2.1", "192.0.2.2", "192.0.2.3"},
		"IPv6": {"2001:db8::1", "2001:db8::2", "2001:db8::3"},
	} {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			hosts := [2]*machine{newMachine(t, ""), newMachine(t, "")}
			bits := netip.MustParseAddr(vteps[0]).BitLen() - 8
			whole := func(i int) string { return netip.PrefixFrom(netip.MustParseAddr(vteps[i]), bits).String() }
			netnstest.Connect(hosts[0].Namespace, "eth0", whole(0), hosts[1].Namespace, "eth0", whole(1))
			for i, m := range hosts {
				seg := part([]string{fmt.Sprintf("10.9.%d.0/24", i+2)}, []string{"10.9.0.0/16"}, peer(vteps[1-i], fmt.Sprintf("10.9.%d.0/24", 3-i)))
				seg.VTEP, seg.MTU = netip.MustParseAddr(vteps[i]), 1430
				m.apply(seg, true)
				m.members(vteps[1-i], vteps[2])
			}
			reach(t, hosts[0], vteps[0], vteps[1])
			l := newLiar(t, hosts[0])
			hosts[1].Run("sh", "-c", "for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 0 > $f; done")
			for i, m := range hosts {
				server := m.hearing(t, fmt.Sprintf("10.9.%d.7:53", i+2))
				plain := bindUDP(t, m.Namespace, at(vteps[i], 5000))
				for j, source := range vteps {
					from := netip.AddrPortFrom(netip.MustParseAddr(source), 1000)
					if server.tells(func(text string) {
						l.send(from, netip.AddrPortFrom(netip.MustParseAddr(vteps[i]), 4789), forged(vteps[i], server.at, text))
						honest := netip.MustParseAddr(map[bool]string{true: "172.17.0.2", false: "fd00:17::2"}[version == "IPv4"])
						l.send(netip.AddrPortFrom(honest, 1000), netip.AddrPortFrom(netip.MustParseAddr(vteps[i]), 5000), "after it")
						plain.want("after it")
					}) {
						t.Errorf("host %d believes what a container of host 0 sends under the address of host %d", i, j)
					}
				}
			}
		})
	}
}

// The underlay may be a bridge, whichever way this host's answers take.
// "Where a host's tunnel address" is not on the bridge, they must go by it.
func TestMembersBehindABridge(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ apart, elsewhere, want bool }{
		"reached by it":                    {false, false, true},
		"reached by another link":          {false, true, true},
		"the address is not on the bridge": {true, false, true},
		"nor are they reached by it":       {true, true, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m, there := newMachine(t, ""), netnstest.New(t)
			m.Run("ip", "link", "add", "br0", "type", "bridge")
			netnstest.Connect(m.Namespace, "eth0", "", there, "eth0", "192.0.2.1/24")
			m.Run("ip", "link", "set", "eth0", "master", "br0")
			m.Run("ip", "address", "add", "192.0.2.2/24", "dev", "br0")
			m.Run("ip", "link", "set", "br0", "up")
			own := "192.0.2.2"
			if c.apart {
				own = "203.0.113.2"
				m.Run("ip", "address", "add", own, "dev", "lo")
				there.Run("ip", "route", "add", own, "via", "192.0.2.2")
			}
			seg := part([]string{"10.9.2.0/24"}, []string{"10.9.0.0/16"}, peer("192.0.2.1", "10.9.1.0/24"))
			seg.VTEP = netip.MustParseAddr(own)
			m.apply(seg, true)
			m.members("192.0.2.1")
			reach(t, m, "192.0.2.2", "192.0.2.1")
			if c.elsewhere {
				netnstest.Connect(m.Namespace, "eth1", "198.51.100.2/24", netnstest.New(t), "eth0", "198.51.100.1/24")
				m.Run("ip", "route", "add", "192.0.2.1", "via", "198.51.100.1")
				m.Run("sh", "-c", "for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 0 > $f; done")
			}
			server, member := m.hearing(t, "10.9.2.7:53"), bindUDP(t, there, "0.0.0.0:0")
			plain := bindUDP(t, m.Namespace, "192.0.2.2:5000")
			got := server.tells(func(text string) {
				member.send(at(own, 4789), forged(own, server.at, text))
				member.send("192.0.2.2:5000", "after it")
				plain.want("after it")
			})
			if got != c.want {
				t.Errorf("a member behind the bridge is heard: %v, want %v", got, c.want)
			}
		})
	}
}
