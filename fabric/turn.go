package fabric

import (
	"context"
	"net/netip"
	"time"

	"github.com/particle-net/particle/topology"
)

// poolTurns lets pools of one subnet come one after the other, so that each new
// network finds exactly one that waits for it. Guarded by Fabric.mu.
type poolTurns struct {
	opening map[netip.Prefix]int // subnets of pools that are being recorded
	signal  chan struct{}        // closed, and replaced, when one has found its network or has gone
}

func newPoolTurns() poolTurns {
	return poolTurns{opening: map[netip.Prefix]int{}, signal: make(chan struct{})}
}

// moved wakes those who wait for their turn. The caller holds mu.
func (t *poolTurns) moved() {
	close(t.signal)
	t.signal = make(chan struct{})
}

// turnLimit is how long after its request a pool keeps others of its subnet
// waiting for its network. Docker needs milliseconds, if it is not killed; a
// network of another driver never comes.
const turnLimit = 2 * time.Second

// awaitTurn waits until no other pool of the subnet waits for its network, or has
// done so for turnLimit. A pool whose network is named needs no turn. The pool
// must be on record when the function that is returned is called.
func (f *Fabric) awaitTurn(ctx context.Context, spec PoolSpec) (done func()) {
	if spec.Shared != "" {
		return func() {}
	}
	limit := time.NewTimer(turnLimit)
	defer limit.Stop()
	for waiting := true; waiting; {
		f.mu.Lock()
		signal := f.turns.signal
		if waiting = f.turnTaken(spec.Subnet); !waiting {
			f.turns.opening[spec.Subnet]++
		}
		f.mu.Unlock()
		if !waiting {
			break
		}
		select {
		case <-signal:
		case <-limit.C:
			f.mu.Lock()
			f.turns.opening[spec.Subnet]++
			f.mu.Unlock()
			waiting = false
		case <-ctx.Done():
			return func() {}
		}
	}
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.turns.opening[spec.Subnet]--; f.turns.opening[spec.Subnet] == 0 {
			delete(f.turns.opening, spec.Subnet)
		}
		f.turns.moved()
	}
}

// turnTaken says whether a pool of the subnet waits for its network. The caller
// holds mu.
func (f *Fabric) turnTaken(subnet netip.Prefix) bool {
	if f.turns.opening[subnet] > 0 {
		return true
	}
	for _, p := range f.pools {
		if p.Subnet == subnet && p.Network == "" && !p.spent && p.Shared == "" && time.Since(p.Created) < turnLimit {
			return true
		}
	}
	return false
}

// alone is the cluster of a host that has none.
type alone struct{}

func (alone) Joined() bool                                            { return false }
func (alone) Share(context.Context, SharedSpec) (Shared, bool, error) { return Shared{}, false, nil }
func (alone) Unshare(topology.SharedID) error                         { return nil }
func (alone) ReleaseAddress(topology.SharedID, netip.Addr)            {}
func (alone) Low(topology.SharedID, netip.Prefix)                     {}
func (alone) Refill(context.Context, topology.SharedID, netip.Prefix) error {
	return ErrAlone
}
func (alone) ClaimAddress(context.Context, topology.SharedID, netip.Addr, string) error {
	return ErrAlone
}
