package overlay_test

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/particle-net/particle/topology"
)

func peer(vtep string, of ...string) topology.Peer {
	p := topology.Peer{VTEP: netip.MustParseAddr(vtep), Prefixes: prefixes(of...)}
	slices.SortFunc(p.Prefixes, netip.Prefix.Compare)
	return p
}

// part is a segment of which this host has some pools, and others the rest.
func part(pools, subnets []string, peers ...topology.Peer) topology.Segment {
	seg := segment(1, 42, "192.0.2.1", pools...)
	seg.Subnets, seg.Peers = prefixes(subnets...), peers
	return seg
}

// change fails the test if ChangePeers does.
func (m *machine) change(before, after []topology.Peer) {
	m.t.Helper()
	if err := m.changePeers(network(1), before, after); err != nil {
		m.t.Fatal(err)
	}
}

// partStates are segments of one network of several hosts.
func partStates() map[string]topology.Segment {
	v4, both := []string{"10.9.0.0/16"}, []string{"10.9.0.0/16", "fd00:9::/32"}
	foreign := peer("192.0.2.2", "10.9.2.0/24")
	foreign.MAC = []byte{2, 0, 0, 0, 0, 9}
	elsewhere := peer("192.0.2.2", "10.9.2.0/24")
	elsewhere.Port = 8472
	own6 := []string{"10.9.1.0/24", "fd00:9:1::/64"}
	return map[string]topology.Segment{
		"alone":            part([]string{"10.9.0.0/16"}, nil),
		"no peers":         part([]string{"10.9.1.0/24"}, v4),
		"one peer":         part([]string{"10.9.1.0/24"}, v4, peer("192.0.2.2", "10.9.2.0/24")),
		"another's block":  part([]string{"10.9.1.0/24"}, v4, peer("192.0.2.3", "10.9.2.0/24")),
		"another MAC":      part([]string{"10.9.1.0/24"}, v4, foreign),
		"another port":     part([]string{"10.9.1.0/24"}, v4, elsewhere),
		"without a prefix": part([]string{"10.9.1.0/24"}, v4, peer("192.0.2.2")),
		"two peers": part([]string{"10.9.1.0/24", "10.9.7.0/24"}, v4,
			peer("192.0.2.2", "10.9.2.0/24", "10.9.4.0/22", "10.9.200.5/32"), peer("192.0.2.3", "10.9.3.0/24")),
		"one has a part of an own block": part([]string{"10.9.1.0/24"}, v4,
			peer("192.0.2.2", "10.9.2.0/24", "10.9.1.5/32"), peer("192.0.2.3", "10.9.1.128/26")),
		"two claim one block": part([]string{"10.9.1.0/24"}, v4, peer("192.0.2.2", "10.9.2.0/24"), peer("192.0.2.3", "10.9.2.0/24")),
		"both families":       part(own6, both, peer("192.0.2.2", "10.9.2.0/24", "fd00:9:2::/64"), peer("192.0.2.3", "10.9.3.0/24")),
		"a part of an own block in both": part(own6, both,
			peer("192.0.2.2", "10.9.2.0/24", "10.9.1.5/32", "fd00:9:2::/64", "fd00:9:1::7/128")),
		"other blocks of both": part([]string{"10.9.8.0/24", "fd00:9:8::/64"}, both, peer("192.0.2.2", "10.9.2.0/24", "fd00:9:2::/64")),
		"IPv6 alone":           part([]string{"fd00:9:1::/64"}, []string{"fd00:9::/32"}, peer("192.0.2.2", "fd00:9:2::/64")),
	}
}

// Whatever was there before, Apply reaches each state and finds it in order then.
func TestApplyReachesEveryStateOfPeers(t *testing.T) {
	t.Parallel()
	m := newMachine(t, "192.0.2.1/24")
	all := partStates()
	for from, before := range all {
		for to, after := range all {
			if from == to {
				continue
			}
			for _, seg := range []topology.Segment{before, after} {
				if _, err := m.Apply(t.Context(), seg); err != nil {
					t.Fatalf("from %q to %q: %v", from, to, err)
				}
				m.observes(seg)
				m.apply(seg, false)
			}
		}
	}
}

// ChangePeers leads to what Apply would have made.
func TestChangePeersIsLikeApply(t *testing.T) {
	t.Parallel()
	m := newMachine(t, "192.0.2.1/24")
	all := partStates()
	for from, before := range all {
		for to, after := range all {
			if !slices.Equal(before.Pools, after.Pools) || !slices.Equal(before.Subnets, after.Subnets) {
				continue
			}
			t.Logf("from %q to %q", from, to)
			if _, err := m.Apply(t.Context(), before); err != nil {
				t.Fatal(err)
			}
			for range 2 { // it may be repeated
				m.change(before.Peers, after.Peers)
				m.observes(after)
			}
			m.apply(after, false)
		}
	}
}
