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

// Each network's claims are compared with the store's again and again. That is no
// reason to look at all networks each time.
func TestNetworksAreLookedAtOneByOne(t *testing.T) {
	inWorld(t, 1, func(_ *world, hosts []*host) {
		a := hosts[0]
		const many = 30
		for i := range many {
			spec := jobs(fmt.Sprintf("10.%d.0.0/16", i))
			spec.Name = fmt.Sprintf("jobs%d", i)
			if err := a.create(spec); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Minute)
		a.mu.Lock()
		a.surveyed = 0
		a.mu.Unlock()
		time.Sleep(time.Hour)
		a.mu.Lock()
		defer a.mu.Unlock()
		if passes := int(time.Hour / (10 * time.Second)); a.surveyed > 2*passes {
			t.Errorf("all were looked at %d times in an hour, which has %d passes", a.surveyed, passes)
		}
	})
}

// One host after the other comes to a network of a thousand. What the disk has of it are
// all routes each time: it is written several times a minute, and not each second.
func TestStreamOfRoutesIsWrittenNowAndThen(t *testing.T) {
	inWorld(t, 1, func(w *world, hosts []*host) {
		a := hosts[0]
		s := fed{w.cluster.Host(a.node), make(chan control.Update[control.Route])}
		a.member.Connect(s)
		time.Sleep(time.Second)
		if err := a.create(jobs("10.0.0.0/8")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(soon)
		id := a.find("jobs").SharedNetwork.ID
		at := func(i int) control.Route {
			return control.Route{
				Network: id, Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 9, byte(i >> 8), byte(i)}), 32), Node: topology.NodeID(fmt.Sprintf("%032d", i)),
				VTEP: netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)}),
			}
		}
		const there, come = 1000, 300
		u := control.Update[control.Route]{Whole: true, Instance: "a", Revision: 1}
		for i := range there {
			u.Put = append(u.Put, at(i))
		}
		s.routes <- u
		time.Sleep(time.Minute)
		written := func() (all int) {
			a.mu.Lock()
			defer a.mu.Unlock()
			a.disk.mu.Lock()
			defer a.disk.mu.Unlock()
			return a.kept + a.disk.puts
		}
		before := written()
		for i := range come {
			s.routes <- control.Update[control.Route]{Revision: int64(i + 2), Put: []control.Route{at(there + i)}}
			time.Sleep(time.Second)
		}
		if n := written() - before; n > come/2 {
			t.Errorf("%d routes, one a second: written %d times", come, n)
		}
		time.Sleep(10 * time.Second)
		n := a.find("jobs")
		a.mu.Lock()
		defer a.mu.Unlock()
		if len(n.peers) != there+come || len(n.saved) != there+come {
			t.Errorf("of %d peers %d are on disk", len(n.peers), len(n.saved))
		}
	})
}
