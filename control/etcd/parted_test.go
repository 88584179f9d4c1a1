package etcd_test

import (
	"context"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/particle-net/particle/control"
	"github.com/particle-net/particle/control/controltest"
	"github.com/particle-net/particle/control/controltest/etcdtest"
	"github.com/particle-net/particle/control/etcd"
	"github.com/particle-net/particle/topology"
)

// untilWhole reads a watch up to its list.
func untilWhole(watch <-chan control.Update[control.Network]) {
	for !(<-watch).Whole {
	}
}

// untilHas is the next update that has a network, or says that there is no store.
func untilHas(watch <-chan control.Update[control.Network], n control.Network) control.Update[control.Network] {
	for {
		u := <-watch
		if u.Down != nil || slices.ContainsFunc(u.Put, func(have control.Network) bool { return have.ID == n.ID }) {
			return u
		}
	}
}

// A server that has lost the others serves nobody, and a host that has it among its
// servers does not even notice: it is never without a store.
func TestServerThatLostTheOthers(t *testing.T) {
	releases(t, func(t *testing.T, release string) {
		srv, lost := etcdtest.Start(t, release), etcdtest.StartCluster(t, release, 2)
		lost[1].Kill()
		parted := lost[0].Client()
		for leader := uint64(1); leader != 0; {
			status, err := parted.Status(t.Context(), lost[0].Endpoint())
			if err != nil {
				t.Fatal(err)
			}
			leader = status.Leader
		}
		for i := range 20 {
			ctx := t.Context()
			s := etcd.Opened(t, etcd.Options{Endpoints: []string{lost[0].Endpoint(), srv.Endpoint()}, Node: controltest.Node(i + 1), LeaseTTL: time.Second})
			n := controltest.Network(i + 1)
			if _, err := s.ClaimNetwork(ctx, n); err != nil {
				t.Fatal(err)
			}
			networks := s.WatchNetworks(ctx)
			u := untilHas(networks, n)
			for u.Down != nil && strings.Contains(u.Down.Error(), "not answered yet") {
				u = untilHas(networks, n)
			}
			if u.Down != nil {
				t.Fatalf("host %d: %v", i+1, u.Down)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// A server that hangs keeps nobody waiting for long, and nobody takes the store for down.
// A watch that was its own goes on with another.
func TestServerThatHangs(t *testing.T) {
	releases(t, func(t *testing.T, release string) {
		servers := etcdtest.StartCluster(t, release, 3)
		endpoints := endpointsOf(servers)
		hosts := make([]*etcd.Store, 6)
		watches := make([]<-chan control.Update[control.Network], len(hosts))
		for i := range hosts {
			hosts[i] = etcd.Opened(t, etcd.Options{Endpoints: endpoints, Node: controltest.Node(i + 1), LeaseTTL: 6 * time.Second})
			watches[i] = hosts[i].WatchNetworks(t.Context())
			untilWhole(watches[i])
		}
		servers[0].Freeze()
		defer servers[0].Thaw()
		for n := range 10 {
			network := controltest.Network(n + 1)
			if _, err := hosts[n%len(hosts)].ClaimNetwork(t.Context(), network); err != nil {
				t.Fatal(err)
			}
			for i, watch := range watches {
				if u := untilHas(watch, network); u.Down != nil {
					t.Fatalf("host %d: %v", i+1, u.Down)
				}
			}
		}
	})
}

// One whose disk hangs keeps its connections, and even so no watch stays with it.
func TestWatchLeavesServerThatIsSilent(t *testing.T) {
	releases(t, func(t *testing.T, release string) {
		servers := etcdtest.StartCluster(t, release, 2)
		gate := etcdtest.NewGate(t, servers[0])
		endpoints := []string{gate.Endpoint(), servers[1].Endpoint()}
		writer := etcd.Opened(t, etcd.Options{Endpoints: endpoints[1:], Node: controltest.Node(100)})
		var watches []*controltest.Table[topology.SharedID, control.Network]
		for i := range 8 {
			s := etcd.Opened(t, etcd.Options{Endpoints: endpoints, Node: controltest.Node(i + 1), LeaseTTL: 6 * time.Second})
			watches = append(watches, controltest.Follow(t, s.WatchNetworks(t.Context()), func(n control.Network) topology.SharedID { return n.ID }))
			for n := range 9 { // which share a stream with that
				go func() {
					for range s.WatchRoutes(t.Context(), controltest.Network(n+2)) {
					}
				}()
			}
		}
		for _, w := range watches {
			w.UntilHave(0)
		}
		gate.Mute()
		if _, err := writer.ClaimNetwork(t.Context(), controltest.Network(1)); err != nil {
			t.Fatal(err)
		}
		for _, w := range watches {
			w.UntilHave(1)
		}
	})
}

// Hosts that ask much at once do not notice either that one of three servers is silent:
// who has met it once does not turn to it soon again.
func TestServerThatIsSilent(t *testing.T) {
	releases(t, func(t *testing.T, release string) {
		servers := etcdtest.StartCluster(t, release, 3)
		gate := etcdtest.NewGate(t, servers[0])
		endpoints := append([]string{gate.Endpoint()}, endpointsOf(servers[1:])...)
		ctx, cancel := context.WithCancel(t.Context())
		var asking, watching sync.WaitGroup
		var hosts []*etcd.Store
		for i := range 6 {
			hosts = append(hosts, etcd.Opened(t, etcd.Options{Endpoints: endpoints, Node: controltest.Node(i + 1), LeaseTTL: 6 * time.Second}))
			networks := hosts[i].WatchNetworks(ctx)
			untilWhole(networks)
			watching.Go(func() {
				for u := range networks {
					if u.Down != nil {
						t.Errorf("host %d: %v", i+1, u.Down)
					}
				}
			})
		}
		gate.Mute()
		for i, host := range hosts {
			for k := range 4 {
				asking.Go(func() {
					for n := range 20 {
						if _, err := host.ClaimNetwork(ctx, controltest.Network(1000*i+100*k+n)); err != nil {
							t.Errorf("host %d: %v", i+1, err)
						}
					}
				})
			}
		}
		asking.Wait()
		cancel()
		watching.Wait()
	})
}

// A watch that has nothing to tell is not begun anew.
func TestQuietWatchGoesOn(t *testing.T) {
	releases(t, func(t *testing.T, release string) {
		srv := etcdtest.Start(t, release)
		s := etcd.Opened(t, etcd.Options{Endpoints: []string{srv.Endpoint()}, Node: controltest.Node(1), LeaseTTL: 6 * time.Second})
		networks := s.WatchNetworks(t.Context())
		untilWhole(networks)
		etcd := srv.Client()
		for renewals, last := 0, int64(0); renewals < 8; { // the keeper looks three times in each lease
			leases, err := etcd.Leases(t.Context())
			if err != nil || len(leases.Leases) == 0 {
				t.Fatalf("leases: %v, %v", leases, err)
			}
			left, err := etcd.TimeToLive(t.Context(), leases.Leases[0].ID)
			if err != nil {
				t.Fatal(err)
			}
			if left.TTL > last {
				renewals++
			}
			last = left.TTL
			if _, err := etcd.Put(t.Context(), "/elsewhere", ""); err != nil {
				t.Fatal(err)
			}
			select {
			case u := <-networks:
				t.Fatalf("told %+v", u)
			default:
			}
		}
	})
}
