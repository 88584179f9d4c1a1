package etcd

import (
	"context"
	"errors"
	"net/netip"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/particle-net/particle/control"
	"github.com/particle-net/particle/control/controltest"
	"github.com/particle-net/particle/control/controltest/etcdtest"
	"github.com/particle-net/particle/topology"
)

// unkept is a store that its keeper does not look at.
func unkept(t *testing.T, o Options) *Store {
	t.Helper()
	if err := o.complete(); err != nil {
		t.Fatal(err)
	}
	s := &Store{o: o, k: keys(o.Prefix), log: o.Log, node: o.Node, wake: make(chan struct{}, 1), down: errUnknown, changed: make(chan struct{})}
	s.ctx, s.cancel = context.WithCancel(t.Context())
	if err := s.connect(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// Between the answer of which store it is and that of whether another host has this one's
// id nothing is claimed, and nothing given back: it may be that one's.
func TestNothingIsAskedBeforeTheFirstLook(t *testing.T) {
	t.Parallel()
	s := unkept(t, Options{Endpoints: []string{etcdtest.Start(t, etcdtest.Current).Endpoint()}, Node: controltest.Node(1)})
	nothing := func(context.Context) error { return nil }
	me := s.self().ID
	got, revision, err := s.read(t.Context(), clientv3.OpGet(s.k.instance()), clientv3.OpGet(s.k.info(me)), clientv3.OpGet(s.k.alive(me)), clientv3.OpGet(s.k.lost(me)))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.identify(t.Context(), got[0], revision); err != nil {
		t.Fatal(err)
	}
	if err := s.try(t.Context(), nothing); !errors.Is(err, errUnknown) {
		t.Errorf("an operation before the look: %v", err)
	}
	if err := s.enlist(t.Context(), got[1], got[2], got[3]); err != nil {
		t.Fatal(err)
	}
	if err := s.try(t.Context(), nothing); err != nil {
		t.Errorf("an operation after it: %v", err)
	}
}

// Two copies of a host that are started at the same moment find nobody there, both of them.
// Only one comes to be the host.
func TestCopiesAreStartedAtOnce(t *testing.T) {
	t.Parallel()
	srv := etcdtest.Start(t, etcdtest.Current)
	o := Options{Endpoints: []string{srv.Endpoint()}, Node: controltest.Node(1)}
	first := unkept(t, o)
	o.Node.Boot, o.Node.VTEP = "2", netip.MustParseAddr("192.168.7.7")
	second := unkept(t, o)
	got, _, err := second.read(t.Context(), clientv3.OpGet(second.k.info(o.Node.ID)), clientv3.OpGet(second.k.alive(o.Node.ID)), clientv3.OpGet(second.k.lost(o.Node.ID)))
	if err != nil {
		t.Fatal(err)
	}
	if err := first.check(); err != nil {
		t.Fatal(err)
	}
	if err := second.enlist(t.Context(), got[0], got[1], got[2]); !errors.Is(err, errAgain) {
		t.Errorf("the second is the host as well: %v", err)
	}
	if err := second.check(); !errors.Is(err, control.ErrDouble) {
		t.Errorf("it does not hear of the first: %v", err)
	}
	if err := first.check(); err != nil {
		t.Errorf("nor is the first what it was: %v", err)
	}
}

// A client that came too late for a look is no reason to say that the plugin is stopping,
// which ends what waits for the store.
func TestLateClientDoesNotCloseTheStore(t *testing.T) {
	t.Parallel()
	s := unkept(t, Options{Endpoints: []string{etcdtest.Start(t, etcdtest.Current).Endpoint()}, Node: controltest.Node(1)})
	late, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.connect(late); err == nil || definite(err) {
		t.Errorf("got %v", err)
	}
	s.cancel()
	if err := s.connect(t.Context()); !errors.Is(err, errClosed) {
		t.Errorf("a store that is closed: %v", err)
	}
}

// A host that others have removed is not remembered for ever.
func TestRemovedHostIsForgotten(t *testing.T) {
	t.Parallel()
	srv := etcdtest.Start(t, etcdtest.Current)
	s := unkept(t, Options{Endpoints: []string{srv.Endpoint()}, Node: controltest.Node(1)})
	s.sightings = map[topology.NodeID]sighting{}
	if _, err := srv.Client().Put(t.Context(), s.k.info(controltest.Node(2).ID), "{}"); err != nil {
		t.Fatal(err)
	}
	for want := 1; want >= 0; want-- {
		if err := s.visit(t.Context()); err != nil || len(s.sightings) != want {
			t.Errorf("%d sightings, %v, want %d", len(s.sightings), err, want)
		}
		if _, err := srv.Client().Delete(t.Context(), s.k.node(controltest.Node(2).ID), clientv3.WithPrefix()); err != nil {
			t.Fatal(err)
		}
	}
}
