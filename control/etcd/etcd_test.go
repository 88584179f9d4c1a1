package etcd_test

import (
	"net/netip"
	"testing"

	"github.com/particle-net/particle/control"
	"github.com/particle-net/particle/control/controltest"
	"github.com/particle-net/particle/control/controltest/etcdtest"
	"github.com/particle-net/particle/control/etcd"
	"github.com/particle-net/particle/topology"
)

// open is a host's store, by way of an endpoint.
func open(t testing.TB, endpoint string, n control.Node) *etcd.Store {
	t.Helper()
	return etcd.Opened(t, etcd.Options{Endpoints: []string{endpoint}, Node: n})
}

func endpointsOf(servers []*etcdtest.Server) (all []string) {
	for _, s := range servers {
		all = append(all, s.Endpoint())
	}
	return all
}

// releases runs a test with the oldest and the newest etcd that are promised,
// beside all others: most of the time they wait.
func releases(t *testing.T, f func(t *testing.T, release string)) {
	t.Parallel()
	for _, release := range []string{etcdtest.Debian, etcdtest.Current} {
		t.Run("etcd "+release, func(t *testing.T) {
			t.Parallel()
			f(t, release)
		})
	}
}

func TestAllocation(t *testing.T) {
	releases(t, func(t *testing.T, release string) {
		controltest.Allocation(t, func(t *testing.T) controltest.Cluster {
			srv := etcdtest.Start(t, release)
			return controltest.Cluster{
				Open: func(t *testing.T, n control.Node) controltest.Store { return open(t, srv.Endpoint(), n) },
				Stop: srv.Kill, Back: srv.Restart, Wipe: srv.Wipe, Save: srv.Save, Load: srv.Load,
				Settle: func() { srv.Expire("settling", "restored") },
				Expire: func(host topology.NodeID) { srv.Expire(string(host) + "/alive") },
			}
		})
	})
}

func TestDistribution(t *testing.T) {
	releases(t, func(t *testing.T, release string) {
		controltest.Distribution(t, func(t *testing.T) controltest.Fabric {
			srv := etcdtest.Start(t, release)
			return controltest.Fabric{
				Open: func(t *testing.T, n control.Node) control.Distributor { return open(t, srv.Endpoint(), n) },
				Join: func(t *testing.T, d control.Distributor, n control.Network) {
					if _, err := d.(*etcd.Store).ClaimNetwork(t.Context(), n); err != nil {
						t.Fatal(err)
					}
				},
				Own: func(t *testing.T, d control.Distributor, n control.Network, p netip.Prefix) {
					if err := d.(*etcd.Store).Restore(t.Context(), n, control.Claim{Network: n.ID, Prefix: p}); err != nil {
						t.Fatal(err)
					}
				},
				Disown: func(t *testing.T, d control.Distributor, n control.Network, p netip.Prefix) {
					if err := d.(*etcd.Store).Release(t.Context(), control.Claim{Network: n.ID, Prefix: p}); err != nil {
						t.Fatal(err)
					}
				},
				Exclusive: true,
				Interrupt: func(t *testing.T) func() {
					srv.Kill()
					return srv.Restart
				},
			}
		})
	})
}
