package etcd_test

import (
	"encoding/json"
	"fmt"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/particle-net/particle/control/controltest"
	"github.com/particle-net/particle/control/controltest/etcdtest"
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
