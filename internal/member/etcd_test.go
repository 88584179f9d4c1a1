package member_test

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/particle-net/particle/control"
	"github.com/particle-net/particle/control/controltest/etcdtest"
	"github.com/particle-net/particle/control/etcd"
	"github.com/particle-net/particle/internal/member"
)

func TestMain(m *testing.M) { etcdtest.Main(m) }

// eventually asks until the answer is yes. Time is real where etcd is.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	limit := time.NewTimer(time.Minute)
	defer limit.Stop()
	for !is() {
		select {
		case <-tick.C:
		case <-limit.C:
			t.Fatalf("not within a minute: %s", what)
		}
	}
}

// startWith runs the plugin with a real store.
func (h *host) startWith(server *etcdtest.Server) {
	h.w.t.Helper()
	h.start()
	s, err := etcd.Open(context.Background(), etcd.Options{
		Endpoints: []string{server.Endpoint()}, Node: h.node, LeaseTTL: 5 * time.Second, Origin: h.member.Origin(),
	})
	if err != nil {
		h.w.t.Fatal(err)
	}
	h.member.Connect(s)
}

// The same with a real store: a network is made, outlives the loss of the store,
// is given back to an empty one, and goes.
func TestWithEtcd(t *testing.T) {
	server := etcdtest.Start(t, etcdtest.Current)
	w := newWorld(t)
	var hosts []*host
	for i := range 2 {
		h := w.host(i)
		h.startWith(server)
		t.Cleanup(h.kill)
		hosts = append(hosts, h)
	}
	a, b := hosts[0], hosts[1]
	healthy := func() bool { return a.member.Status().Store.Healthy && b.member.Status().Store.Healthy }
	eventually(t, "the store answers", healthy)
	if err := a.create(jobs("10.9.0.0/16")); err != nil {
		t.Fatal(err)
	}
	joined := func() bool {
		if slices.ContainsFunc(hosts, func(h *host) bool { return h.find("jobs") == nil || h.phase("jobs") != member.Ready }) {
			return false
		}
		mine, its, _ := strings.Cut(a.view("jobs"), " | 2:") // what a has, and what it knows of b
		return its != "" && b.view("jobs") == its+" | 1:"+mine
	}
	eventually(t, "both hosts have the network", joined)
	before := a.view("jobs")

	server.Kill()
	eventually(t, "the loss is noticed", func() bool { return !a.member.Status().Store.Healthy && !b.member.Status().Store.Healthy })
	if !joined() || a.view("jobs") != before {
		t.Errorf("without a store: %q, %q", a.view("jobs"), b.view("jobs"))
	}
	server.Wipe()
	eventually(t, "all is given back", func() bool {
		s := a.member.Status()
		return healthy() && joined() && a.view("jobs") == before && s.Networks[0].Doubted == 0 && len(s.Networks[0].Claims) == 1
	})
	b.remove("jobs")
	eventually(t, "the network is gone", func() bool { return a.find("jobs") == nil && len(a.member.Status().Networks) == 0 })
}

// claimed waits until a host has claimed a block in the store itself.
func (w *world) claimed(server *etcdtest.Server, h *host, block netip.Prefix) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), time.Minute)
	defer cancel()
	s, err := etcd.Open(ctx, etcd.Options{Endpoints: []string{server.Endpoint()}, Node: w.host(8).node})
	if err != nil {
		w.t.Fatal(err)
	}
	defer s.Close()
	for u := range s.WatchRoutes(ctx, control.Network{ID: h.find("jobs").SharedNetwork.ID}) {
		for _, r := range u.Put {
			if r.Prefix == block && r.Node == h.node.ID && !r.Vouched {
				return
			}
		}
	}
	w.t.Fatalf("host %s has not claimed %s within a minute", h.node.Name, block)
}

// A snapshot is restored while no plugin runs, which lacks what one host had. The other
// comes first, and a new one with it, who may not be given that.
func TestSnapshotRestoredBetweenStarts(t *testing.T) {
	server := etcdtest.Start(t, etcdtest.Current)
	w := newWorld(t)
	a, b, c := w.host(0), w.host(1), w.host(2)
	for _, h := range []*host{a, b, c} {
		t.Cleanup(h.kill)
	}
	a.startWith(server)
	b.startWith(server)
	eventually(t, "the store answers", func() bool { return a.member.Status().Store.Healthy && b.member.Status().Store.Healthy })
	if err := a.create(jobs(small.String())); err != nil {
		t.Fatal(err)
	}
	eventually(t, "both hosts have the network", func() bool { return b.find("jobs") != nil && b.phase("jobs") == member.Ready })
	server.Save()
	eventually(t, "b has another block", func() bool {
		_ = b.member.Refill(t.Context(), b.find("jobs").SharedNetwork.ID, small) // until the store answers again
		return len(b.blocks()) > 1
	})
	its := b.blocks()
	eventually(t, "a has that on its disk", func() bool {
		known, err := a.disk.All()
		return err == nil && slices.ContainsFunc(slices.Collect(maps.Values(known)), func(k member.Known) bool {
			return slices.ContainsFunc(k.Routes, func(r control.Route) bool { return r.Prefix == its[len(its)-1] })
		})
	})
	a.kill()
	b.kill()
	server.Load()
	a.startWith(server)
	// A host that comes before any that knows better is granted what it asks for.
	eventually(t, "a has told the store that it was set back", func() bool { return a.member.Status().Store.Healthy })
	c.startWith(server)
	eventually(t, "the new host has to wait", func() bool {
		return slices.ContainsFunc(c.member.Status().Networks, func(n member.NetworkStatus) bool {
			return n.Phase == member.Pending && strings.Contains(n.Problem, control.ErrSettling.Error())
		})
	})
	b.startWith(server)
	w.claimed(server, b, its[len(its)-1])
	server.Expire("settling")
	eventually(t, "the new host has its part", func() bool { return c.find("jobs") != nil && c.phase("jobs") == member.Ready && len(c.blocks()) > 0 })
	for _, p := range c.blocks() {
		if slices.ContainsFunc(slices.Concat(a.blocks(), its), p.Overlaps) {
			t.Errorf("%s was given twice", p)
		}
	}
	if !slices.Equal(b.blocks(), its) {
		t.Errorf("b has %v, had %v", b.blocks(), its)
	}
}
