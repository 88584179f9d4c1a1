package etcd_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/particle-net/particle/control/controltest"
	"github.com/particle-net/particle/control/controltest/etcdtest"
	"github.com/particle-net/particle/control/etcd"
)

// fill writes what many hosts have of some networks, a block each, and says how many
// bytes that is.
func fill(t *testing.T, srv *etcdtest.Server, networks, hosts int) (size int64) {
	t.Helper()
	c := srv.Client()
	for i := range networks {
		n := controltest.Network(i + 1)
		var ops []clientv3.Op
		for h := range hosts {
			node := controltest.Node(h + 1)
			value, err := json.Marshal(map[string]any{"Node": node.ID, "VTEP": node.VTEP, "MAC": node.MAC, "Port": 4789, "Op": "0123456789abcdef"})
			if err != nil {
				t.Fatal(err)
			}
			key := fmt.Sprintf("/particle/v1/nets/%s/blocks/4-0a%04x00-24", n.ID, h)
			ops = append(ops, clientv3.OpPut(key, string(value)))
			size += int64(len(key) + len(value))
			if len(ops) == 100 || h == hosts-1 {
				if _, err := c.Txn(t.Context()).Then(ops...).Commit(); err != nil {
					t.Fatal(err)
				}
				ops = nil
			}
		}
	}
	return size
}

// A host has many networks of many hosts, and not the time in which one answer is due to
// hear of all of them. It asks for one after the other: what an answer has brought that
// does not come to its end is lost, and is asked for again.
func TestManyNetworksByASlowWay(t *testing.T) {
	t.Parallel()
	const networks, hosts = 24, 1000
	srv := etcdtest.Start(t, etcdtest.Current)
	size := fill(t, srv, networks, hosts)
	way := etcdtest.NewNarrow(t, srv, 1<<20)
	s := open(t, way.Endpoint(), controltest.Node(1))
	lists := make(chan int, networks)
	for i := range networks {
		updates := s.WatchRoutes(t.Context(), controltest.Network(i+1))
		go func() {
			for u := range updates {
				if u.Whole {
					lists <- len(u.Put)
				}
			}
		}()
	}
	for range networks {
		if n := <-lists; n != hosts {
			t.Fatalf("a list has %d routes", n)
		}
	}
	if passed := way.Passed(); passed > 2*size {
		t.Errorf("to hear %d bytes took %d", size, passed)
	}
}

// What a host has of many networks is found among what all hosts have, also by a way that
// does not bring all of that in the time of one answer: when the host has another address,
// and when it leaves.
func TestHostOfManyNetworksByASlowWay(t *testing.T) {
	t.Parallel()
	const networks, hosts = 10, 1000
	srv := etcdtest.Start(t, etcdtest.Current)
	me := controltest.Node(hosts) // the last of each network
	s := open(t, srv.Endpoint(), me)
	if err := s.SetNode(t.Context(), me); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	fill(t, srv, networks, hosts)
	s = open(t, etcdtest.NewNarrow(t, srv, 1<<19).Endpoint(), me)
	me.VTEP = netip.MustParseAddr("192.168.77.7")
	if err := s.SetNode(t.Context(), me); err != nil {
		t.Fatal(err)
	}
	all, last := "/particle/v1/nets/", "/blocks/4-0a03e700-24"
	for i := range networks {
		got, err := srv.Client().Get(t.Context(), all+string(controltest.Network(i+1).ID)+last)
		if err != nil || !strings.Contains(string(got.Kvs[0].Value), me.VTEP.String()) {
			t.Fatalf("the host's address did not come to its claim: %v, %v", got, err)
		}
	}
	if err := s.RemoveNode(t.Context(), me.ID); err != nil {
		t.Fatal(err)
	}
	got, err := srv.Client().Get(t.Context(), all, clientv3.WithPrefix(), clientv3.WithKeysOnly())
	if err != nil {
		t.Fatal(err)
	}
	left := 0
	for _, kv := range got.Kvs {
		if strings.Contains(string(kv.Key), "/blocks/") {
			left++
		}
		if strings.HasSuffix(string(kv.Key), last) {
			t.Errorf("%s is there still", kv.Key)
		}
	}
	if left != networks*(hosts-1) {
		t.Errorf("others have %d blocks, want %d", left, networks*(hosts-1))
	}
}

// Nor does who removes a host that stays away begin anew with each look.
func TestAbandonedHostOfManyNetworksByASlowWay(t *testing.T) {
	t.Parallel()
	srv := etcdtest.Start(t, etcdtest.Current)
	fill(t, srv, 10, 1000)
	client, record := srv.Client(), "/particle/v1/nodes/"+string(controltest.Node(1000).ID)+"/"
	put, err := client.Put(t.Context(), record+"info", "{}")
	if err != nil {
		t.Fatal(err)
	}
	etcd.Opened(t, etcd.Options{
		Endpoints: []string{etcdtest.NewNarrow(t, srv, 1<<19).Endpoint()}, Node: controltest.Node(1), LeaseTTL: 3 * time.Second, Abandon: time.Second,
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for r := range client.Watch(ctx, record+"info", clientv3.WithRev(put.Header.Revision+1)) {
		for _, e := range r.Events {
			if e.Type == clientv3.EventTypeDelete {
				return
			}
		}
	}
	t.Error("the host is not removed")
}
