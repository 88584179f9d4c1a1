package member_test

import (
	"context"
	"testing"
	"time"
)

// setBroken lets the host's kernel follow no more, or again.
func (h *host) setBroken(broken bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.broken = broken
}

// setEnough has the host's blocks be less used than they were, or nearly used up.
func (h *host) setEnough(enough bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.enough = enough
}

// Blocks that a host cannot serve are of use to nobody, and are not to be had by the
// others. It takes one, and no more before that serves.
func TestBlocksThatCannotServe(t *testing.T) {
	for name, ask := range map[string]func(a *host){
		"low":    func(a *host) { a.member.Low(a.find("jobs").SharedNetwork.ID, small) },
		"refill": func(a *host) { a.refills(20) },
	} {
		t.Run(name, func(t *testing.T) {
			inSmall(t, 2, func(w *world, hosts []*host) {
				a, b := hosts[0], hosts[1]
				a.setBroken(true)
				ask(a)
				time.Sleep(10 * time.Minute)
				if got := a.blocks(); len(got) > 2 {
					t.Errorf("a has %d blocks of which the last does not serve: %v", len(got), got)
				}
				a.setBroken(false)
				a.setEnough(true) // as soon as the last one serves
				time.Sleep(time.Minute)
				if err := a.member.Refill(context.Background(), a.find("jobs").SharedNetwork.ID, small); err != nil {
					t.Error(err)
				}
				time.Sleep(time.Minute)
				if got := a.blocks(); len(got) != 2 {
					t.Errorf("a has %d blocks, and needs two", len(got))
				}
				w.agree("jobs", "when the kernel follows again", a, b)
			})
		})
	}
}

// refills is that many starts of containers, each of which finds all addresses in use.
func (h *host) refills(many int) {
	for range many {
		took, err := waits(func(ctx context.Context) error {
			return h.member.Refill(ctx, h.find("jobs").SharedNetwork.ID, small)
		})
		if took != 0 || err == nil {
			h.w.t.Errorf("after %s: %v", took, err)
		}
	}
}

// What the store needs is not taken from what the kernel may need.
func TestSlowStoreAndSlowKernel(t *testing.T) {
	inSmall(t, 1, func(w *world, hosts []*host) {
		a := hosts[0]
		a.member.Connect(slowStore{w.cluster.Host(a.node), 4 * time.Second})
		time.Sleep(soon)
		a.mu.Lock()
		a.slowly = 4 * time.Second
		a.mu.Unlock()
		a.member.Low(a.find("jobs").SharedNetwork.ID, small)
		time.Sleep(9 * time.Second)
		n := a.find("jobs")
		a.mu.Lock()
		defer a.mu.Unlock()
		if len(n.Claims) != 2 || n.unapplied {
			t.Errorf("a has %v, and the kernel does not: %t", n.Claims, n.unapplied)
		}
	})
}

// A burst has used up most of the block that comes before it was said that it has come.
// What is said then is of that block.
func TestLowWhileTheBlockComes(t *testing.T) {
	for name, more := range map[string]struct {
		enough bool
		want   int
	}{"used up again": {false, 3}, "none needed": {true, 2}} {
		t.Run(name, func(t *testing.T) {
			inSmall(t, 1, func(_ *world, hosts []*host) {
				a := hosts[0]
				id := a.find("jobs").SharedNetwork.ID
				a.mu.Lock()
				a.served = func() {
					a.served, a.enough = nil, more.enough
					a.member.Low(id, small)
				}
				a.mu.Unlock()
				a.member.Low(id, small)
				time.Sleep(time.Minute)
				if got := a.blocks(); len(got) != more.want {
					t.Errorf("a has %v, want %d", got, more.want)
				}
			})
		})
	}
}
