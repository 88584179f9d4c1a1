package member_test

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/particle-net/particle/control"
	"github.com/particle-net/particle/control/memory"
	"github.com/particle-net/particle/fabric"
	"github.com/particle-net/particle/internal/member"
	"github.com/particle-net/particle/topology"
)

// isSuspended says whether a host gives out no addresses of the network jobs, since it
// leaves or has left.
func (h *host) isSuspended() bool {
	id := h.find("jobs").SharedNetwork.ID
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.suspended[id] == fabric.ErrLeaving || h.suspended[id] == fabric.ErrLeft
}

// A host has given up its part, and is a member still: to be out may take long.
func TestGivenUpAndStillAMember(t *testing.T) {
	inWorld(t, 4, func(w *world, hosts []*host) {
		a, b, c, d, ctx := hosts[0], hosts[1], hosts[2], hosts[3], context.Background()
		if err := a.create(jobs("10.9.0.0/16")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(soon)
		c.edit("jobs", func(n *docker) { n.containers = 1 })
		if err := c.member.Leave(ctx); err != nil {
			t.Fatal(err)
		}
		if !c.isSuspended() {
			t.Error("it gives out addresses that others may have")
		}
		more := jobs("10.8.0.0/16")
		more.Name = "more"
		if err := a.create(more); err != nil {
			t.Fatal(err)
		}
		c.member.SetReach(netip.AddrPortFrom(c.node.VTEP, 8472), nil) // worth telling the cluster of
		time.Sleep(time.Minute)
		w.absent("more", "where its part is given up", c)
		w.agree("more", "without c", a, b, d)
		if known, _ := a.heardOf(c.node.ID); known {
			t.Error("it has entered itself again")
		}
		id := c.find("jobs").SharedNetwork.ID
		for name, call := range map[string]func(context.Context) error{
			"network": func(ctx context.Context) error {
				_, _, err := c.member.Share(ctx, fabric.SharedSpec{ID: a.find("more").SharedNetwork.ID})
				return err
			},
			"address": func(ctx context.Context) error {
				return c.member.ClaimAddress(ctx, id, netip.MustParseAddr("10.9.200.7"), "web")
			},
			"block": func(ctx context.Context) error {
				return c.member.Refill(ctx, id, netip.MustParsePrefix("10.9.0.0/16"))
			},
		} {
			if took, err := waits(call); took != 0 || !errors.Is(err, control.ErrUnreachable) {
				t.Errorf("%s: after %s: %v", name, took, err)
			}
		}
		d.kill()
		time.Sleep(time.Second)
		if err := errors.Join(c.member.RemoveNode(ctx, d.node.ID), c.member.Leave(ctx)); err != nil {
			t.Error(err)
		}
	})
}

// restart ends the plugin and starts it again, whose fabric gives everything out that it
// has on its record.
func (h *host) restart() {
	h.kill()
	h.mu.Lock()
	clear(h.suspended)
	h.mu.Unlock()
	h.start()
}

// What a host has given up is not given out by a later plugin either, before the host is
// out of the cluster and after that, unless it has it again.
func TestGivenUpOverRestarts(t *testing.T) {
	three(t, func(w *world, a, b, c *host) {
		c.edit("jobs", func(n *docker) { n.containers = 1 })
		if err := c.member.Leave(context.Background()); err != nil {
			t.Fatal(err)
		}
		c.restart() // and is not connected: it is leaving
		time.Sleep(time.Second)
		if !c.isSuspended() {
			t.Error("it gives out addresses of what it has given up before a restart")
		}
		c.connect() // it could not leave
		time.Sleep(time.Minute)
		w.agree("jobs", "in again", a, b, c)
		c.restart()
		time.Sleep(time.Second)
		if c.isSuspended() {
			t.Error("it gives out no addresses of what it has again, after a restart")
		}
		c.connect()
		time.Sleep(time.Minute)
		if err := c.member.Leave(context.Background()); err != nil {
			t.Fatal(err)
		}
		c.member.Disconnect()
		time.Sleep(time.Minute)
		c.restart()
		c.member.Disconnect()
		time.Sleep(time.Second)
		if !c.isSuspended() {
			t.Error("it gives out addresses of a cluster that it has left")
		}
	})
}

// A host that cannot keep in mind that it has given up its part gives up nothing.
func TestGivenUpIsNotOnDisk(t *testing.T) {
	three(t, func(w *world, a, b, c *host) {
		c.disk.fail(true)
		if err := c.member.Leave(context.Background()); !errors.Is(err, errFull) {
			t.Errorf("got %v", err)
		}
		c.disk.fail(false)
		time.Sleep(time.Second)
		if c.isSuspended() {
			t.Error("it gives out no addresses of what it has still")
		}
		w.agree("jobs", "it stays", a, b, c)
	})
}

// Its container lives when a host that has left is let in again, its plugin started anew or
// not.
func TestBackAfterLeaving(t *testing.T) {
	three(t, func(w *world, a, b, c *host) {
		c.edit("jobs", func(n *docker) { n.containers = 1 })
		for _, anew := range []bool{false, true} {
			if err := c.member.Leave(context.Background()); err != nil {
				t.Fatal(err)
			}
			c.member.Disconnect()
			time.Sleep(time.Minute)
			if !c.isSuspended() {
				t.Error("it gives out addresses that others may have")
			}
			if anew {
				c.kill()
				c.start()
			}
			c.connect()
			time.Sleep(time.Minute)
			w.agree("jobs", "in again", a, b, c)
			if c.isSuspended() || c.phase("jobs") != member.Ready {
				t.Errorf("it is %s; no addresses of what it has again are given out: %t", c.phase("jobs"), c.isSuspended())
			}
		}
	})
}

// A host comes to another cluster while its container lives on a network of the one that it
// left. That is no business of the other's.
func TestJoinsAnotherCluster(t *testing.T) {
	for name, leave := range map[string]func(c *host){
		"told": func(c *host) {
			if err := c.member.Leave(context.Background()); err != nil {
				t.Error(err)
			}
			c.member.Disconnect()
			time.Sleep(time.Minute)
		},
		"with force, and at once": func(c *host) {
			c.store.Cut(true)
			_ = c.member.Leave(context.Background()) // it cannot
			c.member.Disconnect()
		},
		"started anew meanwhile": func(c *host) {
			c.member.Disconnect()
			time.Sleep(time.Second)
			c.kill()
			c.start()
		},
	} {
		t.Run(name, func(t *testing.T) {
			three(t, func(w *world, a, b, c *host) {
				c.edit("jobs", func(n *docker) { n.containers = 1 })
				leave(c)
				former := w.cluster
				w.cluster = memory.New()
				d := w.host(3)
				d.start()
				d.connect()
				c.connect()
				time.Sleep(2 * time.Minute)
				if n := d.member.Status().Networks; len(n) > 0 {
					t.Errorf("the other cluster has got %+v", n)
				}
				if got := c.view("jobs"); !strings.HasSuffix(got, "|") || got == "|" {
					t.Errorf("c has %q, want its own and no peers", got)
				}
				if !c.isSuspended() || c.phase("jobs") != member.Leaving {
					t.Errorf("it is %s; no addresses are given out that others may have: %t", c.phase("jobs"), c.isSuspended())
				}
				more := jobs("10.8.0.0/16")
				more.Name = "more"
				if err := d.create(more); err != nil {
					t.Fatal(err)
				}
				c.edit("jobs", func(n *docker) { n.containers = 0 })
				time.Sleep(time.Minute)
				w.absent("jobs", "when its container has ended", c, d)
				w.agree("more", "of the other cluster", c, d)
				if len(c.disk.text) != 2 { // that, and where it is from
					t.Errorf("on disk: %s", c.disk.text)
				}
				w.cluster = former
				if n := a.find("jobs"); n == nil || b.find("jobs") == nil {
					t.Error("the cluster that it left has lost the network")
				}
			})
		})
	}
}

// What was removed while a host was in no cluster does not come back with it.
func TestRemovedWhileInNoCluster(t *testing.T) {
	three(t, func(w *world, a, b, c *host) {
		c.edit("jobs", func(n *docker) { n.containers = 1 })
		if err := c.member.Leave(context.Background()); err != nil {
			t.Fatal(err)
		}
		c.member.Disconnect()
		time.Sleep(time.Minute)
		a.remove("jobs")
		time.Sleep(time.Minute)
		c.connect()
		time.Sleep(2 * time.Minute)
		w.absent("jobs", "when c is in again", a, b)
		if n := b.member.Status().Networks; len(n) > 0 || c.find("jobs") == nil {
			t.Errorf("b knows of %+v; c has %q", n, c.view("jobs"))
		}
		c.edit("jobs", func(n *docker) { n.containers = 0 })
		time.Sleep(time.Minute)
		w.absent("jobs", "when its container has ended", a, b, c)
	})
}

// A host that could not leave goes on.
func TestCouldNotLeave(t *testing.T) {
	three(t, func(w *world, a, b, c *host) {
		c.store.Cut(true)
		if err := c.member.Leave(context.Background()); !errors.Is(err, control.ErrUnreachable) {
			t.Errorf("left without a store: %v", err)
		}
		if c.isSuspended() {
			t.Error("it gives out no addresses of what it has still")
		}
		c.store.Cut(false)
		time.Sleep(time.Minute)
		more := jobs("10.8.0.0/16")
		more.Name = "more"
		if err := a.create(more); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		w.agree("more", "made as by any member", a, b, c)
	})
}

// slowStore answers late to what may claim something.
type slowStore struct {
	*memory.Store
	late time.Duration
}

func (s slowStore) wait(ctx context.Context) {
	select {
	case <-time.After(s.late):
	case <-ctx.Done():
	}
}

func (s slowStore) ClaimAddress(ctx context.Context, id topology.SharedID, addr netip.Addr, holder string) (control.Claim, error) {
	s.wait(ctx)
	return s.Store.ClaimAddress(ctx, id, addr, holder)
}

func (s slowStore) ClaimBlock(ctx context.Context, id topology.SharedID, subnet netip.Prefix) (control.Claim, error) {
	s.wait(ctx)
	return s.Store.ClaimBlock(ctx, id, subnet)
}

func (s slowStore) SetNode(ctx context.Context, n control.Node) error {
	s.wait(ctx)
	return s.Store.SetNode(ctx, n)
}

// What had begun to claim when the host leaves has done so before the host gives
// everything up, and so leaves nothing behind.
func TestLeavesWhileClaiming(t *testing.T) {
	three(t, func(w *world, a, _, c *host) {
		c.store = w.cluster.Host(c.node)
		c.member.Connect(slowStore{c.store, 2 * time.Second})
		time.Sleep(time.Minute)
		ctx, id, addr := context.Background(), c.find("jobs").SharedNetwork.ID, netip.MustParseAddr("10.9.200.7")
		c.member.SetReach(netip.AddrPortFrom(c.node.VTEP, 8472), nil)
		begun := make(chan error, 1)
		go func() { begun <- c.member.ClaimAddress(ctx, id, addr, "web") }()
		time.Sleep(time.Second)
		if err := errors.Join(c.member.Leave(ctx), <-begun); err != nil {
			t.Error(err)
		}
		time.Sleep(time.Minute)
		if known, _ := a.heardOf(c.node.ID); known || strings.Contains(a.view("jobs"), "3:") {
			t.Errorf("it is known: %t; its part is %q", known, a.view("jobs"))
		}
		if err := a.member.ClaimAddress(ctx, id, addr, "web"); err != nil {
			t.Error(err)
		}
	})
}

// A user has removed a network while the store was away, and has the host leave as soon as
// it is back. All are told of both.
func TestLeavesWithRemovalUntold(t *testing.T) {
	three(t, func(w *world, a, b, c *host) {
		c.store.Cut(true)
		c.remove("jobs")
		time.Sleep(time.Minute)
		if err := c.member.Leave(context.Background()); !errors.Is(err, control.ErrUnreachable) {
			t.Errorf("left without a store: %v", err)
		}
		c.store.Cut(false)
		if err := c.member.Leave(context.Background()); err != nil {
			t.Fatal(err)
		}
		c.member.Disconnect()
		time.Sleep(time.Minute)
		w.absent("jobs", "when c, where it was removed, has left", a, b)
	})
}

// deadStore answers nothing when the host gives up its part.
type deadStore struct{ *memory.Store }

func (deadStore) LeaveNetwork(context.Context, topology.SharedID) error {
	time.Sleep(10 * time.Second)
	return control.ErrUnreachable
}

// While a host tries to leave, none of its networks gives out addresses. A store that does
// not answer is waited for once, and not once for each of them.
func TestLeavesManyNetworksOfDeadStore(t *testing.T) {
	three(t, func(_ *world, a, _, c *host) {
		for _, more := range []string{"10.6.0.0/16", "10.7.0.0/16", "10.8.0.0/16"} {
			spec := jobs(more)
			spec.Name = more
			if err := a.create(spec); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Minute)
		c.store = c.w.cluster.Host(c.node)
		c.member.Connect(deadStore{c.store})
		time.Sleep(time.Minute)
		if took, err := waits(c.member.Leave); took > 10*time.Second || !errors.Is(err, control.ErrUnreachable) {
			t.Errorf("after %s: %v", took, err)
		}
		time.Sleep(time.Second) // what it may have given up is verified
		if c.isSuspended() {
			t.Error("it gives out no addresses of what it has still")
		}
	})
}

// lossyStore forgets a host that leaves, and does not say so.
type lossyStore struct{ *memory.Store }

func (s lossyStore) RemoveNode(ctx context.Context, id topology.NodeID) error {
	return errors.Join(s.Store.RemoveNode(ctx, id), control.ErrUnreachable)
}

// A host that does not know whether it has left is a member still, as the others see it, too.
func TestDoesNotKnowWhetherItHasLeft(t *testing.T) {
	three(t, func(w *world, a, b, c *host) {
		c.store = w.cluster.Host(c.node)
		c.member.Connect(lossyStore{c.store})
		time.Sleep(time.Minute)
		if err := c.member.Leave(context.Background()); !errors.Is(err, control.ErrUnreachable) {
			t.Errorf("got %v", err)
		}
		time.Sleep(time.Minute)
		if known, _ := a.heardOf(c.node.ID); !known {
			t.Error("the others do not know of it")
		}
		w.agree("jobs", "it stays", a, b, c)
	})
}

// A host that does not know whether it has given up its part, since the store did not say so
// and is away, gives out no addresses that others may have.
func TestDoesNotKnowWhetherItHasGivenUp(t *testing.T) {
	three(t, func(w *world, a, b, c *host) {
		c.store = w.cluster.Host(c.node)
		c.member.Connect(vagueStore{c.store})
		time.Sleep(time.Minute)
		mine := c.find("jobs").Claims[0]
		if err := c.member.Leave(context.Background()); !errors.Is(err, control.ErrUnreachable) {
			t.Errorf("got %v", err)
		}
		time.Sleep(time.Hour)
		if !c.isSuspended() {
			t.Errorf("it gives out addresses of %s, which is anybody's", mine)
		}
		c.store.Cut(false)
		time.Sleep(time.Minute)
		if c.isSuspended() {
			t.Error("it gives out no addresses of what it has again")
		}
		w.agree("jobs", "it stays", a, b, c)
	})
}

// vagueStore does what a host that leaves asks for, and is not there to say so.
type vagueStore struct{ *memory.Store }

func (s vagueStore) LeaveNetwork(ctx context.Context, id topology.SharedID) error {
	err := s.Store.LeaveNetwork(ctx, id)
	s.Cut(true)
	return errors.Join(err, control.ErrUnreachable)
}
