package etcd_test

import (
	"context"
	"math/rand/v2"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/particle-net/particle/control"
	"github.com/particle-net/particle/control/controltest"
	"github.com/particle-net/particle/control/controltest/etcdtest"
)

// load is hosts that claim and release all the time, each by a gate of its own.
type load struct {
	t     *testing.T
	h     *controltest.History
	n     control.Network
	gates []*etcdtest.Gate
	done  chan struct{} // closed when all hosts have taken their steps
	steps chan struct{} // gets one for each step of any host
	end   context.CancelFunc
}

// begin starts the hosts; each takes so many steps, or goes on until stop if
// that is 0.
func begin(t *testing.T, srv *etcdtest.Server, hosts, steps int) *load {
	t.Helper()
	n := controltest.Network(1)
	n.Subnets = []control.Subnet{{Prefix: netip.MustParsePrefix("10.5.0.0/24"), Block: 27}}
	first := open(t, srv.Endpoint(), controltest.Node(1000))
	vni, err := first.ClaimNetwork(t.Context(), n)
	if err != nil {
		t.Fatal(err)
	}
	n.VNI = vni
	ctx, cancel := context.WithCancel(t.Context())
	l := &load{t: t, h: controltest.NewHistory(n), n: n, done: make(chan struct{}), steps: make(chan struct{}), end: cancel}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	var all sync.WaitGroup
	for i := range hosts {
		g := etcdtest.NewGate(t, srv)
		l.gates = append(l.gates, g)
		node := controltest.Node(i + 1)
		a := l.h.Record(open(t, g.Endpoint(), node), node.ID)
		rng := rand.New(rand.NewPCG(seed, uint64(i)))
		all.Go(func() {
			var have []control.Claim
			for j := 0; (steps == 0 || j < steps) && ctx.Err() == nil; j++ {
				asking, done := context.WithTimeout(context.WithoutCancel(ctx), 700*time.Millisecond)
				have = controltest.Churn(asking, a, n, rng, have)
				done()
				select {
				case l.steps <- struct{}{}:
				case <-ctx.Done():
				}
			}
		})
	}
	go func() {
		all.Wait()
		close(l.done)
	}()
	return l
}

// pass waits until the hosts have taken so many steps more; false if they have
// finished before.
func (l *load) pass(steps int) bool {
	for range steps {
		select {
		case <-l.steps:
		case <-l.done:
			return false
		}
	}
	return true
}

// stop ends the hosts and checks what they have seen.
func (l *load) stop() {
	l.t.Helper()
	l.end()
	<-l.done
	all, unknown := l.h.Len()
	l.t.Logf("%d operations, %d of unknown outcome", all, unknown)
	controltest.Check(l.t, l.h)
}

// Hosts claim and release while etcd is killed and while some of them are parted
// from it, so that questions and answers arrive late or never.
func TestClaimsUnderFaults(t *testing.T) {
	releases(t, func(t *testing.T, release string) {
		srv := etcdtest.Start(t, release)
		l := begin(t, srv, 6, 150)
		for round := 0; l.pass(60); round++ {
			gate := l.gates[round%len(l.gates)]
			switch round % 3 {
			case 0:
				srv.Kill()
				l.pass(2) // somebody has asked in vain
				srv.Restart()
			case 1:
				gate.Close()
				l.pass(40)
				gate.Open()
			case 2:
				srv.Freeze()
				l.pass(2)
				srv.Thaw()
			}
		}
		l.stop()
	})
}

// etcd is supported to step from one minor release to the next; claims go on
// meanwhile, and all of them are there at the end.
func TestUpgradeUnderLoad(t *testing.T) {
	t.Parallel()
	srv := etcdtest.Start(t, etcdtest.Debian)
	keeper := open(t, srv.Endpoint(), controltest.Node(500))
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
	l := begin(t, srv, 4, 0)
	for _, release := range []string{etcdtest.V35, etcdtest.V36, etcdtest.Current} {
		l.pass(100)
		srv.Upgrade(release)
		t.Logf("etcd %s runs", release)
		l.pass(100)
		claim()
		routes.UntilHave(kept) // by the same watch, which may not even have noticed
		if keeper.Instance() != instance {
			t.Errorf("etcd %s: instance %s, want %s", release, keeper.Instance(), instance)
		}
	}
	l.stop()
}
