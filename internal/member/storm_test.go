package member_test

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/particle-net/particle/control"
	"github.com/particle-net/particle/control/memory"
	"github.com/particle-net/particle/topology"
)

// fed is a store whose routes come one by one, as the test tells them.
type fed struct {
	*memory.Store
	routes chan control.Update[control.Route]
}

func (s fed) WatchRoutes(ctx context.Context, n control.Network) <-chan control.Update[control.Route] {
	out := make(chan control.Update[control.Route])
	go func() {
		defer close(out)
		for {
			select {
			case u := <-s.routes:
				out <- u
			case <-ctx.Done():
				return
			}
		}
	}()
	return out
}

// One host after another announces its block, faster than the kernel and the disk
// can take them: they are taken many at a time, and all of them.
func TestStormOfRoutes(t *testing.T) {
	inWorld(t, 1, func(w *world, hosts []*host) {
		a := hosts[0]
		s := fed{w.cluster.Host(a.node), make(chan control.Update[control.Route])}
		a.member.Connect(s)
		time.Sleep(time.Second)
		if err := a.create(jobs("10.9.0.0/16")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(soon)
		s.routes <- control.Update[control.Route]{Whole: true, Instance: "a", Revision: 1}
		time.Sleep(soon)
		a.mu.Lock()
		a.slow, a.told, a.kept = 100*time.Millisecond, 0, 0
		a.mu.Unlock()
		id := a.find("jobs").SharedNetwork.ID
		const many = 200
		tell := func(i int) {
			s.routes <- control.Update[control.Route]{Revision: int64(i + 2), Put: []control.Route{{
				Network: id, Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 9, byte(i + 1), 0}), 24), Node: topology.NodeID(fmt.Sprintf("%032d", i)), VTEP: netip.AddrFrom4([4]byte{192, 0, 3, byte(i)}),
			}}}
		}
		began := time.Now()
		for i := range many {
			tell(i)
		}
		if took := time.Since(began); took > 0 {
			t.Errorf("the watch waited for %s", took)
		}
		time.Sleep(soon)
		n := a.find("jobs")
		a.mu.Lock()
		defer a.mu.Unlock()
		if len(n.peers) != many || len(n.saved) != many || a.told > 4 || a.kept > 4 {
			t.Errorf("%d peers, of which %d are on disk; told %d times, written %d times", len(n.peers), len(n.saved), a.told, a.kept)
		}
		// With time enough for each the kernel has it at once, and the disk soon.
		a.slow, a.told, a.kept, a.listed = 0, 0, 0, 0
		a.mu.Unlock()
		for i := range 50 {
			tell(many + i)
			time.Sleep(20 * time.Millisecond)
		}
		time.Sleep(soon)
		a.mu.Lock()
		if len(n.saved) != many+50 || a.told != 50 || a.kept > 3 {
			t.Errorf("%d of %d peers are on disk; told %d times, written %d times", len(n.saved), len(n.peers), a.told, a.kept)
		}
		for _, p := range n.peers {
			if !slices.Contains(a.members, p.VTEP) {
				t.Errorf("%s is not let in", p.VTEP)
			}
		}
		if a.listed > 0 {
			t.Errorf("all who are let in were told %d times", a.listed)
		}
	})
}
