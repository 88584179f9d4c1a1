package member_test

import (
	"context"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/particle-net/particle/control"
	"github.com/particle-net/particle/control/memory"
	"github.com/particle-net/particle/topology"
)

// apart is a store that decides who owns what, and another one tells who answers for
// what, which knows nothing of claims, networks and hosts.
type apart struct {
	*memory.Store
	teller control.Distributor
}

func (a apart) Announce(ctx context.Context, r control.Route) error {
	return a.teller.Announce(ctx, r)
}

func (a apart) Withdraw(ctx context.Context, r control.Route) error {
	return a.teller.Withdraw(ctx, r)
}

func (a apart) WatchRoutes(ctx context.Context, n control.Network) <-chan control.Update[control.Route] {
	return a.teller.WatchRoutes(ctx, n)
}

// What distributes routes needs not be what allocates addresses: hosts announce what they
// claim and withdraw what they release, and that of another stands while it is away.
func TestDistributorApart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.cluster = memory.New()
		tellers := memory.New()
		defer func() {
			for _, stop := range w.stop {
				stop()
			}
		}()
		var hosts []*host
		var teller []*memory.Store
		for i := range 3 {
			h := w.host(i)
			h.start()
			h.store = w.cluster.Host(h.node)
			teller = append(teller, tellers.Host(h.node))
			h.member.Connect(apart{h.store, teller[i]})
			hosts = append(hosts, h)
		}
		time.Sleep(time.Second)
		if err := hosts[0].create(jobs("10.9.0.0/16")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		w.agree("jobs", "made", hosts...)

		id := topology.SharedID(hosts[0].find("jobs").Network)
		addr := netip.MustParseAddr("10.9.200.1")
		if err := hosts[1].member.ClaimAddress(t.Context(), id, addr, "c"); err != nil {
			t.Fatal(err)
		}
		has := func() bool {
			for _, p := range hosts[2].find("jobs").peers {
				for _, prefix := range p.Prefixes {
					if prefix.Addr() == addr {
						return true
					}
				}
			}
			return false
		}
		time.Sleep(10 * time.Second)
		if !has() {
			t.Error("an address that was claimed is not told")
		}
		teller[1].Cut(true)
		teller[2].Cut(true)
		time.Sleep(time.Hour)
		if !has() {
			t.Error("a route is gone while its distributor is away")
		}
		teller[1].Cut(false)
		teller[2].Cut(false)
		hosts[1].member.ReleaseAddress(id, addr)
		time.Sleep(time.Minute)
		if has() {
			t.Error("an address that was released is still told")
		}
		w.agree("jobs", "in the end", hosts...)
	})
}
