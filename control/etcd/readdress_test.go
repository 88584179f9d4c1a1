package etcd

import (
	"encoding/json"
	"net/netip"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/particle-net/particle/control/controltest"
	"github.com/particle-net/particle/control/controltest/etcdtest"
)

// A host with many claims gets another tunnel address. They are written anew in few
// transactions, and those that have the address already are left alone: a look that is cut
// short comes further each time.
func TestReaddressManyClaims(t *testing.T) {
	t.Parallel()
	const claims = 200
	srv := etcdtest.Start(t, etcdtest.Current)
	me := controltest.Node(1)
	s := Opened(t, Options{Endpoints: []string{srv.Endpoint()}, Node: me})
	if err := s.SetNode(t.Context(), me); err != nil {
		t.Fatal(err)
	}
	n, addr, key := controltest.Network(1), netip.MustParseAddr("10.77.0.1"), ""
	before, after := s.hold(""), s.hold("")
	after.VTEP = netip.MustParseAddr("192.168.77.7")
	for i := range claims {
		has := before
		if i%2 == 0 { // by a look that was cut short
			has = after
		}
		key = s.k.addr(n.ID, addr)
		if _, err := s.txn(t.Context(), nil, []clientv3.Op{clientv3.OpPut(key, encode(has))}, nil); err != nil {
			t.Fatal(err)
		}
		addr = addr.Next()
	}
	got, last, err := s.read(t.Context(), clientv3.OpGet(key))
	if err != nil {
		t.Fatal(err)
	}
	// Somebody has read the last one before it was what it is now.
	old := owned{holding: before, key: key, mod: got[0].Kvs[0].ModRevision - 1}
	moved := me
	moved.VTEP = after.VTEP
	if err := s.rewrite(t.Context(), []owned{old}, moved); err != errAgain {
		t.Errorf("a claim that has changed was written anew: %v", err)
	}
	if err := s.SetNode(t.Context(), moved); err != nil {
		t.Fatal(err)
	}
	got, _, err = s.read(t.Context(), clientv3.OpGet(s.k.addrs(n.ID), clientv3.WithPrefix()))
	if err != nil {
		t.Fatal(err)
	}
	writes, written := map[int64]bool{}, 0
	for _, kv := range got[0].Kvs {
		var h holding
		if err := json.Unmarshal(kv.Value, &h); err != nil || h.VTEP != moved.VTEP {
			t.Errorf("%s: %+v, %v", kv.Key, h, err)
		}
		if kv.ModRevision > last {
			writes[kv.ModRevision] = true
			written++
		}
	}
	if written != claims/2 || len(writes) != claims/2/chunk {
		t.Errorf("%d claims were written in %d transactions, want %d in %d", written, len(writes), claims/2, claims/2/chunk)
	}
}
