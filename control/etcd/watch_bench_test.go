package etcd

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/particle-net/particle/control"
	"github.com/particle-net/particle/control/controltest"
	"github.com/particle-net/particle/topology"
)

// BenchmarkWatchMemory measures what the watches keep of each of 1,000 hosts: of its claim
// on a network, and of the host itself.
func BenchmarkWatchMemory(b *testing.B) {
	const hosts = 1000
	s := &Store{k: "/particle/v1/"}
	n := controltest.Network(1)
	var claims, infos []*clientv3.Event
	for i := range hosts {
		last := binary.BigEndian.AppendUint16(nil, uint16(i))
		node := control.Node{
			ID: topology.NodeID(fmt.Sprintf("%032x", i)), Name: fmt.Sprintf("host-%d", i), Version: "0.1.0", Boot: fmt.Sprintf("%032x", i),
			VTEP: netip.AddrFrom4([4]byte{192, 168, last[0], last[1]}), MAC: net.HardwareAddr{2, 0, 0, 0, last[0], last[1]}, Port: 4789,
		}
		block := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 77, last[0], last[1]}), 32)
		claim := holding{Node: node.ID, VTEP: node.VTEP, MAC: node.MAC, Port: node.Port, Op: fmt.Sprintf("%016x", i)}
		claims = append(claims, event(s.k.claim(n.ID, block), encode(claim)))
		infos = append(infos, event(s.k.alive(node.ID), node.Boot), event(s.k.info(node.ID), encode(node)))
	}
	b.Run("of a claim", func(b *testing.B) { keeps(b, s, s.routes(n.ID), claims, hosts) })
	b.Run("of a host", func(b *testing.B) { keeps(b, s, s.nodes(), infos, hosts) })
}

func event(key, value string) *clientv3.Event {
	return &clientv3.Event{Kv: &mvccpb.KeyValue{Key: []byte(key), Value: []byte(value), ModRevision: 1}}
}

func keeps[T any](b *testing.B, s *Store, k kind[T], events []*clientv3.Event, hosts int) {
	var used uint64
	for b.Loop() {
		before := heap()
		v := &view[T]{kind: k, s: s, values: map[string]*T{}, unread: map[string]bool{}}
		if u := v.apply(clientv3.WatchResponse{Header: &pb.ResponseHeader{Revision: 1}, Events: events}); len(u.Put) != hosts {
			b.Fatalf("told of %d", len(u.Put))
		}
		used += heap() - before
		runtime.KeepAlive(v)
	}
	b.ReportMetric(float64(used)/float64(b.N)/float64(hosts), "go-B/host")
}

func heap() uint64 {
	runtime.GC()
	var s runtime.MemStats
	runtime.ReadMemStats(&s)
	return s.HeapAlloc
}
