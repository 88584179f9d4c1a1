package hostapi_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/netip"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/sirupsen/logrus"

	"github.com/particle-net/particle/fabric"
	"github.com/particle-net/particle/internal/holder"
	"github.com/particle-net/particle/internal/hostapi"
	"github.com/particle-net/particle/internal/runtimeapi"
	"github.com/particle-net/particle/internal/store"
	"github.com/particle-net/particle/ipam/pool"
	"github.com/particle-net/particle/topology"
)

// ports are what a real fabric stands on, as far as these calls need it: a kernel
// that does all it is told, one process, and no Docker.
type ports struct {
	fabric.Segments
	fabric.Sandboxes
	fabric.RunFiles
}

func (ports) Apply(context.Context, topology.Segment) (bool, error)         { return true, nil }
func (ports) ApplyUplink(context.Context, topology.Uplink) (bool, error)    { return true, nil }
func (ports) Networks(context.Context) ([]topology.NetworkID, error)        { return nil, nil }
func (ports) PublishNetworks([]fabric.EngineNetwork) error                  { return nil }
func (ports) Expose(topology.NetworkID, string) error                       { return nil }
func (ports) Conceal(string) error                                          { return nil }
func (ports) Serve(context.Context, topology.NetworkID) (netip.Addr, error) { return resolver, nil }
func (ports) Stop(topology.NetworkID)                                       {}

func (ports) State(topology.NetworkID, string) (fabric.SandboxState, error) {
	return fabric.SandboxAbsent, nil
}

// branches are none.
type branches struct{}

func (branches) ApplyBranch(context.Context, topology.Branch) error { return nil }

func (branches) RemoveBranches(context.Context, topology.NetworkID, []topology.EndpointID) error {
	return nil
}

func (branches) Branches(context.Context, topology.NetworkID) ([]topology.Branch, error) {
	return nil, nil
}

// process is the only one.
type process struct{ ended atomic.Bool }

func (p *process) StartTime(pid int) (uint64, bool) { return 77, pid == living && !p.ended.Load() }
func (*process) Namespace(int) string               { return "" }

// engine is a Docker that does not answer.
type engine struct{}

func (engine) Networks(context.Context) ([]fabric.EngineNetwork, error) { return nil, errSilent }

func (engine) Network(context.Context, string) (fabric.EngineNetwork, bool, error) {
	return fabric.EngineNetwork{}, false, errSilent
}

func (engine) Endpoints(context.Context, topology.NetworkID) (map[topology.EndpointID]fabric.EngineContainer, error) {
	return nil, errSilent
}

// guard admits everybody as cgroup 5, and denied 5 two binds.
type guard struct{ fabric.Unguarded }

// nobodyHeld is a host whose guard by system calls has never been needed.
func nobodyHeld() (map[topology.ContainerID]holder.Denials, error) { return nil, nil }

func (guard) Admit(context.Context, string, topology.Identity) (topology.CgroupID, error) {
	return 5, nil
}

func (guard) Status() runtimeapi.GuardStatus {
	return runtimeapi.GuardStatus{Mode: "bpf", Strangers: 3}
}

func (guard) Denials(id topology.CgroupID) (runtimeapi.Denials, error) {
	switch id {
	case 0:
		return runtimeapi.Denials{}, nil
	case 5:
		return runtimeapi.Denials{Binds: 2}, nil
	}
	return runtimeapi.Denials{}, errors.New("no such cgroup")
}

const living = 4711

var (
	errSilent = errors.New("no answer")
	resolver  = netip.MustParseAddr("169.254.0.53")
	network   = topology.NetworkID(strings.Repeat("1", 64))
	endpoint  = topology.EndpointID(strings.Repeat("2", 64))
	container = topology.ContainerID(strings.Repeat("3", 64))
)

func table[T any](t *testing.T, db *store.DB, name string) *store.Table[T] {
	t.Helper()
	tab, err := store.NewTable[T](db, name)
	if err != nil {
		t.Fatal(err)
	}
	return tab
}

// newFabric has one network and, on it, an endpoint that no container has claimed.
func newFabric(t *testing.T, p *process) (f *fabric.Fabric, addr netip.Addr) {
	t.Helper()
	db, err := store.Open(filepath.Join(t.TempDir(), "store.db"), store.Volatile)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	defaults, err := pool.NewDefaults(pool.Cut{Base: netip.MustParsePrefix("10.128.0.0/9"), Bits: 20}, pool.Cut{Base: netip.MustParsePrefix("fd00:1:2::/48"), Bits: 64})
	if err != nil {
		t.Fatal(err)
	}
	log := logrus.New()
	log.SetOutput(io.Discard)
	f, err = fabric.Open(t.Context(), fabric.Options{
		Segments: ports{}, Branches: branches{}, Sandboxes: ports{}, Engine: engine{}, Processes: p, RunFiles: ports{}, Resolvers: ports{}, Guard: guard{},
		Networks: table[fabric.Network](t, db, "networks"), Pools: table[fabric.Pool](t, db, "pools"), Peers: table[[]topology.Peer](t, db, "peers"),
		Leases: table[fabric.Lease](t, db, "leases"), Endpoints: table[fabric.Endpoint](t, db, "endpoints"), Kept: table[[]netip.Prefix](t, db, "kept"), Defaults: defaults,
		Underlay: topology.Underlay{VTEP: netip.MustParseAddr("192.0.2.1"), MTU: 1500, Port: 4789}, NamespaceDir: "/run/particle/netns", Log: logrus.NewEntry(log),
	})
	if err != nil {
		t.Fatal(err)
	}
	made, err := f.RequestPool(t.Context(), fabric.PoolSpec{Subnet: netip.MustParsePrefix("10.77.0.0/16")})
	if err == nil {
		err = f.CreateNetwork(t.Context(), fabric.NetworkSpec{ID: network, Subnets: []fabric.Subnet{{Subnet: made.Subnet, Managed: true}}})
	}
	if err != nil {
		t.Fatal(err)
	}
	f.NetworkSeen(network, "blue")
	a, err := f.RequestAddress(t.Context(), fabric.AddressSpec{Pool: made.ID})
	if err == nil {
		err = f.CreateEndpoint(t.Context(), fabric.EndpointSpec{Network: network, ID: endpoint, IPv4: a.Addr()})
	}
	if err == nil {
		err = f.Join(t.Context(), network, endpoint, "/run/docker/netns/3")
	}
	if err != nil {
		t.Fatal(err)
	}
	return f, a.Addr()
}

// socket is where the API of a fabric answers.
func socket(t *testing.T, f *fabric.Fabric) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "particle.sock")
	l, err := runtimeapi.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() {
		served <- runtimeapi.Serve(ctx, l, hostapi.API{Fabric: f, Guard: guard{}, Held: nobodyHeld}, time.Minute)
	}()
	t.Cleanup(func() {
		stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return path
}

// status is the only endpoint's, and all else.
func status(t *testing.T, path string) (runtimeapi.Status, runtimeapi.EndpointStatus) {
	t.Helper()
	reply, err := runtimeapi.Call(t.Context(), path, runtimeapi.Request{Status: &runtimeapi.Query{}})
	if err != nil || reply.Status == nil || len(reply.Status.Networks) != 1 || len(reply.Status.Networks[0].Endpoints) != 1 {
		t.Fatalf("status %+v, %v", reply.Status, err)
	}
	return *reply.Status, reply.Status.Networks[0].Endpoints[0]
}

// A container's life as the runtime tells it: place, claim, release.
func TestLife(t *testing.T) {
	t.Parallel()
	var p process
	f, addr := newFabric(t, &p)
	path := socket(t, f)
	reply, err := runtimeapi.Call(t.Context(), path, runtimeapi.Request{Place: &runtimeapi.Place{
		Container: container, Name: "web", Networks: []runtimeapi.NetworkRef{{Name: "blue", ID: string(network)}}}})
	want := &runtimeapi.Placement{Member: true, Network: network, NetworkName: "blue", Namespace: "/run/particle/netns/" + string(network), Resolver: resolver}
	if diff := cmp.Diff(want, reply.Place, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" || err != nil {
		t.Errorf("place: %v\n%s", err, diff)
	}
	_, before := status(t, path)
	if before.Container != "" || before.Denied.Sum() != 0 {
		t.Errorf("before the claim: %+v", before)
	}
	_, err = runtimeapi.Call(t.Context(), path, runtimeapi.Request{Claim: &runtimeapi.Claim{
		Container: container, Name: "web", Network: network, Pid: living, Cgroup: "/docker/" + string(container), Hostname: "web1",
		Hosts: []runtimeapi.HostLine{{Addr: netip.MustParseAddr("127.0.0.1"), Names: []string{"localhost"}}, {Addr: addr, Names: []string{"web1"}}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	all, e := status(t, path)
	if e.ID != endpoint || e.Container != container || e.Name != "web" || e.Pid != living || e.IPv4 != addr || e.Denied.Binds != 2 {
		t.Errorf("after the claim: %+v", e)
	}
	if all.Guard.Mode != "bpf" || all.Guard.Strangers != 3 || all.Guard.Problem != "" || all.Networks[0].Name != "blue" || all.Underlay.VTEP != "192.0.2.1" {
		t.Errorf("status %+v", all)
	}
	p.ended.Store(true)
	if _, err = runtimeapi.Call(t.Context(), path, runtimeapi.Request{Release: &runtimeapi.Release{Container: container}}); err != nil {
		t.Error(err)
	}
	if _, e = status(t, path); e.Pid != 0 {
		t.Errorf("after the release: %+v", e)
	}
}

// What goes wrong is told with a remedy, and in the host's terms.
func TestRefusals(t *testing.T) {
	t.Parallel()
	f, addr := newFabric(t, &process{})
	path := socket(t, f)
	claim := runtimeapi.Claim{Container: container, Name: "web", Network: network, Pid: living + 1, Cgroup: "/docker/x", Hostname: "web1",
		Hosts: []runtimeapi.HostLine{{Addr: addr, Names: []string{"web1"}}}}
	elsewhere := claim
	elsewhere.Pid, elsewhere.Hosts = living, []runtimeapi.HostLine{{Addr: netip.MustParseAddr("10.78.0.9"), Names: []string{"web1"}}}
	for name, c := range map[string]struct {
		request runtimeapi.Request
		want    string
	}{
		"nothing known":        {runtimeapi.Request{}, "install the same version"},
		"no such process":      {runtimeapi.Request{Claim: &claim}, "; "},
		"an address of nobody": {runtimeapi.Request{Claim: &elsewhere}, "; "},
		"a host that is alone": {runtimeapi.Request{Cluster: &runtimeapi.Cluster{}}, "keeps to its host"},
	} {
		reply, err := runtimeapi.Call(t.Context(), path, c.request)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			told, _ := json.Marshal(reply)
			t.Errorf("%s: %s, %v; want an error with %q", name, told, err, c.want)
		}
	}
	reply, err := runtimeapi.Call(t.Context(), path, runtimeapi.Request{Place: &runtimeapi.Place{Container: container, Networks: []runtimeapi.NetworkRef{{Name: "red"}}}})
	if err != nil || reply.Place == nil || reply.Place.Member {
		t.Errorf("place on a network that is not ours: %+v, %v", reply.Place, err)
	}
	if _, e := status(t, path); e.Container != "" {
		t.Errorf("a refused claim left %+v", e)
	}
}
