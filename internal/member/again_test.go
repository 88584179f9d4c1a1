package member_test

import (
	"context"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/particle-net/particle/control"
	"github.com/particle-net/particle/internal/member"
	"github.com/particle-net/particle/topology"
)

// Docker has lost a network, and so has the fabric (sweepNetworks): it is made again, with
// its routes to the other hosts.
func TestMadeAgainHasItsPeers(t *testing.T) {
	three(t, func(w *world, a, b, c *host) {
		id := b.find("jobs").Network
		b.mu.Lock()
		delete(b.networks, id)
		b.mu.Unlock()
		time.Sleep(10 * time.Minute)
		w.agree("jobs", "made again", a, b, c)
	})
}

// wiped answers the next claim of a block as a store does that has lost all and was not
// given the network back yet.
type wiped struct {
	member.Store
	once *atomic.Bool
}

func (s wiped) ClaimBlock(ctx context.Context, id topology.SharedID, subnet netip.Prefix) (control.Claim, error) {
	if s.once.CompareAndSwap(false, true) {
		return control.Claim{}, control.ErrNoNetwork
	}
	return s.Store.ClaimBlock(ctx, id, subnet)
}

// The fabric says Low once: it is not forgotten because the store did not have the network then.
func TestLowIsNotForgotten(t *testing.T) {
	inSmall(t, 1, func(w *world, hosts []*host) {
		a := hosts[0]
		a.member.Connect(wiped{w.cluster.Host(a.node), new(atomic.Bool)})
		time.Sleep(soon)
		a.member.Low(a.find("jobs").SharedNetwork.ID, small)
		time.Sleep(time.Hour)
		if got := a.blocks(); len(got) != 2 {
			t.Errorf("an hour later a has %v, want 2 blocks", got)
		}
	})
}

// heard is what happens when a log says something.
type heard struct {
	said string
	do   func()
}

func (h heard) Levels() []logrus.Level { return logrus.AllLevels }

func (h heard) Fire(e *logrus.Entry) error {
	if e.Message == h.said {
		h.do()
	}
	return nil
}

// A pass has decided that no addresses are given out, and its log is not read until the
// claims are verified again: it does not have the last word.
func TestSuspendedNoLongerThanUnverified(t *testing.T) {
	inSmall(t, 1, func(w *world, hosts []*host) {
		a := hosts[0]
		w.log.Logger.AddHook(heard{"no new addresses until the claims are verified", func() {
			a.store.Cut(false)
			time.Sleep(3 * time.Second)
		}})
		a.store.Cut(true)
		time.Sleep(14 * time.Hour)
		id := a.find("jobs").SharedNetwork.ID
		a.mu.Lock()
		defer a.mu.Unlock()
		if why := a.suspended[id]; why != nil {
			t.Errorf("the store is there for two hours, and no addresses are given out: %v", why)
		}
	})
}

// slowRelease takes its time for blocks.
type slowRelease struct{ member.Store }

func (s slowRelease) Release(ctx context.Context, c control.Claim) error {
	if !c.Prefix.IsSingleIP() {
		time.Sleep(4 * time.Second)
	}
	return s.Store.Release(ctx, c)
}

// After a restart of the host the store has an address for it that nobody here has, and a
// block whose claim was not answered. A container asks for the address while the block is
// given up.
func TestAddressClaimedWhileStraysGo(t *testing.T) {
	inSmall(t, 2, func(w *world, hosts []*host) {
		a, b := hosts[0], hosts[1]
		id := a.find("jobs").SharedNetwork.ID
		a.store = w.cluster.Host(a.node)
		a.member.Connect(slowRelease{a.store})
		time.Sleep(soon)
		a.store.Cut(true)
		time.Sleep(time.Second)
		other := w.cluster.Host(a.node)
		if _, err := other.ClaimBlock(context.Background(), id, small); err != nil {
			t.Fatal(err)
		}
		addr := netip.MustParseAddr("10.9.0.56")
		if _, err := other.ClaimAddress(context.Background(), id, addr, ""); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		a.store.Cut(false)
		time.Sleep(time.Second)
		if err := a.member.ClaimAddress(context.Background(), id, addr, "web"); err != nil {
			t.Fatal(err)
		}
		for range 20 {
			time.Sleep(500 * time.Millisecond)
			if err := b.member.ClaimAddress(context.Background(), id, addr, "other"); err == nil {
				t.Fatalf("%s was given to a container on a and to one on b", addr)
			}
		}
	})
}
