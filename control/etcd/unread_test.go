package etcd

import (
	"slices"
	"testing"

	"github.com/particle-net/particle/control"
	"github.com/particle-net/particle/control/controltest"
	"github.com/particle-net/particle/control/controltest/etcdtest"
)

// next is what a watch delivers next, which must not be that it is down.
func next[T any](t *testing.T, updates <-chan control.Update[T]) control.Update[T] {
	t.Helper()
	for u := range updates {
		if u.Down == nil {
			return u
		}
	}
	t.Fatal("the watch has ended")
	return control.Update[T]{}
}

// first says whether the list with which a watch begins has a record, read or unread.
func first[T any](t *testing.T, updates <-chan control.Update[T], is func(T) bool) (read, unread bool) {
	t.Helper()
	u := next(t, updates)
	return slices.ContainsFunc(u.Put, is), slices.ContainsFunc(u.Unread, is)
}

// A record that cannot be read, since a newer version wrote it or somebody damaged it, is
// not one that was taken away: what is known of it stays.
func TestUnreadableRecords(t *testing.T) {
	t.Parallel()
	srv := etcdtest.Start(t, etcdtest.Current)
	s := Opened(t, Options{Endpoints: []string{srv.Endpoint()}, Node: controltest.Node(1)})
	n := controltest.Network(1)
	if _, err := s.ClaimNetwork(t.Context(), n); err != nil {
		t.Fatal(err)
	}
	c, err := s.ClaimBlock(t.Context(), n.ID, n.Subnets[0].Prefix)
	if err != nil {
		t.Fatal(err)
	}
	put := func(key, value string) {
		t.Helper()
		client, err := s.conn()
		if err == nil {
			_, err = client.Put(t.Context(), key, value)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	far := controltest.Node(7)
	put(s.k.info(far.ID), encode(far))

	networks, nodes, routes := s.WatchNetworks(t.Context()), s.WatchNodes(t.Context()), s.WatchRoutes(t.Context(), n)
	ofNetwork := func(x control.Network) bool { return x.ID == n.ID }
	ofNode := func(x control.NodeState) bool { return x.ID == far.ID }
	ofRoute := func(x control.Route) bool { return x.Prefix == c.Prefix }
	for what, known := range map[string]bool{
		"network": slices.ContainsFunc(next(t, networks).Put, ofNetwork),
		"host":    slices.ContainsFunc(next(t, nodes).Put, ofNode),
		"route":   slices.ContainsFunc(next(t, routes).Put, ofRoute),
	} {
		if !known {
			t.Fatalf("the %s is not in the first list", what)
		}
	}

	put(s.k.spec(n.ID), `{"ID":"`+string(n.ID)+`","Subnets":"of a kind yet to come"}`)
	put(s.k.info(far.ID), "{}")
	put(s.k.block(n.ID, c.Prefix), "damaged")
	// Changes come in order: these are heard after those, or with them.
	n2, far2 := controltest.Network(2), controltest.Node(8)
	put(s.k.spec(n2.ID), encode(n2))
	put(s.k.info(far2.ID), encode(far2))
	put(s.k.addr(n.ID, c.Prefix.Addr()), encode(holding{Node: far2.ID}))
	if u := next(t, networks); len(u.Deleted) > 0 || len(u.Put) != 1 || u.Put[0].ID != n2.ID {
		t.Errorf("networks: %+v", u)
	}
	if u := next(t, nodes); len(u.Deleted) > 0 || len(u.Put) != 1 || u.Put[0].ID != far2.ID {
		t.Errorf("hosts: %+v", u)
	}
	if u := next(t, routes); len(u.Deleted) > 0 || len(u.Put) != 1 || u.Put[0].Node != far2.ID {
		t.Errorf("routes: %+v", u)
	}

	// A list anew has what was read before.
	s.mu.Lock()
	s.jump()
	s.mu.Unlock()
	if read, unread := first(t, networks, ofNetwork); !read || unread {
		t.Errorf("the network is listed as read %v, unread %v", read, unread)
	}
	if read, unread := first(t, nodes, ofNode); !read || unread {
		t.Errorf("the host is listed as read %v, unread %v", read, unread)
	}
	if read, _ := first(t, routes, ofRoute); !read {
		t.Error("the route is not listed")
	}

	// Who has not read it before is told that it is there, and when it goes.
	networks, nodes = s.WatchNetworks(t.Context()), s.WatchNodes(t.Context())
	if read, unread := first(t, networks, ofNetwork); read || !unread {
		t.Errorf("to others the network is listed as read %v, unread %v", read, unread)
	}
	if read, unread := first(t, nodes, ofNode); read || !unread {
		t.Errorf("to others the host is listed as read %v, unread %v", read, unread)
	}
	client, err := s.conn()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.Delete(t.Context(), s.k.spec(n.ID)); err != nil {
		t.Fatal(err)
	}
	put(s.k.info(far.ID), encode(far))
	if u := next(t, networks); !slices.ContainsFunc(u.Deleted, ofNetwork) {
		t.Errorf("after it is gone: %+v", u)
	}
	if u := next(t, nodes); !slices.ContainsFunc(u.Put, ofNode) {
		t.Errorf("after it is mended: %+v", u)
	}
}
