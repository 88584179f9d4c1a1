package etcd_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/particle-net/particle/control"
	"github.com/particle-net/particle/control/controltest"
	"github.com/particle-net/particle/control/controltest/etcdtest"
	"github.com/particle-net/particle/control/etcd"
	"github.com/particle-net/particle/topology"
)

// encrypting is a host's store, as it encrypts.
func encrypting(t *testing.T, srv *etcdtest.Server, host int, e topology.Encryption) *etcd.Store {
	t.Helper()
	return etcd.Opened(t, etcd.Options{Endpoints: []string{srv.Endpoint()}, Node: controltest.Node(host), Encryption: e})
}

// The first host says how the cluster encrypts; one that does not do as it is shut
// out, and is not known to the others.
func TestHostsAgreeOnEncryption(t *testing.T) {
	for name, c := range map[string]struct {
		first, other topology.Encryption
		fix          string
	}{
		"encrypted": {topology.ByWireGuard, topology.Plain, "PARTICLE_ENCRYPT=wireguard"},
		"plain":     {topology.Plain, topology.ByWireGuard, "empty PARTICLE_ENCRYPT"},
	} {
		t.Run(name, func(t *testing.T) {
			srv := etcdtest.Start(t, etcdtest.Current)
			first := encrypting(t, srv, 1, c.first)
			until(t, first.Healthy)
			stranger := encrypting(t, srv, 2, c.other)
			for u := range stranger.WatchNetworks(t.Context()) { // as people are told it
				if mentions(u.Down, c.fix) == nil {
					break
				}
			}
			_, err := stranger.ClaimNetwork(t.Context(), controltest.Network(1))
			if err := mentions(err, c.fix); err != nil {
				t.Error(err)
			}
			if err := mentions(stranger.SetNode(t.Context(), controltest.Node(2)), c.fix); err != nil {
				t.Error(err)
			}
			for host := 10; host < 25; host++ { // before they know whom they ask
				early := encrypting(t, srv, host, c.other)
				if err := mentions(early.SetNode(t.Context(), controltest.Node(host)), c.fix); err != nil {
					t.Error(err)
				}
			}
			friend := encrypting(t, srv, 3, c.first)
			until(t, friend.Healthy)
			hosts := controltest.Follow(t, first.WatchNodes(t.Context()), func(n control.NodeState) topology.NodeID { return n.ID })
			hosts.UntilHave(2)
			if len(hosts.Have) != 2 || !hosts.Have[controltest.Node(3).ID].Alive {
				t.Errorf("hosts that were shut out are known to the others: %v", hosts.Have)
			}
			srv.Wipe() // those who had the cluster have it as it was
			until(t, func() error { return mentions(stranger.Healthy(), c.fix) })
			until(t, first.Healthy)
		})
	}
}

// A store that was set back has another name, and is the encrypted cluster's still.
func TestStoreThatWasSetBackIsStillEncrypted(t *testing.T) {
	srv := etcdtest.Start(t, etcdtest.Current)
	first := encrypting(t, srv, 1, topology.ByWireGuard)
	until(t, first.Healthy)
	before := first.Instance()
	srv.Save()
	for n := range 3 {
		if _, err := first.ClaimNetwork(t.Context(), controltest.Network(n+1)); err != nil {
			t.Fatal(err)
		}
	}
	srv.Load()
	until(t, func() error {
		if err := first.Healthy(); err != nil || first.Instance() != before {
			return err
		}
		return errors.New("it has its name from before")
	})
	stranger := encrypting(t, srv, 2, topology.Plain)
	until(t, func() error { return mentions(stranger.Healthy(), "PARTICLE_ENCRYPT=wireguard") })
}

func mentions(err error, text string) error {
	if err == nil || !strings.Contains(err.Error(), text) {
		return errors.Join(errors.New("an error was to say "+text), err)
	}
	return nil
}
