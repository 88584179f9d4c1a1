package fabric

import (
	"context"
	"net/netip"
	"time"

	"github.com/particle-net/particle/topology"
)

// refillLimit bounds the wait for the next block. Whoever starts many containers at once
// may well have given this host and the store's more to do than they can: a start that is
// late is better than one that fails. A store that is known not to answer is not waited for.
const refillLimit = 10 * time.Second

// refill is one attempt to get another block for a pool. All who found the pool
// empty wait for the same one.
type refill struct {
	done chan struct{} // closed at its end
	err  error         // why there is no block; read after done
}

// refill joins the attempt under way, or begins one. It goes on without the
// caller, whom Docker may give up. The caller holds mu, under which it has found
// the pool empty: a block that comes after that is not missed.
func (f *Fabric) refill(ctx context.Context, n *network, p *addressPool) *refill {
	if p.refill != nil {
		return p.refill
	}
	r := &refill{done: make(chan struct{})}
	p.refill = r
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), refillLimit)
	go func() {
		defer cancel()
		r.err = f.o.Cluster.Refill(ctx, n.Shared, p.Subnet)
		f.mu.Lock()
		p.refill = nil
		f.mu.Unlock()
		close(r.done)
	}()
	return r
}

func (r *refill) wait(ctx context.Context) error {
	select {
	case <-r.done:
		return r.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// NeedsBlock says whether this host's blocks of a subnet are nearly used up now. When
// the cluster comes to do what Low or Refill has asked for they may not be any more: a
// block that was claimed before serves by then, or containers have ended. Low is said
// anew when they are again.
func (f *Fabric) NeedsBlock(id topology.SharedID, subnet netip.Prefix) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, p := range f.pools {
		if n := f.sharedBy(p); n == nil || n.Shared != id || p.Subnet != subnet {
			continue
		}
		if p.alloc.Low() {
			return true
		}
		p.toldLow = false
	}
	return false
}
