package member_test

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/particle-net/particle/control"
	"github.com/particle-net/particle/internal/engine"
)

// setRefuse has networks of the cluster fail on the host after the store has given
// it its part of them, or be made again.
func (h *host) setRefuse(refuse bool) {
	h.mu.Lock()
	h.refuse = refuse
	h.mu.Unlock()
	h.member.Wake()
}

// claimed are the blocks of the network jobs that others see a host have.
func (h *host) claimed(by *host) []string {
	var all []string
	for _, p := range h.find("jobs").peers {
		if p.VTEP == by.node.VTEP {
			for _, prefix := range p.Prefixes {
				all = append(all, prefix.String())
			}
		}
	}
	return all
}

// inVain is a world in which b cannot make the network jobs of a.
func inVain(t *testing.T, test func(w *world, a, b *host)) {
	inWorld(t, 2, func(w *world, hosts []*host) {
		hosts[1].setRefuse(true)
		if err := hosts[0].create(jobs(small.String())); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		w.absent("jobs", "where it cannot be made", hosts[1])
		test(w, hosts[0], hosts[1])
	})
}

// gone checks that the cluster has no network any more.
func (w *world) gone(hosts ...*host) {
	w.t.Helper()
	for _, h := range hosts {
		if s := h.member.Status().Networks; len(s) != 0 {
			w.t.Errorf("host %s: the cluster still has %+v", h.node.Name, s)
		}
	}
}

// A host tries again and again to make a network. It takes no more of it than one
// that succeeds at once.
func TestAttemptsClaimOnce(t *testing.T) {
	inVain(t, func(w *world, a, b *host) {
		first := a.claimed(b)
		if len(first) != 1 {
			t.Errorf("after an hour b has claimed %v", first)
		}
		b.setRefuse(false)
		time.Sleep(time.Minute)
		w.agree("jobs", "made at last", a, b)
		if last := a.claimed(b); !slices.Equal(last, first) {
			t.Errorf("it had claimed %v, and has %v", first, last)
		}
	})
}

// What was claimed for a network that was never made goes with it.
func TestRemovedBeforeItCouldBeMade(t *testing.T) {
	inVain(t, func(w *world, a, b *host) {
		a.remove("jobs")
		time.Sleep(5 * time.Minute)
		w.gone(a, b)
	})
}

// One block of the second subnet is all that there is, and a has it.
func TestOneOfTwoFamiliesIsUsedUp(t *testing.T) {
	inWorld(t, 2, func(w *world, hosts []*host) {
		a, b := hosts[0], hosts[1]
		spec := jobs(small.String())
		spec.Subnets = append(spec.Subnets, engine.Subnet{Prefix: netip.MustParsePrefix("2001:db8:9::/124")})
		if err := a.create(spec); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		w.absent("jobs", "without a block of each", b)
		if got := a.claimed(b); len(got) != 1 {
			t.Errorf("b has claimed %v", got)
		}
		a.remove("jobs")
		time.Sleep(5 * time.Minute)
		w.gone(a, b)
	})
}

// The part of a host that is away is given up, and a has containers on it, when the
// host comes back and the network can be made. Or the store is set back as well, to
// when it was the host's.
func TestClaimOfAnAttemptIsLost(t *testing.T) {
	for name, back := range map[string]bool{"taken": false, "set back": true} {
		t.Run(name, func(t *testing.T) {
			inVain(t, func(w *world, a, b *host) {
				its := netip.MustParsePrefix(a.claimed(b)[0])
				saved := w.cluster.Save()
				b.store.Cut(true)
				w.cluster.SetAlive(b.node.ID, false)
				if err := w.cluster.Host(control.Node{ID: "operator"}).RemoveNode(context.Background(), b.node.ID); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Minute)
				w.exhaust(a)
				a.edit("jobs", func(n *docker) { n.containers = 1 })
				if !slices.Contains(a.blocks(), its) {
					w.t.Fatalf("a has %v, want %s too", a.blocks(), its)
				}
				spare := a.blocks()[5]
				if a.letGo(spare); back {
					w.cluster.Load(saved)
				}
				b.store.Cut(false)
				b.setRefuse(false)
				w.settle()
				if b.find("jobs") == nil {
					w.t.Fatalf("b cannot make it: %+v", b.member.Status().Networks)
				}
				if got := b.blocks(); len(got) == 0 || slices.Contains(got, its) {
					t.Errorf("b gives out %v, and a has containers on %s", got, its)
				}
				if got := a.view("jobs"); strings.Contains(got, "2:"+its.String()) {
					t.Errorf("a has %q, and containers on %s", got, its)
				}
			})
		})
	}
}
