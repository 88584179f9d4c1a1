package fabric_test

import (
	"net/netip"
	"runtime"
	"testing"

	"github.com/particle-net/particle/topology"
)

// Containers wait while the networks are listed, every few seconds. That takes no longer
// for a thousand other hosts than for one.
func TestListOfNetworksWithManyPeers(t *testing.T) {
	_, _, f, _ := shared(t, "10.77.0.16/28")
	cost := func(hosts int) uint64 {
		var peers []topology.Peer
		for i := range hosts {
			peers = append(peers, topology.Peer{VTEP: netip.AddrFrom4([4]byte{192, 168, byte(i >> 8), byte(i)}), Prefixes: prefixes("10.77.0.32/28")})
		}
		if err := f.SetPeers(ctx, sharedID, peers); err != nil {
			t.Fatal(err)
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for range 100 {
			if n := len(f.Shared()[0].Peers); n != hosts {
				t.Fatalf("%d peers are told of", n)
			}
		}
		runtime.ReadMemStats(&after)
		return (after.TotalAlloc - before.TotalAlloc) / 100
	}
	if one, many := cost(1), cost(1000); many > 2*one+1000 {
		t.Errorf("to list them takes %d bytes with one peer, and %d with a thousand", one, many)
	}
}
