package overlay_test

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/particle-net/particle/internal/netnstest"
	"github.com/particle-net/particle/overlay"
	"github.com/particle-net/particle/topology"
)

// apart are two machines with a part of network 1 each, that take VXLAN at the
// ports.
func apart(t *testing.T, ports [2]uint16) (hosts [2]*machine, segments [2]topology.Segment) {
	t.Helper()
	for i := range hosts {
		hosts[i] = newMachine(t, "", func(o *overlay.Options) { o.Port = ports[i] })
	}
	netnstest.Connect(hosts[0].Namespace, "eth0", "192.0.2.1/24", hosts[1].Namespace, "eth0", "192.0.2.2/24")
	for i, m := range hosts {
		other := peer(fmt.Sprintf("192.0.2.%d", 2-i), fmt.Sprintf("10.9.%d.0/24", 2-i))
		other.Port = ports[1-i]
		seg := part([]string{fmt.Sprintf("10.9.%d.0/24", i+1)}, []string{"10.9.0.0/16"}, other)
		seg.VTEP, seg.Port = netip.MustParseAddr(fmt.Sprintf("192.0.2.%d", i+1)), ports[i]
		m.apply(seg, true)
		if err := m.SetMembers(t.Context(), []netip.AddrPort{netip.AddrPortFrom(other.VTEP, other.Port)}); err != nil {
			t.Fatal(err)
		}
		segments[i] = seg
	}
	reach(t, hosts[0], "192.0.2.1", "192.0.2.2")
	return hosts, segments
}

// Each host is sent what is for it at its own port, and the filter is in force there.
func TestHostsWithPortsOfTheirOwn(t *testing.T) {
	t.Parallel()
	for _, ports := range [][2]uint16{{8472, 8472}, {4789, 8472}, {8472, 4790}} {
		t.Run(fmt.Sprint(ports), func(t *testing.T) {
			t.Parallel()
			hosts, segments := apart(t, ports)
			for i, m := range hosts {
				want := segments[i]
				if ports[0] == ports[1] {
					want.Peers = []topology.Peer{want.Peers[0]}
					want.Peers[0].Port = 0 // as the kernel has it
				}
				m.observes(want)
			}
			server := hosts[1].hearing(t, "10.9.2.7:53")
			client := bindUDP(t, hosts[0].tenant(network(1)), "10.9.1.7:0")
			say := func(text string) { client.send(server.at, text) }
			if !server.tells(say) {
				t.Fatal("a member is not heard")
			}
			hosts[1].members("192.0.2.9")
			if server.tells(say) {
				t.Error("who is no member is heard")
			}
		})
	}
}

// A host changes its port: the others follow by the difference alone.
func TestHostWhosePortChanges(t *testing.T) {
	t.Parallel()
	m := newMachine(t, "192.0.2.1/24")
	at := func(port uint16) topology.Peer {
		p := peer("192.0.2.2", "10.9.2.0/24")
		p.Port = port
		return p
	}
	seg := part([]string{"10.9.1.0/24"}, []string{"10.9.0.0/16"}, at(0))
	m.apply(seg, true)
	before := at(0)
	for _, port := range []uint16{8472, 4790, 0, 4790} {
		m.change([]topology.Peer{before}, []topology.Peer{at(port)})
		before, seg.Peers = at(port), []topology.Peer{at(port)}
		m.observes(seg)
		m.apply(seg, false)
	}
}

// Whoever's connections leave under this host's address can send to no port at which
// another host takes VXLAN.
func TestNobodySendsToPortsOfOtherHosts(t *testing.T) {
	t.Parallel()
	netnstest.RequireTool(t, "nft")
	hosts, _ := apart(t, [2]uint16{4789, 8472})
	hosts[0].tenantWithUplink(2)
	container := behindBridge(t, hosts)
	server, plain := hosts[1].hearing(t, "10.9.2.7:53"), bindUDP(t, hosts[1].Namespace, "192.0.2.2:5000")
	for name, liar := range map[string]socket{
		"a tenant":                    bindUDP(t, hosts[0].tenant(network(2)), "10.9.0.7:0"),
		"a container behind a bridge": bindUDP(t, container, "0.0.0.0:0"),
	} {
		if server.tells(func(text string) {
			liar.send("192.0.2.2:8472", forged("192.0.2.2", "10.9.2.7:53", text))
			liar.send("192.0.2.2:5000", "anything else")
			plain.want("anything else")
		}) {
			t.Errorf("%s is taken for its host", name)
		}
	}
}
