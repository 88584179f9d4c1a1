package member_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/particle-net/particle/control"
	"github.com/particle-net/particle/control/memory"
	"github.com/particle-net/particle/fabric"
	"github.com/particle-net/particle/internal/engine"
	"github.com/particle-net/particle/internal/member"
	"github.com/particle-net/particle/topology"
)

// three is a world in which three hosts have the network jobs.
func three(t *testing.T, test func(w *world, a, b, c *host)) {
	inWorld(t, 3, func(w *world, hosts []*host) {
		if err := hosts[0].create(jobs("10.9.0.0/16")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(soon)
		w.agree("jobs", "at first", hosts...)
		test(w, hosts[0], hosts[1], hosts[2])
	})
}

func TestDeadStoreChangesNothing(t *testing.T) {
	three(t, func(w *world, a, b, c *host) {
		for _, h := range []*host{a, b, c} {
			h.store.Cut(true)
		}
		time.Sleep(5 * time.Hour)
		w.agree("jobs", "after hours", a, b, c)
		// A plugin that starts meanwhile has what its fabric has kept on the disk.
		b.kill()
		before := b.view("jobs")
		b.start()
		b.member.Enter()
		time.Sleep(time.Hour)
		if after := b.view("jobs"); after != before {
			t.Errorf("after a start without a store b has %q, want %q", after, before)
		}
		err := b.create(engine.Spec{Name: "more", Subnets: jobs("10.8.0.0/16").Subnets})
		if !errors.Is(err, control.ErrUnreachable) || !strings.Contains(err.Error(), "; ") {
			t.Errorf("a network was created without a store, or the error has no remedy: %v", err)
		}
	})
}

// A plugin ends a moment after it has heard of its network's other hosts, and
// meets no store, or an empty one, when it starts again.
func TestKilledSoonAfterNews(t *testing.T) {
	for name, lose := range map[string]func(w *world, h *host){
		"no store": func(_ *world, h *host) { h.member.Enter() },
		"no answer": func(_ *world, h *host) {
			h.store = h.w.cluster.Host(h.node)
			h.store.Cut(true)
			h.member.Connect(h.store)
		},
		"an empty store": func(w *world, h *host) {
			w.cluster.Wipe()
			h.connect()
		},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, 3, func(w *world, hosts []*host) {
				if err := hosts[0].create(jobs("10.9.0.0/16")); err != nil {
					t.Fatal(err)
				}
				time.Sleep(2 * time.Second)
				w.agree("jobs", "at first", hosts...)
				c := hosts[2]
				before := c.view("jobs")
				c.kill()
				for _, h := range hosts[:2] {
					h.store.Cut(true) // so that nobody claims again what was lost
				}
				c.start()
				lose(w, c)
				for range 120 {
					time.Sleep(time.Second)
					if after := c.view("jobs"); after != before {
						t.Fatalf("c has %q, had %q", after, before)
					}
				}
				if len(c.members) < 2 {
					t.Errorf("c lets in the packets of %v", c.members)
				}
			})
		})
	}
}

func TestWipedStoreIsRestored(t *testing.T) {
	for name, lose := range map[string]func(*world, memory.Snapshot){
		"wiped": func(w *world, _ memory.Snapshot) { w.cluster.Wipe() },
		"older": func(w *world, s memory.Snapshot) { w.cluster.Load(s) },
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, 3, func(w *world, hosts []*host) {
				empty := w.cluster.Save()
				if err := hosts[0].create(jobs("10.9.0.0/16")); err != nil {
					t.Fatal(err)
				}
				time.Sleep(soon)
				var before []string
				for _, h := range hosts {
					before = append(before, h.view("jobs"))
				}
				lose(w, empty)
				for range 60 {
					time.Sleep(time.Second)
					for i, h := range hosts {
						if got := h.view("jobs"); got != before[i] {
							t.Fatalf("host %s has %q, had %q", h.node.Name, got, before[i])
						}
					}
				}
				for _, h := range hosts {
					if s := h.member.Status(); len(s.Networks) != 1 || s.Networks[0].Name != "jobs" || s.Networks[0].Doubted != 0 || s.Networks[0].Phase != member.Ready {
						t.Errorf("host %s: %+v", h.node.Name, s.Networks)
					}
				}
				err := hosts[0].member.ClaimAddress(context.Background(), hosts[0].find("jobs").SharedNetwork.ID, netip.MustParseAddr("10.9.200.7"), "web")
				if text := fmt.Sprint(err); !errors.Is(err, control.ErrSettling) || strings.Count(text, "10.9.200.7") != 1 || strings.Count(text, "; ") != 1 {
					t.Errorf("an address that may be another's: %s", text)
				}
				// A host that comes has to wait until all others may have been there.
				d := w.host(3)
				d.start()
				d.connect()
				time.Sleep(soon)
				if d.find("jobs") != nil || d.phase("jobs") != member.Pending {
					t.Errorf("the new host has got a block that may be another's")
				}
				w.cluster.Settle()
				time.Sleep(time.Minute)
				w.agree("jobs", "with a new host", append(hosts, d)...)
			})
		})
	}
}

// The store is wiped while one host is away, and another network is what the
// others have by then.
func TestHostThatWasAwayBringsItsNetworkBack(t *testing.T) {
	three(t, func(w *world, a, b, c *host) {
		c.kill()
		w.cluster.Wipe()
		time.Sleep(time.Hour)
		c.start()
		c.connect()
		time.Sleep(time.Minute)
		w.agree("jobs", "when it is back", a, b, c)
	})
}

func TestNextBlock(t *testing.T) {
	three(t, func(w *world, a, b, c *host) {
		id, subnet := a.find("jobs").SharedNetwork.ID, netip.MustParsePrefix("10.9.0.0/16")
		blocks := func() int { n := a.find("jobs"); a.mu.Lock(); defer a.mu.Unlock(); return len(n.Claims) }
		for range 5 {
			a.member.Low(id, subnet)
		}
		time.Sleep(soon)
		if n := blocks(); n != 2 {
			t.Errorf("%d blocks after Low was said often, want 2", n)
		}
		a.store.Cut(true)
		a.member.Low(id, subnet)
		time.Sleep(time.Minute)
		a.store.Cut(false)
		time.Sleep(time.Minute)
		if n := blocks(); n != 3 {
			t.Errorf("%d blocks after the store came back, want 3", n)
		}
		// Answers get lost: what was claimed is ours all the same.
		a.store.LoseReplies(true)
		a.member.Low(id, subnet)
		time.Sleep(time.Second)
		a.store.LoseReplies(false)
		time.Sleep(time.Minute)
		if n := blocks(); n < 4 {
			t.Errorf("%d blocks after a claim whose answer was lost, want 4", n)
		}
		w.agree("jobs", "at last", a, b, c)
	})
}

func TestRefill(t *testing.T) {
	three(t, func(w *world, a, b, c *host) {
		id, subnet, ctx := a.find("jobs").SharedNetwork.ID, netip.MustParsePrefix("10.9.0.0/16"), context.Background()
		blocks := func() int { n := a.find("jobs"); a.mu.Lock(); defer a.mu.Unlock(); return len(n.Claims) }
		var all sync.WaitGroup
		for range 5 {
			all.Go(func() {
				if err := a.member.Refill(ctx, id, subnet); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		if n := blocks(); n < 2 {
			t.Errorf("%d blocks after Refill, want one more", n)
		}

		// Without a store, as long as the caller waits; and a later one has what it asks.
		a.store.Cut(true)
		brief, cancel := context.WithTimeout(ctx, 3*time.Second)
		defer cancel()
		if err := a.member.Refill(brief, id, subnet); !errors.Is(err, control.ErrUnreachable) {
			t.Errorf("without a store: %v", err)
		}
		a.store.Cut(false)
		time.Sleep(soon)
		before := blocks()
		if err := a.member.Refill(ctx, id, subnet); err != nil || blocks() <= before {
			t.Errorf("with the store again: %v, %d blocks", err, blocks()-before)
		}

		// All that are left. Then it says so at once, however often it is asked.
		var err error
		for err == nil {
			err = a.member.Refill(ctx, id, subnet)
		}
		at := time.Now()
		for range 3 {
			if err := a.member.Refill(ctx, id, subnet); !errors.Is(err, control.ErrExhausted) {
				t.Errorf("no block is left: %v", err)
			}
		}
		if waited := time.Since(at); waited > 0 {
			t.Errorf("that took %v", waited)
		}
		b.remove("jobs")
		time.Sleep(time.Minute)
		brief, cancel = context.WithTimeout(ctx, 3*time.Second)
		defer cancel()
		if err := a.member.Refill(brief, id, subnet); err == nil {
			t.Error("a block of a network that is not here")
		}
	})
}

func TestSingleAddress(t *testing.T) {
	three(t, func(w *world, a, b, _ *host) {
		id, addr := a.find("jobs").SharedNetwork.ID, netip.MustParseAddr("10.9.200.7")
		ctx := context.Background()
		if err := a.member.ClaimAddress(ctx, id, addr, "web"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if err := b.member.ClaimAddress(ctx, id, addr, "web"); !errors.Is(err, control.ErrTaken) {
			t.Errorf("claimed twice: %v", err)
		}
		if got := b.view("jobs"); !strings.Contains(got, "1:10.9.200.7/32") {
			t.Errorf("b does not know of it: %s", got)
		}
		a.member.ReleaseAddress(id, addr)
		if err := a.member.ClaimAddress(ctx, id, addr, "web"); err != nil {
			t.Errorf("claimed again: %v", err)
		}
		time.Sleep(time.Second)
		if err := b.member.ClaimAddress(ctx, id, addr, "web"); !errors.Is(err, control.ErrTaken) {
			t.Errorf("an older release came after a newer claim: %v", err)
		}
		// One that the store says is ours, and that nobody here has, is given back.
		a.member.ReleaseAddress(id, addr)
		time.Sleep(time.Second)
		if _, err := b.store.ClaimAddress(ctx, id, addr, "web"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if err := a.member.ClaimAddress(ctx, id, addr, "web"); err != nil {
			t.Errorf("a claim that nobody has was kept: %v", err)
		}
	})
}

func TestUnverifiedClaimsAreSuspended(t *testing.T) {
	three(t, func(w *world, a, _, _ *host) {
		id := a.find("jobs").SharedNetwork.ID
		suspended := func() bool { a.mu.Lock(); defer a.mu.Unlock(); return a.suspended[id] == fabric.ErrUnverified }
		a.store.Cut(true)
		time.Sleep(11*time.Hour + 45*time.Minute)
		if suspended() {
			t.Error("suspended too early")
		}
		time.Sleep(20 * time.Minute)
		if !suspended() {
			t.Error("not suspended after twelve hours")
		}
		a.store.Cut(false)
		time.Sleep(time.Minute)
		if suspended() {
			t.Error("still suspended when verified")
		}
		// It counts from the last time that the plugin before has seen.
		a.kill()
		time.Sleep(13 * time.Hour)
		a.node.Boot = "another"
		a.begun = time.Now()
		a.start()
		a.member.Enter()
		time.Sleep(time.Second)
		if !suspended() {
			t.Error("not suspended after a reboot, 13 hours later")
		}
	})
}

// Docker may ask for an address as soon as the plugin is there, whatever it does first.
func TestUnverifiedClaimsAreSuspendedAtOnce(t *testing.T) {
	three(t, func(w *world, a, _, _ *host) {
		id := a.find("jobs").SharedNetwork.ID
		a.kill()
		time.Sleep(30 * time.Hour)
		a.node.Boot, a.begun, a.busy = "another", time.Now(), true
		a.start()
		a.member.Enter()
		time.Sleep(time.Second)
		a.mu.Lock()
		defer a.mu.Unlock()
		if a.suspended[id] != fabric.ErrUnverified {
			t.Errorf("it gives out what others may have after 30 hours: %v", a.suspended[id])
		}
	})
}

// A host was given another id: its disk is a copy of another host's, which has what the
// disk tells of. It gives out nothing of that from the first call of Docker's on, also if
// its plugin ends before the store has told whose it is.
func TestClaimsOfAnotherHostAreSuspended(t *testing.T) {
	three(t, func(w *world, a, b, _ *host) {
		id, mine := a.find("jobs").SharedNetwork.ID, a.find("jobs").Claims[0]
		a.kill()
		a.node.ID, a.node.Boot, a.node.VTEP = topology.NodeID(strings.Repeat("9", 32)), "another", netip.MustParseAddr("192.0.2.9")
		a.begun = time.Now()
		suspended := func() bool { a.mu.Lock(); defer a.mu.Unlock(); return a.suspended[id] == fabric.ErrUnverified }
		for range 2 {
			a.start()
			if !suspended() {
				t.Error("it gives out what is another's")
			}
			a.member.Enter()
			time.Sleep(time.Second)
			a.kill()
			a.suspended = map[topology.SharedID]error{} // the fabric's, which ends as well
		}
		a.start()
		a.connect()
		time.Sleep(time.Minute)
		if claims := a.find("jobs").Claims; suspended() || slices.Contains(claims, mine) {
			t.Errorf("it has %v, of which %s is another's; it gives out none: %t", claims, mine, suspended())
		}
		a.kill()
		a.start()
		if suspended() {
			t.Error("it does not know that it has what it has")
		}
	})
}

func TestTakenClaimIsGivenOutNoMore(t *testing.T) {
	three(t, func(w *world, a, b, c *host) {
		c.kill()
		time.Sleep(time.Second)
		if err := a.member.RemoveNode(context.Background(), c.node.ID); err != nil {
			t.Fatal(err)
		}
		n := c.find("jobs")
		mine := n.Claims[0]
		b.edit("jobs", func(n *docker) { n.Claims = append(n.Claims, mine) })
		time.Sleep(time.Minute)
		c.start()
		c.connect()
		time.Sleep(time.Minute)
		if slices.Contains(c.find("jobs").Claims, mine) {
			t.Errorf("both b and c give out %s", mine)
		}
	})
}

func TestLeave(t *testing.T) {
	three(t, func(w *world, a, b, c *host) {
		c.store.Cut(true)
		if err := c.member.Leave(context.Background()); !errors.Is(err, control.ErrUnreachable) {
			t.Errorf("left without a store: %v", err)
		}
		c.store.Cut(false)
		time.Sleep(time.Minute)
		w.agree("jobs", "after it could not leave", a, b, c)
		c.edit("jobs", func(n *docker) { n.containers = 1 })
		if busy, _ := c.member.Busy(context.Background()); !slices.Equal(busy, []string{"jobs"}) {
			t.Errorf("busy %v", busy)
		}
		if err := c.member.Leave(context.Background()); err != nil {
			t.Fatal(err)
		}
		c.member.Disconnect()
		time.Sleep(time.Minute)
		w.agree("jobs", "without c", a, b)
		c.mu.Lock()
		if len(c.members) != 0 {
			t.Errorf("c still lets in %v", c.members)
		}
		c.mu.Unlock()
		if got := c.view("jobs"); !strings.HasSuffix(got, "|") || got == "|" {
			t.Errorf("c has %q, want its own and no peers", got)
		}
		if len(c.disk.text) != 1 || c.member.Joined() || len(a.member.Status().Hosts) != 2 {
			t.Errorf("left on disk: %v; hosts: %+v", c.disk.text, a.member.Status().Hosts)
		}
		if _, ok, err := c.member.Share(context.Background(), fabric.SharedSpec{}); ok || err != nil {
			t.Errorf("a host that has left shares: %v, %v", ok, err)
		}
		c.edit("jobs", func(n *docker) { n.containers = 0 })
		time.Sleep(time.Minute)
		if n := c.find("jobs"); n != nil {
			t.Errorf("c still has %+v, which is the cluster's", n)
		}
		if len(c.disk.text) > 0 {
			t.Errorf("left on disk: %s", c.disk.text)
		}
		w.agree("jobs", "after c removed it", a, b)
	})
}
