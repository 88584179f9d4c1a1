package etcd_test

import (
	"strings"
	"testing"
	"time"

	"github.com/particle-net/particle/control/controltest"
	"github.com/particle-net/particle/control/controltest/etcdtest"
	"github.com/particle-net/particle/control/etcd"
)

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
			s := opened(t, etcd.Options{Endpoints: []string{lost[0].Endpoint(), srv.Endpoint()}, Node: controltest.Node(i + 1), LeaseTTL: time.Second})
			n := controltest.Network(i + 1)
			if _, err := s.ClaimNetwork(ctx, n); err != nil {
				t.Fatal(err)
			}
			networks := s.WatchNetworks(ctx)
			for found := false; !found; {
				u := <-networks
				if u.Down != nil && !strings.Contains(u.Down.Error(), "not answered yet") {
					t.Fatalf("host %d: %v", i+1, u.Down)
				}
				for _, have := range u.Put {
					found = found || have.ID == n.ID
				}
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
		}
	})
}
