package etcd_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/particle-net/particle/control/controltest"
	"github.com/particle-net/particle/control/controltest/etcdtest"
	"github.com/particle-net/particle/control/etcd"
)

// withUsers starts an etcd that asks who one is.
func withUsers(t *testing.T, release string) (*etcdtest.Server, etcdtest.Users) {
	t.Helper()
	srv := etcdtest.Start(t, release)
	users := etcdtest.Users{
		Endpoint: "http://" + srv.Endpoint(), Root: "r", User: "particle", Password: "p", Prefix: "/particle/",
	}
	if err := users.Make(t.Context()); err != nil {
		t.Fatal(err)
	}
	return srv, users
}

// etcd forgets the tokens that it has given out when it ends, and its release 3.4
// gives none to a client that still shows an old one.
func TestSignsInAgain(t *testing.T) {
	releases(t, func(t *testing.T, release string) {
		srv, users := withUsers(t, release)
		s := etcd.Opened(t, etcd.Options{
			Endpoints: []string{srv.Endpoint()}, User: users.User, Password: users.Password, Node: controltest.Node(1), LeaseTTL: 3 * time.Second,
		})
		n := controltest.Network(1)
		routes := controltest.Follow(t, s.WatchRoutes(t.Context(), n), controltest.Key)
		claim := func() {
			t.Helper()
			until(t, func() error {
				_, err := s.ClaimBlock(t.Context(), n.ID, n.Subnets[0].Prefix)
				return err
			})
		}
		until(t, func() error { _, err := s.ClaimNetwork(t.Context(), n); return err })
		claim()
		routes.UntilHave(1)
		srv.Kill()
		srv.Restart()
		claim()
		routes.UntilHave(2)
		if err := s.Healthy(); err != nil {
			t.Error(err)
		}
	})
}

// What a host with a wrong password is told says so, however often it asks: that the
// store does not answer would send people to look at the network.
func TestWrongPassword(t *testing.T) {
	releases(t, func(t *testing.T, release string) {
		srv, users := withUsers(t, release)
		s := etcd.Opened(t, etcd.Options{Endpoints: []string{srv.Endpoint()}, User: users.User, Password: "not " + users.Password, Node: controltest.Node(1)})
		for range 2 {
			if _, err := s.ClaimNetwork(t.Context(), controltest.Network(1)); err == nil || !strings.Contains(err.Error(), "check the user and password") {
				t.Errorf("got %v", err)
			}
		}
	})
}

// until repeats try for a while.
func until(t *testing.T, try func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for {
		err := try()
		if err == nil {
			return
		}
		if ctx.Err() != nil {
			t.Fatal(errors.Join(err, ctx.Err()))
		}
	}
}
