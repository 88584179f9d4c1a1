package member_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/particle-net/particle/control/memory"
	"github.com/particle-net/particle/topology"
)

// leavings are the moments at which hosts leave a network: each reads all of it in the store.
type leavings struct {
	mu sync.Mutex
	at map[time.Time]int
}

// countedStore notes them.
type countedStore struct {
	*memory.Store
	left *leavings
}

func (s countedStore) LeaveNetwork(ctx context.Context, id topology.SharedID) error {
	s.left.mu.Lock()
	s.left.at[time.Now()]++
	s.left.mu.Unlock()
	return s.Store.LeaveNetwork(ctx, id)
}

// A network is removed, and all hosts hear of it at once. The store is not asked by all of
// them at that moment, and by each once.
func TestHostsLeaveOneAfterTheOther(t *testing.T) {
	const many = 20
	inWorld(t, many, func(w *world, hosts []*host) {
		left := &leavings{at: map[time.Time]int{}}
		for _, h := range hosts {
			h.store = w.cluster.Host(h.node)
			h.member.Connect(countedStore{h.store, left})
		}
		time.Sleep(time.Minute)
		if err := hosts[0].create(jobs("10.9.0.0/16")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		hosts[0].remove("jobs")
		time.Sleep(time.Minute)
		w.absent("jobs", "removed", hosts...)
		left.mu.Lock()
		defer left.mu.Unlock()
		most, all := 0, 0
		for _, n := range left.at {
			most, all = max(most, n), all+n
		}
		if most > many/4 || all != many {
			t.Errorf("%d hosts have asked %d times, %d times at one moment", many, all, most)
		}
	})
}

// Docker has removed a network that a process of a container still lives in. The host waits
// for its end, be it months away, and does not ask Docker for its networks each second.
func TestWaitForTheLastProcess(t *testing.T) {
	inWorld(t, 2, func(w *world, hosts []*host) {
		a, b := hosts[0], hosts[1]
		if err := a.create(jobs("10.9.0.0/16")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(soon)
		a.edit("jobs", func(n *docker) { n.containers, n.forgotten = 1, true })
		if err := a.member.Unshare(a.find("jobs").SharedNetwork.ID); err != nil {
			t.Fatal(err)
		}
		time.Sleep(soon)
		w.absent("jobs", "removed", b)
		asked := func() int {
			a.mu.Lock()
			defer a.mu.Unlock()
			return a.asked
		}
		before := asked()
		time.Sleep(5 * time.Minute)
		if n := asked() - before; n > 50 {
			t.Errorf("Docker was asked %d times in five minutes", n)
		}
		a.mu.Lock()
		clear(a.networks)
		a.mu.Unlock()
		time.Sleep(15 * time.Second)
		w.gone(a, b)
	})
}
