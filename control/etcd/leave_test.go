package etcd_test

import (
	"context"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/particle-net/particle/control/controltest"
	"github.com/particle-net/particle/control/controltest/etcdtest"
	"github.com/particle-net/particle/control/etcd"
)

// A host that could not leave the cluster stays in it, with its record and its lease, even
// if it was removed and only the answer was lost.
func TestHostThatCouldNotLeaveStays(t *testing.T) {
	t.Parallel()
	srv := etcdtest.Start(t, etcdtest.Current)
	me := controltest.Node(1)
	s := etcd.Opened(t, etcd.Options{Endpoints: []string{srv.Endpoint()}, Node: me, LeaseTTL: 3 * time.Second})
	if err := s.SetNode(t.Context(), me); err != nil {
		t.Fatal(err)
	}
	impatient, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.RemoveNode(impatient, me.ID); err == nil {
		t.Fatal("the host has left, by a user who waited for nothing")
	}
	record := "/particle/v1/nodes/" + string(me.ID) + "/"
	client := srv.Client()
	gone, err := client.Delete(t.Context(), record, clientv3.WithPrefix())
	if err != nil {
		t.Fatal(err)
	}
	ctx, end := context.WithTimeout(t.Context(), time.Minute)
	defer end()
	back := map[string]bool{}
	for r := range client.Watch(ctx, record, clientv3.WithPrefix(), clientv3.WithRev(gone.Header.Revision+1), clientv3.WithFilterDelete()) {
		for _, e := range r.Events {
			back[string(e.Kv.Key)] = true
		}
		if back[record+"info"] && back[record+"alive"] {
			return
		}
	}
	t.Fatalf("only this has come back: %v", back)
}
