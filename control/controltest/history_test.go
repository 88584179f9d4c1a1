package controltest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/particle-net/particle/control"
	"github.com/particle-net/particle/control/memory"
	"github.com/particle-net/particle/topology"
)

// broken is an allocator with a fault: it answers from what it knew a moment
// ago, as one does that reads and then writes without comparing.
type broken struct {
	control.Allocator
	node topology.NodeID
	fail func(o string) bool
}

func (b broken) ClaimBlock(ctx context.Context, id topology.SharedID, subnet netip.Prefix) (control.Claim, error) {
	c, err := b.Allocator.ClaimBlock(ctx, id, subnet)
	if err == nil && b.fail("block") {
		c.Prefix = netip.MustParsePrefix("10.5.0.0/26")
	}
	return c, err
}

func (b broken) ClaimAddress(ctx context.Context, id topology.SharedID, addr netip.Addr, holder string) (control.Claim, error) {
	c, err := b.Allocator.ClaimAddress(ctx, id, addr, holder)
	if errors.Is(err, control.ErrTaken) && b.fail("address") {
		return control.Claim{Network: id, Prefix: netip.PrefixFrom(addr, 32), Node: b.node}, nil
	}
	return c, err
}

func (b broken) Release(ctx context.Context, c control.Claim) error {
	if b.fail("release") {
		return nil
	}
	return b.Allocator.Release(ctx, c)
}

func (b broken) ClaimNetwork(ctx context.Context, n control.Network) (topology.VNI, error) {
	vni, err := b.Allocator.ClaimNetwork(ctx, n)
	if errors.Is(err, control.ErrTaken) && b.fail("network") {
		return n.VNI, nil
	}
	return vni, err
}

func (b broken) NameNetwork(ctx context.Context, n control.Network) error {
	err := b.Allocator.NameNetwork(ctx, n)
	if errors.Is(err, control.ErrTaken) && b.fail("name") {
		return nil
	}
	return err
}

// work has hosts claim and release at once, and returns the history.
func work(t *testing.T, lossy bool, fault string) *History {
	t.Helper()
	c := memory.New()
	n := Network(1)
	n.Subnets = []control.Subnet{{Prefix: netip.MustParsePrefix("10.5.0.0/24"), Block: 26}}
	h := NewHistory(n)
	if _, err := c.Host(Node(1)).ClaimNetwork(t.Context(), n); err != nil {
		t.Fatal(err)
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	var all sync.WaitGroup
	for i := range 4 {
		host := c.Host(Node(i + 1))
		rng := rand.New(rand.NewPCG(seed, uint64(i)))
		a := h.Record(broken{host, Node(i + 1).ID, func(o string) bool { return o == fault }}, Node(i+1).ID)
		all.Go(func() {
			var have []control.Claim
			for j := range 60 {
				host.LoseReplies(lossy && rng.IntN(20) == 0)
				have = Churn(t.Context(), a, n, rng, have)
				if j%10 == 0 {
					k := rng.IntN(6)
					other := Network(1000 + k)
					other.VNI = topology.VNI(1 + k%4)
					other.Name = fmt.Sprint(k % 2) // of 0, 2 and 4, or 1, 3 and 5, of which some are registered
					_, _ = a.ClaimNetwork(t.Context(), other)
					_ = a.NameNetwork(t.Context(), other)
				}
			}
		})
	}
	all.Wait()
	return h
}

func TestHistoryOfGoodStore(t *testing.T) {
	for _, lossy := range []bool{false, true} {
		Check(t, work(t, lossy, ""))
	}
}

func TestHistoryCatchesFaults(t *testing.T) {
	for _, fault := range []string{"block", "address", "release", "network", "name"} {
		t.Run(fault, func(t *testing.T) {
			if err := work(t, false, fault).check(); !errors.Is(err, errOrder) {
				t.Errorf("the history of a broken store was accepted: %v", err)
			}
		})
	}
}
