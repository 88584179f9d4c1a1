package fabric

import (
	"context"
)

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
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), storeLimit)
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
