package etcd_test

import (
	"testing"
	"time"

	"github.com/particle-net/particle/control/controltest"
	"github.com/particle-net/particle/control/controltest/etcdtest"
	"github.com/particle-net/particle/control/etcd"
)

// A host that does not come back loses its claims, whoever is there to see it; one
// that lives does not.
func TestHostThatStaysAwayIsRemoved(t *testing.T) {
	srv := etcdtest.Start(t, etcdtest.Current)
	watcher := func(i int, lease time.Duration) *etcd.Store {
		return opened(t, etcd.Options{
			Endpoints: []string{srv.Endpoint()}, Node: controltest.Node(i), LeaseTTL: lease, Abandon: 2 * time.Second,
		})
	}
	n := controltest.Network(1)
	// One is looked for every third of a lease, and must renew its own in time.
	gone, stays := watcher(1, time.Second), watcher(2, 30*time.Second)
	watcher(3, time.Second)
	if _, err := gone.ClaimNetwork(t.Context(), n); err != nil {
		t.Fatal(err)
	}
	for _, s := range []*etcd.Store{gone, stays} {
		if _, err := s.ClaimBlock(t.Context(), n.ID, n.Subnets[0].Prefix); err != nil {
			t.Fatal(err)
		}
	}
	routes := controltest.Follow(t, stays.WatchRoutes(t.Context(), n), controltest.Key)
	routes.UntilHave(2)
	if err := gone.Close(); err != nil {
		t.Fatal(err)
	}
	routes.UntilHave(1)
	for k := range routes.Have {
		if k.Node != controltest.Node(2).ID {
			t.Errorf("the claim of a living host has gone; left: %v", k)
		}
	}
}
