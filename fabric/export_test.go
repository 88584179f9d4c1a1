package fabric

import (
	"runtime"

	"github.com/particle-net/particle/topology"
)

// AwaitDepartures waits until that many branches of a network wait to go.
func AwaitDepartures(f *Fabric, id topology.NetworkID, n int) {
	for {
		f.departures.mu.Lock()
		batch := f.departures.next[id]
		ready := batch != nil && len(batch.endpoints) == n
		f.departures.mu.Unlock()
		if ready {
			return
		}
		runtime.Gosched()
	}
}
