package etcd_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/particle-net/particle/control"
	"github.com/particle-net/particle/control/controltest"
	"github.com/particle-net/particle/control/controltest/etcdtest"
	"github.com/particle-net/particle/control/etcd"
)

// listed is the first whole list of a network's routes.
func listed(t *testing.T, s *etcd.Store, n control.Network) control.Update[control.Route] {
	t.Helper()
	for u := range s.WatchRoutes(t.Context(), n) {
		if u.Whole {
			return u
		}
	}
	t.Fatal("the watch has ended")
	return control.Update[control.Route]{}
}

// claimedLate saves a store that has a network, has a host claim a block of it after that,
// and ends the host. before is what that had seen last.
func claimedLate(t *testing.T, srv *etcdtest.Server) (n control.Network, its control.Claim, before control.Update[control.Route]) {
	t.Helper()
	n = controltest.Network(1)
	owner := open(t, srv.Endpoint(), controltest.Node(1))
	var err error
	if n.VNI, err = owner.ClaimNetwork(t.Context(), n); err != nil {
		t.Fatal(err)
	}
	srv.Save()
	if its, err = owner.ClaimBlock(t.Context(), n.ID, n.Subnets[0].Prefix); err != nil {
		t.Fatal(err)
	}
	before = listed(t, owner, n)
	if err := owner.Close(); err != nil {
		t.Fatal(err)
	}
	return n, its, before
}

// A snapshot is restored while no host runs. None has seen the store itself as it was,
// but a host has on its disk how far that had come. What the snapshot lacks is not
// granted to another.
func TestSetBackWhileNobodyLooks(t *testing.T) {
	releases(t, func(t *testing.T, release string) {
		srv := etcdtest.Start(t, release)
		n, its, before := claimedLate(t, srv)
		srv.Load()
		other := etcd.Opened(t, etcd.Options{Endpoints: []string{srv.Endpoint()}, Node: controltest.Node(2), Origin: control.Origin{Instance: before.Instance, Revision: before.Revision}})
		knowsNothing := func() *etcd.Store { return open(t, srv.Endpoint(), controltest.Node(3)) }
		if c, err := other.ClaimBlock(t.Context(), n.ID, n.Subnets[0].Prefix); !errors.Is(err, control.ErrSettling) {
			t.Errorf("who knows how far it had come: %v, %v", c, err)
		}
		if c, err := knowsNothing().ClaimBlock(t.Context(), n.ID, n.Subnets[0].Prefix); !errors.Is(err, control.ErrSettling) {
			t.Errorf("who knows nothing: %v, %v", c, err)
		}
		// The owner's list tells it that it has to claim again, however much was written meanwhile.
		owner := open(t, srv.Endpoint(), controltest.Node(1))
		if list := listed(t, owner, n); list.Instance == before.Instance || len(list.Put) != 0 {
			t.Errorf("the list is of %s, as before; it has %v", list.Instance, list.Put)
		}
		if err := owner.Restore(t.Context(), n, its); err != nil {
			t.Error(err)
		}
		srv.Expire("settling")
		if c, err := other.ClaimBlock(t.Context(), n.ID, n.Subnets[0].Prefix); err != nil || c.Prefix.Overlaps(its.Prefix) {
			t.Errorf("in the end: %v, %v; %s is the owner's", c, err, its.Prefix)
		}
	})
}

// setBackAndFurther restores what the server has saved. A host that knows nothing comes
// first, and writes until the store has come further than it had.
func setBackAndFurther(t *testing.T, srv *etcdtest.Server, revision int64) {
	t.Helper()
	srv.Load()
	stranger := open(t, srv.Endpoint(), controltest.Node(9))
	n := controltest.Network(2)
	var err error
	if n.VNI, err = stranger.ClaimNetwork(t.Context(), n); err != nil {
		t.Fatal(err)
	}
	for listed(t, stranger, n).Revision <= revision {
		if _, err := stranger.ClaimBlock(t.Context(), n.ID, n.Subnets[0].Prefix); err != nil {
			t.Fatal(err)
		}
	}
}

// Who has seen the store before tells by what was written then, if it starts after the
// stranger.
func TestSetBackAndFurtherBeforeItsStart(t *testing.T) {
	releases(t, func(t *testing.T, release string) {
		srv := etcdtest.Start(t, release)
		n, its, before := claimedLate(t, srv)
		setBackAndFurther(t, srv, before.Revision)
		seen := control.Origin{Instance: before.Instance, Revision: before.Revision, Mark: before.Mark}
		other := etcd.Opened(t, etcd.Options{Endpoints: []string{srv.Endpoint()}, Node: controltest.Node(2), Origin: seen})
		if c, err := other.ClaimBlock(t.Context(), n.ID, n.Subnets[0].Prefix); !errors.Is(err, control.ErrSettling) {
			t.Errorf("%v, %v; %s is the owner's, and the store lacks it", c, err, its.Prefix)
		}
	})
}

// So does one that has run all the time, and did not reach the store meanwhile.
func TestSetBackAndFurtherBehindItsBack(t *testing.T) {
	releases(t, func(t *testing.T, release string) {
		srv := etcdtest.Start(t, release)
		gate := etcdtest.NewGate(t, srv)
		n := controltest.Network(1)
		owner := open(t, srv.Endpoint(), controltest.Node(1))
		if _, err := owner.ClaimNetwork(t.Context(), n); err != nil {
			t.Fatal(err)
		}
		srv.Save()
		routes := controltest.Follow(t, open(t, gate.Endpoint(), controltest.Node(2)).WatchRoutes(t.Context(), n), controltest.Key)
		if _, err := owner.ClaimBlock(t.Context(), n.ID, n.Subnets[0].Prefix); err != nil {
			t.Fatal(err)
		}
		routes.UntilHave(1)
		before := routes.Instance
		gate.Close()
		revision := listed(t, owner, n).Revision
		if err := owner.Close(); err != nil {
			t.Fatal(err)
		}
		setBackAndFurther(t, srv, revision)
		gate.Open()
		routes.Until("a list of the older store, as of another one", func() bool { return routes.Instance != before })
	})
}

// A host that was away finds the record that it keeps in mind written again, or taken away,
// or compacted with all of that time: the store is the one that it was.
func TestMarkThatHasChanged(t *testing.T) {
	releases(t, func(t *testing.T, release string) {
		srv := etcdtest.Start(t, release)
		n := controltest.Network(1)
		owner := open(t, srv.Endpoint(), controltest.Node(1))
		var err error
		if n.VNI, err = owner.ClaimNetwork(t.Context(), n); err != nil {
			t.Fatal(err)
		}
		claim := func() control.Claim {
			c, err := owner.ClaimBlock(t.Context(), n.ID, n.Subnets[0].Prefix)
			if err != nil {
				t.Fatal(err)
			}
			return c
		}
		its := claim()
		before := listed(t, owner, n)
		seen := control.Origin{Instance: before.Instance, Revision: before.Revision, Mark: before.Mark}
		returns := func(to string) {
			t.Helper()
			other := etcd.Opened(t, etcd.Options{Endpoints: []string{srv.Endpoint()}, Node: controltest.Node(2), Origin: seen})
			if now := listed(t, other, n); now.Instance != before.Instance {
				t.Errorf("%s: the store is %s, and was %s", to, now.Instance, before.Instance)
			}
			if err := other.Close(); err != nil {
				t.Fatal(err)
			}
		}
		returns("what it was")
		moved := controltest.Node(1)
		moved.VTEP = moved.VTEP.Next()
		if err := owner.SetNode(t.Context(), moved); err != nil {
			t.Fatal(err)
		}
		returns("one written again")
		if err := owner.Release(t.Context(), its); err != nil {
			t.Fatal(err)
		}
		returns("none")
		claim()
		srv.Compact()
		returns("one that nobody can tell of")
	})
}

// A host has been told by its watch alone how far the store had come, and who told the
// store does not run any more. Its first question tells it that the store was set back.
func TestSetBackOfWhatAWatchTold(t *testing.T) {
	releases(t, func(t *testing.T, release string) {
		srv := etcdtest.Start(t, release)
		n := controltest.Network(1)
		owner, other := open(t, srv.Endpoint(), controltest.Node(1)), open(t, srv.Endpoint(), controltest.Node(2))
		var err error
		if n.VNI, err = owner.ClaimNetwork(t.Context(), n); err != nil {
			t.Fatal(err)
		}
		routes := controltest.Follow(t, other.WatchRoutes(t.Context(), n), controltest.Key)
		routes.Until("a list", func() bool { return routes.Instance != "" })
		srv.Save()
		late, err := owner.ClaimBlock(t.Context(), n.ID, n.Subnets[0].Prefix)
		if err != nil {
			t.Fatal(err)
		}
		routes.UntilHave(1)
		if err := owner.Close(); err != nil {
			t.Fatal(err)
		}
		srv.Load()
		if got, err := other.ClaimBlock(t.Context(), n.ID, n.Subnets[0].Prefix); !errors.Is(err, control.ErrSettling) {
			t.Errorf("%s, %v; %s is another's, and the store lacks it", got.Prefix, err, late.Prefix)
		}
	})
}

// The store loses a claim before its host has announced the route. That is refused, and it
// is said that it may be tried again.
func TestClaimLostBeforeItsRoute(t *testing.T) {
	t.Parallel()
	srv := etcdtest.Start(t, etcdtest.Current)
	n := controltest.Network(1)
	owner := open(t, srv.Endpoint(), controltest.Node(1))
	if _, err := owner.ClaimNetwork(t.Context(), n); err != nil {
		t.Fatal(err)
	}
	srv.Save()
	its, err := owner.ClaimBlock(t.Context(), n.ID, n.Subnets[0].Prefix)
	if err != nil {
		t.Fatal(err)
	}
	srv.Load()
	err = owner.Announce(t.Context(), controltest.Node(1).Route(n.ID, its.Prefix))
	if err == nil || !strings.Contains(err.Error(), "has no claim of this host to it any more; repeat") {
		t.Errorf("announced: %v", err)
	}
}

// A snapshot is restored while hosts run, and they notice: what it lacks is not granted to
// another. With --bump-revision they do not, of which docs/operations.md warns: the list
// that they get is of the same store, and newer.
func TestRestoredSnapshot(t *testing.T) {
	t.Parallel()
	const bump = 1000
	for name, c := range map[string]struct {
		bump    uint64
		noticed bool
	}{"as it was": {0, true}, "revision bumped": {bump, false}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			srv := etcdtest.Start(t, etcdtest.Current)
			n := controltest.Network(1)
			owner, other := open(t, srv.Endpoint(), controltest.Node(1)), open(t, srv.Endpoint(), controltest.Node(2))
			var err error
			if n.VNI, err = owner.ClaimNetwork(t.Context(), n); err != nil {
				t.Fatal(err)
			}
			if _, err := owner.ClaimBlock(t.Context(), n.ID, n.Subnets[0].Prefix); err != nil {
				t.Fatal(err)
			}
			srv.SaveSnapshot()
			late, err := owner.ClaimBlock(t.Context(), n.ID, n.Subnets[0].Prefix)
			if err != nil {
				t.Fatal(err)
			}
			routes := controltest.Follow(t, other.WatchRoutes(t.Context(), n), controltest.Key)
			routes.UntilHave(2)
			instance := routes.Instance
			srv.RestoreSnapshot(c.bump)
			got, err := other.ClaimBlock(t.Context(), n.ID, n.Subnets[0].Prefix)
			if noticed := errors.Is(err, control.ErrSettling); noticed != c.noticed || !noticed && got.Prefix != late.Prefix {
				t.Errorf("%s, %v; %s is the owner's, and the snapshot lacks it", got.Prefix, err, late.Prefix)
			}
			routes.Until("a list of the restored store", func() bool {
				return routes.Down == nil && (routes.Instance != instance || routes.Revision > bump)
			})
			if noticed := routes.Instance != instance; noticed != c.noticed {
				t.Errorf("the list is of %s, after %s", routes.Instance, instance)
			}
		})
	}
}
