package etcd_test

import (
	"context"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/particle-net/particle/control"
	"github.com/particle-net/particle/control/controltest"
	"github.com/particle-net/particle/control/controltest/etcdtest"
	"github.com/particle-net/particle/control/etcd"
)

// load is hosts that claim and release all the time.
type load struct {
	t     *testing.T
	h     *controltest.History
	n     control.Network
	first *etcd.Store // of a host that has nothing
	hosts []*loadHost
	steps chan struct{} // gets one for each step of any host
	end   context.CancelFunc
	ended sync.WaitGroup
}

// loadHost is one of them.
type loadHost struct {
	controltest.Recorded
	tasks chan func() // done between two of its steps
	have  []control.Claim
}

// begin starts hosts, of each of which ways has the endpoints that it knows. They go on
// until stop.
func begin(t *testing.T, ways [][]string) *load {
	t.Helper()
	n := controltest.Network(1)
	n.Subnets = []control.Subnet{{Prefix: netip.MustParsePrefix("10.5.0.0/24"), Block: 27}}
	first := etcd.Opened(t, etcd.Options{Endpoints: ways[0], Node: controltest.Node(1000)})
	vni, err := first.ClaimNetwork(t.Context(), n)
	if err != nil {
		t.Fatal(err)
	}
	n.VNI = vni
	ctx, cancel := context.WithCancel(t.Context())
	l := &load{t: t, h: controltest.NewHistory(n), n: n, first: first, steps: make(chan struct{}), end: cancel}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	for i, endpoints := range ways {
		node := controltest.Node(i + 1)
		store := etcd.Opened(t, etcd.Options{Endpoints: endpoints, Node: node})
		host := &loadHost{Recorded: l.h.Record(store, node.ID), tasks: make(chan func())}
		l.hosts = append(l.hosts, host)
		rng := rand.New(rand.NewPCG(seed, uint64(i)))
		l.ended.Go(func() { l.run(ctx, host, rng) })
	}
	return l
}

func (l *load) run(ctx context.Context, host *loadHost, rng *rand.Rand) {
	for ctx.Err() == nil {
		asking, done := context.WithTimeout(context.WithoutCancel(ctx), 700*time.Millisecond)
		host.have = controltest.Churn(asking, host, l.n, rng, host.have)
		done()
		select {
		case l.steps <- struct{}{}:
		case do := <-host.tasks:
			do()
		case <-ctx.Done():
		}
	}
}

// pass waits until the hosts have taken so many steps more.
func (l *load) pass(steps int) {
	for range steps {
		<-l.steps
	}
}

// each has every host do something between two of its steps, and waits for all.
func (l *load) each(do func(*loadHost)) {
	var all sync.WaitGroup
	for _, host := range l.hosts {
		all.Add(1)
		host.tasks <- func() {
			defer all.Done()
			do(host)
		}
	}
	all.Wait()
}

// stop ends the hosts and checks what they have seen.
func (l *load) stop() {
	l.t.Helper()
	l.end()
	l.ended.Wait()
	all, unknown := l.h.Len()
	l.t.Logf("%d operations, %d of unknown outcome", all, unknown)
	controltest.Check(l.t, l.h)
}

// Hosts claim and release while etcd is killed, loses what it had or a part of it,
// and forgets leases and history, and while some of them are parted from it, so that
// questions and answers arrive late or never.
func TestClaimsUnderFaults(t *testing.T) {
	releases(t, func(t *testing.T, release string) {
		srv := etcdtest.Start(t, release)
		var gates []*etcdtest.Gate
		var ways [][]string
		for range 6 {
			g := etcdtest.NewGate(t, srv)
			gates, ways = append(gates, g), append(ways, []string{g.Endpoint()})
		}
		l := begin(t, ways)
		gate := etcdtest.NewGate(t, srv)
		watched := controltest.Follow(t, open(t, gate.Endpoint(), controltest.Node(1001)).WatchRoutes(t.Context(), l.n), controltest.Key)
		for round := range 2 {
			for i, strike := range []func(){
				func() { // killed
					srv.Kill()
					l.pass(2) // somebody has asked in vain
					srv.Restart()
				},
				func() { // parted from one host
					gate := gates[round]
					gate.Close()
					l.pass(40)
					gate.Open()
				},
				func() { // frozen
					srv.Freeze()
					l.pass(2)
					srv.Thaw()
				},
				func() { srv.Expire("/alive") }, // claims have no lease
				func() { // compacted, while one does not hear of what is forgotten
					gate.Close()
					l.pass(20)
					srv.Compact()
					gate.Open()
				},
				func() { // set back
					srv.Save()
					l.each(func(host *loadHost) { host.look(l) }) // all know that it was newer
					l.pass(60)
					l.loses(srv, srv.Load)
				},
				func() { l.loses(srv, srv.Wipe) },
			} {
				l.pass(20 + 5*i)
				strike()
			}
		}
		l.pass(40)
		l.settles(srv)
		l.stop()
		for _, host := range l.hosts {
			host.reclaim(l) // an answer may have been lost
		}
		// Who has watched from the start knows exactly what is there in the end.
		watched.Until("what the hosts have", func() bool { return watched.Down == nil && l.same(watched.Have) })
	})
}

// etcd is upgraded as docs/operations.md says: one of three servers after the other gets
// the next release, and when all are well, the release after that. Claims go on
// meanwhile, and all of them are there at the end.
func TestUpgradeUnderLoad(t *testing.T) {
	t.Parallel()
	servers := etcdtest.StartCluster(t, etcdtest.Debian, 3)
	endpoints := endpointsOf(servers)
	keeper := etcd.Opened(t, etcd.Options{Endpoints: endpoints, Node: controltest.Node(500)})
	n := controltest.Network(2)
	if _, err := keeper.ClaimNetwork(t.Context(), n); err != nil {
		t.Fatal(err)
	}
	routes := controltest.Follow(t, keeper.WatchRoutes(t.Context(), n), controltest.Key)
	kept := 0
	claim := func() {
		t.Helper()
		if _, err := keeper.ClaimBlock(t.Context(), n.ID, n.Subnets[0].Prefix); err != nil {
			t.Fatal(err)
		}
		kept++
	}
	for range 40 {
		claim()
	}
	routes.UntilHave(kept)
	instance := keeper.Instance()
	l := begin(t, slices.Repeat([][]string{endpoints}, 4))
	for _, release := range []string{etcdtest.V35, etcdtest.V36, etcdtest.Current} {
		for _, s := range servers {
			l.pass(30)
			s.Upgrade(release)
			claim()
			routes.UntilHave(kept) // by the same watch, which may not even have noticed
			if keeper.Instance() != instance {
				t.Errorf("etcd %s: instance %s, want %s", release, keeper.Instance(), instance)
			}
		}
		for _, s := range servers {
			s.Await()
			if v := s.Version(); !strings.HasPrefix(v, release+".") {
				t.Errorf("etcd %s runs, want %s", v, release)
			}
		}
		t.Logf("etcd %s runs", release)
	}
	l.pass(100)
	l.stop()
	if err := keeper.Healthy(); err != nil {
		t.Error(err)
	}
}
