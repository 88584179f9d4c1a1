package etcd_test

import (
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/particle-net/particle/control"
	"github.com/particle-net/particle/control/controltest"
	"github.com/particle-net/particle/control/controltest/etcdtest"
	"github.com/particle-net/particle/control/etcd"
)

// A store is closed whenever the cluster's servers change, whatever users ask it for at
// that moment. Of 16 who ask, some are between two questions then.
func TestClosedDuringOperations(t *testing.T) {
	t.Parallel()
	srv := etcdtest.Start(t, etcdtest.Current)
	other := open(t, srv.Endpoint(), controltest.Node(2))
	for i := range 60 {
		n := controltest.Network(1 + i) // blocks are left claimed by those that are cut short
		until(t, func() error { _, err := other.ClaimNetwork(t.Context(), n); return err })
		s, err := etcd.Open(t.Context(), etcd.Options{Endpoints: []string{srv.Endpoint()}, Node: controltest.Node(1)})
		if err != nil {
			t.Fatal(err)
		}
		until(t, s.Healthy)
		var all sync.WaitGroup
		var released atomic.Int64
		for range 16 {
			all.Go(func() {
				for {
					c, err := s.ClaimBlock(t.Context(), n.ID, n.Subnets[0].Prefix)
					if err == nil {
						err = s.Release(t.Context(), control.Claim{Network: n.ID, Prefix: c.Prefix, Node: c.Node})
					}
					if err == nil {
						released.Add(1)
						continue
					}
					if !strings.Contains(err.Error(), "the store is closed on this host") {
						t.Error(err)
					}
					return
				}
			})
		}
		until(t, func() error {
			if released.Load() <= int64(i%20) {
				return errors.New("it is not used yet")
			}
			return nil
		})
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		all.Wait()
	}
}

// Where etcd has users, the keeper gives up the client whose question had no answer; who
// asks before it has another waits for that.
func TestAsksWithoutClient(t *testing.T) {
	t.Parallel()
	srv := etcdtest.Start(t, etcdtest.Current)
	s := open(t, srv.Endpoint(), controltest.Node(1))
	until(t, s.Healthy)
	s.SignOut()
	if _, err := s.ClaimNetwork(t.Context(), controltest.Network(1)); err != nil {
		t.Error(err)
	}
}
