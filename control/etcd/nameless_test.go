package etcd

import (
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/particle-net/particle/control"
	"github.com/particle-net/particle/control/controltest"
	"github.com/particle-net/particle/control/controltest/etcdtest"
)

// A host has seen how far a store had come and could not name it, as its user might not
// write. Then the store is wiped, and the host may: the store gets its name, and is told
// that it was set back.
func TestStoreSetBackBeforeItHadAName(t *testing.T) {
	t.Parallel()
	srv := etcdtest.Start(t, etcdtest.Current)
	srv.Kill()
	s := Opened(t, Options{Endpoints: []string{srv.Endpoint()}, Node: controltest.Node(1)})
	s.seen.Store(1000) // what an answer of before it was wiped has carried
	srv.Restart()
	n := controltest.Network(1)
	if _, err := s.ClaimNetwork(t.Context(), n); err != nil {
		t.Fatal(err)
	}
	controltest.Follow(t, s.WatchNetworks(t.Context()), func(n control.Network) string { return n.Name }).UntilHave(1)
	if got, _, err := s.read(t.Context(), clientv3.OpGet(s.k.settling())); err != nil || len(got[0].Kvs) == 0 {
		t.Errorf("the store does not know that it was set back: %v", err)
	}
}
