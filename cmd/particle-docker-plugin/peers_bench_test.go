package main

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/particle-net/particle/control"
	"github.com/particle-net/particle/control/memory"
	"github.com/particle-net/particle/fabric"
	"github.com/particle-net/particle/internal/engine"
	"github.com/particle-net/particle/internal/member"
	"github.com/particle-net/particle/internal/netnstest"
	"github.com/particle-net/particle/internal/process"
	"github.com/particle-net/particle/internal/rundir"
	"github.com/particle-net/particle/internal/store"
	"github.com/particle-net/particle/ipam/pool"
	"github.com/particle-net/particle/overlay"
	"github.com/particle-net/particle/topology"
)

func TestMain(m *testing.M) { os.Exit(netnstest.Main(m)) }

// told is a store whose watches tell what the benchmark says.
type told struct {
	*memory.Store
	nodes  chan control.Update[control.NodeState]
	routes chan control.Update[control.Route]
}

func (s told) WatchNodes(context.Context) <-chan control.Update[control.NodeState] { return s.nodes }
func (s told) WatchRoutes(context.Context, control.Network) <-chan control.Update[control.Route] {
	return s.routes
}

// planes tells when the kernel has been given other hosts.
type planes struct {
	*overlay.Host
	done chan struct{}
}

func (p planes) ChangePeers(ctx context.Context, applied topology.Segment, before, after []topology.Peer) error {
	err := p.Host.ChangePeers(ctx, applied, before, after)
	p.done <- struct{}{}
	return err
}

// quiet is a Docker that has nothing, and whatever else is of no matter here.
type quiet struct{}

func (quiet) Specs(context.Context) ([]engine.Spec, error) { return nil, nil }
func (quiet) Create(context.Context, string, engine.Spec) (topology.NetworkID, error) {
	return "", nil
}
func (quiet) Remove(context.Context, topology.NetworkID) error                    { return nil }
func (quiet) Networks(context.Context) ([]fabric.EngineNetwork, error)            { return nil, nil }
func (quiet) Stop(topology.NetworkID)                                             {}
func (quiet) Serve(context.Context, topology.NetworkID) (a netip.Addr, err error) { return a, nil }
func (quiet) Network(context.Context, string) (n fabric.EngineNetwork, ok bool, err error) {
	return n, false, nil
}
func (quiet) Endpoints(context.Context, topology.NetworkID) (map[topology.EndpointID]fabric.EngineContainer, error) {
	return nil, nil
}

// crowd is one host of a cluster, whole but for Docker and the store, and the
// others as the store tells of them.
type crowd struct {
	b      *testing.B
	store  told
	plane  planes
	member *member.Member
	known  *store.Table[member.Known]
	end    func() // or it goes on beside the next one
	net    topology.SharedID
	v6     bool
	serial int64
}

func must[T any](b *testing.B) func(T, error) T {
	return func(v T, err error) T {
		b.Helper()
		if err != nil {
			b.Fatal(err)
		}
		return v
	}
}

func table[T any](b *testing.B, db *store.DB, name string) *store.Table[T] {
	return must[*store.Table[T]](b)(store.NewTable[T](db, name))
}

func newCrowd(b *testing.B, v6 bool) *crowd {
	ns := netnstest.New(b)
	ns.Run("ip", "link", "add", "eth0", "type", "bridge")
	ns.Run("ip", "address", "add", "192.0.2.1/24", "dev", "eth0", "nodad")
	ns.Run("ip", "link", "set", "eth0", "up")
	c := &crowd{b: b, v6: v6, net: topology.SharedID(fmt.Sprintf("%064x", 1))}
	c.plane.done = make(chan struct{})
	ns.Do(func() {
		c.plane.Host = must[*overlay.Host](b)(overlay.Open(b.Context(), overlay.Options{NamespaceDir: netnstest.RunDir(b), AcceptEvery: time.Hour}))
	})
	log := logrus.New()
	log.SetOutput(io.Discard)
	dir := b.TempDir()
	durable := must[*store.DB](b)(store.Open(filepath.Join(dir, "durable.db"), store.Durable))
	live := must[*store.DB](b)(store.Open(filepath.Join(dir, "live.db"), store.Volatile))
	node := control.Node{ID: topology.NodeID(fmt.Sprintf("%032x", 1)), VTEP: netip.MustParseAddr("192.0.2.1"), Boot: "boot"}
	link := &fabricLink{}
	begun := time.Now()
	c.known = table[member.Known](b, durable, "cluster")
	c.member = must[*member.Member](b)(member.New(member.Options{
		Node: node, Fabric: link, Engine: quiet{}, Overlay: c.plane.Host, Driver: "particle", Wall: time.Now, Clock: func() time.Duration { return time.Since(begun) + time.Hour },
		Known: c.known, Hosts: table[control.Node](b, durable, "hosts"), Log: logrus.NewEntry(log),
	}))
	link.Fabric = must[*fabric.Fabric](b)(fabric.Open(b.Context(), fabric.Options{
		Segments: c.plane, Branches: c.plane.Host, Engine: quiet{}, Processes: process.Table{Root: "/proc"},
		RunFiles: rundir.New(filepath.Join(dir, "networks"), filepath.Join(dir, "resolv")), Resolvers: quiet{}, Guard: fabric.Unguarded{}, GuardMode: fabric.GuardOff,
		Cluster: c.member, Defaults: must[*pool.Defaults](b)(pool.NewDefaults(defaultSubnets.v4, defaultSubnets.v6)), Underlay: topology.Underlay{VTEP: node.VTEP, MTU: 1500, Port: 4789},
		Networks: table[fabric.Network](b, durable, "networks"), Pools: table[fabric.Pool](b, durable, "pools"), Peers: table[[]topology.Peer](b, durable, "peers"),
		Leases: table[fabric.Lease](b, live, "leases"), Endpoints: table[fabric.Endpoint](b, live, "endpoints"), Kept: table[[]netip.Prefix](b, live, "kept"), Log: logrus.NewEntry(log),
	}))
	c.store = told{memory.New().Host(node), make(chan control.Update[control.NodeState]), make(chan control.Update[control.Route])}
	c.member.Connect(c.store)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		c.member.Run(ctx)
	}()
	c.end = func() {
		cancel()
		close(c.store.nodes)
		close(c.store.routes)
		for end := false; !end; {
			select {
			case <-c.plane.done:
			case <-ended:
				end = true
			}
		}
		if err := c.plane.Remove(context.Background(), topology.NetworkID(c.net)); err != nil {
			b.Error(err)
		}
		for _, close := range []func() error{durable.Close, live.Close, c.plane.Close} {
			if err := close(); err != nil {
				b.Error(err)
			}
		}
	}
	c.make(link.Fabric)
	return c
}

// make has a user create the network.
func (c *crowd) make(f *fabric.Fabric) {
	spec := fabric.NetworkSpec{ID: topology.NetworkID(c.net)}
	subnets := []string{"10.0.0.0/8"}
	if c.v6 {
		subnets = append(subnets, "fd00:9::/32")
	}
	for _, text := range subnets {
		p := must[fabric.Pool](c.b)(f.RequestPool(c.b.Context(), fabric.PoolSpec{Subnet: netip.MustParsePrefix(text)}))
		gateway := must[netip.Prefix](c.b)(f.RequestAddress(c.b.Context(), fabric.AddressSpec{Pool: p.ID, Gateway: true}))
		spec.Subnets = append(spec.Subnets, fabric.Subnet{Subnet: p.Subnet, Managed: true, Gateway: gateway.Addr()})
	}
	if err := f.CreateNetwork(c.b.Context(), spec); err != nil {
		c.b.Fatal(err)
	}
	c.member.Wake()
	c.store.nodes <- control.Update[control.NodeState]{Whole: true, Instance: "a", Revision: 1}
	c.store.routes <- control.Update[control.Route]{Whole: true, Instance: "a", Revision: 1}
}

// hosts are those with the numbers from first on.
func (c *crowd) hosts(first, n int) (nodes []control.NodeState, routes []control.Route) {
	for i := first; i < first+n; i++ {
		node := control.Node{ID: topology.NodeID(fmt.Sprintf("%032x", i+2)), Name: fmt.Sprint("h", i), VTEP: netip.AddrFrom4([4]byte{10, 200, byte(i >> 8), byte(i)}), Boot: "boot"}
		nodes = append(nodes, control.NodeState{Node: node, Alive: true})
		route := control.Route{Network: c.net, Node: node.ID, VTEP: node.VTEP, Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(16 + i>>8), byte(i), 0}), 24)}
		routes = append(routes, route)
		if c.v6 {
			route.Prefix = netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 0, 0, 9, 0, 0, byte(i >> 8), byte(i)}), 112)
			routes = append(routes, route)
		}
	}
	return nodes, routes
}

// come has hosts come, and waits until the kernel has them all.
func (c *crowd) come(nodes []control.NodeState, routes []control.Route) {
	c.serial++
	c.store.nodes <- control.Update[control.NodeState]{Revision: c.serial, Put: nodes}
	c.store.routes <- control.Update[control.Route]{Revision: c.serial, Put: routes}
	<-c.plane.done
}

// written waits until routes are on disk: what writing takes is not kept.
func (c *crowd) written(routes int) {
	for len(must[map[string]member.Known](c.b)(c.known.All())[string(c.net)].Routes) < routes {
		time.Sleep(10 * time.Millisecond)
	}
}

// BenchmarkCrowd is what BenchmarkPeers of package overlay measures, and all that
// comes before it: from the watch's word to the kernel.
func BenchmarkCrowd(b *testing.B) {
	const hosts = 1000
	for version, v6 := range map[string]bool{"IPv4": false, "both": true} {
		b.Run("come/"+version, func(b *testing.B) {
			var used time.Duration
			for range b.N {
				b.StopTimer()
				c := newCrowd(b, v6)
				nodes, routes := c.hosts(0, hosts)
				used -= processor()
				b.StartTimer()
				c.come(nodes, routes)
				used += processor()
				b.StopTimer()
				c.end()
			}
			b.ReportMetric(float64(used.Microseconds())/float64(b.N)/1000, "cpu-ms/op")
		})
		b.Run("one-more/"+version, func(b *testing.B) {
			c := newCrowd(b, v6)
			defer c.end()
			c.come(c.hosts(0, hosts))
			b.ResetTimer()
			used := processor()
			for i := range b.N {
				c.come(c.hosts(hosts+i, 1))
			}
			b.ReportMetric(float64((processor()-used).Microseconds())/float64(b.N)/1000, "cpu-ms/op")
		})
		b.Run("memory/"+version, func(b *testing.B) {
			var used uint64
			for range b.N {
				c := newCrowd(b, v6)
				before := heap()
				nodes, routes := c.hosts(0, hosts)
				c.come(nodes, routes)
				c.written(len(routes))
				used += max(heap(), before) - before
				c.end()
			}
			b.ReportMetric(float64(used)/float64(b.N)/hosts, "go-B/host")
		})
	}
}

// processor is what this process has used of it so far. On a busy machine that says
// more than the time.
func processor() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func heap() uint64 {
	runtime.GC()
	runtime.GC() // what a sync.Pool holds outlives one
	var s runtime.MemStats
	runtime.ReadMemStats(&s)
	return s.HeapAlloc
}
