package member_test

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/particle-net/particle/control"
	"github.com/particle-net/particle/topology"
)

var small = netip.MustParsePrefix("10.9.0.0/24") // 16 blocks

// inSmall is a world of hosts that have the network jobs, of 16 blocks.
func inSmall(t *testing.T, hosts int, test func(*world, []*host)) {
	inWorld(t, hosts, func(w *world, all []*host) {
		if err := all[0].create(jobs(small.String())); err != nil {
			t.Fatal(err)
		}
		time.Sleep(soon)
		w.agree("jobs", "at first", all...)
		test(w, all)
	})
}

// blocks are those that a host gives addresses out of.
func (h *host) blocks() []netip.Prefix {
	n := h.find("jobs")
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(n.Claims)
}

// exhaust has hosts take all blocks that there are.
func (w *world) exhaust(hosts ...*host) {
	w.t.Helper()
	for _, h := range hosts {
		var err error
		for err == nil {
			err = h.member.Refill(context.Background(), h.find("jobs").SharedNetwork.ID, small)
		}
		if !errors.Is(err, control.ErrExhausted) {
			w.t.Errorf("host %s: %v", h.node.Name, err)
		}
	}
}

// settle lets the time pass in which hosts claim again what they had.
func (w *world) settle() {
	time.Sleep(11 * time.Minute)
	w.cluster.Settle()
	time.Sleep(time.Minute)
}

func (h *host) heardOf(id topology.NodeID) (known, alive bool) {
	for _, other := range h.member.Status().Hosts {
		if other.ID == id {
			return true, other.Alive
		}
	}
	return false, false
}

// "After the store has lost its data": a host did not reach it then. Its containers
// live, and it goes on to start others.
func TestAbsentHostKeepsItsAddresses(t *testing.T) {
	for name, again := range map[string]func(h *host){
		"the others run":     func(*host) {},
		"the others restart": func(h *host) { h.kill(); h.start(); h.connect() },
	} {
		t.Run(name, func(t *testing.T) {
			inSmall(t, 3, func(w *world, hosts []*host) {
				a, b, c := hosts[0], hosts[1], hosts[2]
				its := c.blocks()
				c.store.Cut(true)
				time.Sleep(time.Minute)
				w.cluster.Wipe()
				time.Sleep(10 * time.Second)
				again(a)
				again(b)
				w.settle()
				d := w.host(3)
				d.start()
				d.connect()
				time.Sleep(time.Minute)
				w.exhaust(a, b, d)
				time.Sleep(2 * time.Hour)
				for _, h := range []*host{a, b, d} {
					if want := "3:" + its[0].String(); !strings.Contains(h.view("jobs"), want) {
						t.Errorf("host %s has no route to the one that is away: %q, want %s", h.node.Name, h.view("jobs"), want)
					}
					if known, alive := h.heardOf(c.node.ID); !known || alive || !slices.Contains(h.members, c.node.VTEP) {
						t.Errorf("host %s: known %t, alive %t, lets in %v", h.node.Name, known, alive, h.members)
					}
				}
				c.store.Cut(false)
				time.Sleep(time.Minute)
				w.agree("jobs", "when it is back", a, b, c, d)
				if !slices.Equal(c.blocks(), its) {
					t.Errorf("it had %v, and has %v", its, c.blocks())
				}
				if s := a.member.Status().Networks[0]; s.Doubted+s.Withdrawn+len(s.Duplicates) != 0 {
					t.Errorf("status %+v", s)
				}
			})
		})
	}
}

// An address is given back, and its host leaves, a moment before the store is wiped:
// nobody has to wait until that is forgotten.
func TestWithdrawalBeforeTheStoreIsWiped(t *testing.T) {
	three(t, func(w *world, a, b, c *host) {
		id, addr := a.find("jobs").SharedNetwork.ID, netip.MustParseAddr("10.9.200.7")
		if err := a.member.ClaimAddress(context.Background(), id, addr, "web"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(soon)
		a.member.ReleaseAddress(id, addr)
		if err := c.member.Leave(context.Background()); err != nil {
			t.Fatal(err)
		}
		c.kill()
		time.Sleep(10 * time.Second)
		held := b.view("jobs")
		if !strings.Contains(held, "1:10.9.200.7/32") || !strings.Contains(held, " 3:") {
			t.Fatalf("before the store is wiped b has %q", held)
		}
		w.cluster.Wipe()
		time.Sleep(15 * time.Second)
		if after := b.view("jobs"); after != held {
			t.Errorf("25 s after the withdrawal b has %q, had %q", after, held)
		}
		time.Sleep(10 * time.Second)
		w.agree("jobs", "when the withdrawal is over", a, b)
		if s := b.member.Status().Networks[0]; s.Doubted+s.Withdrawn != 0 {
			t.Errorf("in doubt still: %+v", s)
		}
	})
}

// Of a host that is away others remember what it has given up meanwhile, or it has
// lost its part of the network with its disk.
func TestVouchedBlockThatIsNotUsed(t *testing.T) {
	for name, lose := range map[string]func(c *host){
		"given up": func(c *host) { c.edit("jobs", func(n *docker) { n.Claims = nil }) },
		"removed by the operator": func(c *host) {
			c.kill()
			if err := c.w.cluster.Host(control.Node{ID: "operator"}).RemoveNode(context.Background(), c.node.ID); err != nil {
				c.w.t.Error(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			inSmall(t, 3, func(w *world, hosts []*host) {
				a, b, c := hosts[0], hosts[1], hosts[2]
				its := c.blocks()[0]
				c.store.Cut(true)
				w.cluster.Wipe()
				w.settle()
				w.exhaust(a, b)
				if slices.Contains(slices.Concat(a.blocks(), b.blocks()), its) {
					t.Fatalf("%s was given to another host", its)
				}
				lose(c)
				c.store.Cut(false)
				time.Sleep(2 * time.Minute)
				w.exhaust(a)
				if !slices.Contains(a.blocks(), its) {
					t.Errorf("%s is kept for nobody", its)
				}
			})
		})
	}
}

// d gives up its block, and c gets it, while b is away and goes on believing that it
// is d's. Then the store loses all, or is set back to when it was d's.
func TestHostsRememberDifferently(t *testing.T) {
	for name, back := range map[string]bool{"wiped": false, "set back": true} {
		t.Run(name, func(t *testing.T) {
			inSmall(t, 4, func(w *world, hosts []*host) {
				a, b, c, d := hosts[0], hosts[1], hosts[2], hosts[3]
				saved := w.cluster.Save()
				its := d.blocks()[0]
				b.store.Cut(true)
				if err := d.member.Leave(context.Background()); err != nil {
					t.Fatal(err)
				}
				d.kill()
				time.Sleep(time.Minute)
				w.exhaust(c)
				if !slices.Contains(c.blocks(), its) {
					t.Fatalf("c has %v, want %s too", c.blocks(), its)
				}
				want := c.blocks()
				time.Sleep(time.Minute)
				c.store.Cut(true)
				if w.cluster.Wipe(); back {
					w.cluster.Load(saved)
					w.cluster.SetAlive(d.node.ID, false)
				}
				b.store.Cut(false)
				w.settle()
				if known, _ := a.heardOf(d.node.ID); known { // as b remembers it, or as the store does
					if err := a.member.RemoveNode(context.Background(), d.node.ID); err != nil {
						t.Fatal(err)
					}
				}
				e := w.host(4)
				e.start()
				e.connect()
				time.Sleep(time.Minute)
				if e.find("jobs") != nil {
					t.Errorf("a new host has %v, and all are c's but for those of a and b", e.blocks())
				}
				w.exhaust(a, b)
				c.store.Cut(false)
				time.Sleep(time.Minute)
				w.agree("jobs", "when c is back", a, b, c)
				if !slices.Equal(c.blocks(), want) {
					t.Errorf("c has %v, had %v", c.blocks(), want)
				}
			})
		})
	}
}

// The store is set back to when a block was another host's, which does not take it,
// whatever it knows of that. Whoever has it now has containers on it.
func TestStaleClaimIsGivenBack(t *testing.T) {
	restart := func(h *host) { h.kill(); h.start(); h.connect() }
	for name, former := range map[string]struct {
		deaf bool          // it does not hear who has got its block
		back func(b *host) // what happens to it when the store has been set back
	}{
		"it knows the new owner":      {false, func(*host) {}},
		"it has not heard of it":      {true, func(b *host) { b.store.Cut(false) }},
		"it has restarted":            {true, restart},
		"it has lost what it knew":    {true, func(b *host) { b.kill(); clear(b.disk.text); b.start(); b.connect() }},
		"it has restarted, and knows": {false, restart},
	} {
		t.Run(name, func(t *testing.T) {
			inSmall(t, 3, func(w *world, hosts []*host) {
				a, b, c := hosts[0], hosts[1], hosts[2]
				w.exhaust(b)
				time.Sleep(time.Minute)
				saved := w.cluster.Save()
				moved := b.blocks()[3]
				b.letGo(moved)
				b.store.Cut(former.deaf)
				time.Sleep(time.Minute) // c takes nothing that another has had a moment ago
				w.exhaust(c)
				c.edit("jobs", func(n *docker) { n.containers = 1 })
				time.Sleep(time.Minute)
				if !slices.Contains(c.blocks(), moved) || slices.Contains(b.blocks(), moved) {
					t.Fatalf("b has %v, c has %v", b.blocks(), c.blocks())
				}
				w.cluster.Load(saved)
				if former.deaf { // "A store that was set back": it is b's to say that it is not b's
					time.Sleep(time.Minute)
					if got := a.view("jobs"); !strings.Contains(got, "2:"+moved.String()) {
						t.Errorf("before b comes a has %q", got)
					}
				}
				former.back(b)
				for range 120 {
					time.Sleep(100 * time.Millisecond)
					if slices.Contains(b.blocks(), moved) {
						t.Fatalf("b gives out %s, and c has containers on it", moved)
					}
				}
				w.settle()
				w.exhaust(a, b)
				if slices.Contains(slices.Concat(a.blocks(), b.blocks()), moved) {
					t.Errorf("%s was given to another host, and c has containers on it", moved)
				}
				c.edit("jobs", func(n *docker) { n.containers = 0 })
				time.Sleep(time.Minute)
				w.exhaust(a, c)
				if !slices.Contains(slices.Concat(a.blocks(), c.blocks()), moved) {
					t.Errorf("%s is kept for nobody", moved)
				}
				time.Sleep(time.Minute)
				w.agree("jobs", "at last", a, b, c)
			})
		})
	}
}

// letGo has a host give up a block.
func (h *host) letGo(block netip.Prefix) {
	h.w.t.Helper()
	h.edit("jobs", func(n *docker) {
		n.Claims = slices.DeleteFunc(n.Claims, func(p netip.Prefix) bool { return p == block })
	})
	id := h.find("jobs").SharedNetwork.ID
	err := errors.Join(h.store.Withdraw(context.Background(), control.Route{Network: id, Prefix: block}),
		h.store.Release(context.Background(), control.Claim{Network: id, Prefix: block}))
	if err != nil {
		h.w.t.Fatal(err)
	}
}

// A host was given up, and another has its block by now. When that gives it back
// again, containers may be on it still.
func TestTakenBlockIsKeptForItsContainers(t *testing.T) {
	inSmall(t, 2, func(w *world, hosts []*host) {
		a, b := hosts[0], hosts[1]
		its := b.blocks()[0]
		b.edit("jobs", func(n *docker) { n.containers = 1 })
		b.kill()
		if err := a.member.RemoveNode(context.Background(), b.node.ID); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		w.exhaust(a)
		b.start()
		b.connect()
		time.Sleep(time.Minute)
		if slices.Contains(b.blocks(), its) || !slices.Contains(a.blocks(), its) {
			t.Fatalf("a has %v, b has %v", a.blocks(), b.blocks())
		}
		a.letGo(its)
		time.Sleep(time.Minute)
		w.exhaust(a)
		if slices.Contains(a.blocks(), its) {
			t.Errorf("%s was given to a again", its)
		}
		b.edit("jobs", func(n *docker) { n.containers = 0 })
		time.Sleep(time.Minute)
		w.exhaust(a)
		if !slices.Contains(a.blocks(), its) {
			t.Errorf("%s is kept for nobody", its)
		}
	})
}
