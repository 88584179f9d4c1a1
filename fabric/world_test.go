package fabric_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/particle-net/particle/fabric"
	"github.com/particle-net/particle/internal/store"
	"github.com/particle-net/particle/ipam/pool"
	"github.com/particle-net/particle/topology"
)

// world stands for everything around a Fabric: it counts and remembers, and
// can be told to fail. The stores are real ones. Kernel work has its own tests
// in package overlay.
type world struct {
	t   testing.TB
	dir string

	mu         sync.Mutex
	segments   map[topology.NetworkID]topology.Segment
	uplinks    map[topology.NetworkID]topology.Uplink
	applies    int
	applyErr   error
	unreached  error                 // told by what succeeds
	foreign    map[topology.VNI]bool // held by devices that are not ours
	applied    func(n int)           // called by the nth Apply
	demolish   func()                // called by Remove
	sandboxes  map[string]fabric.SandboxState
	engineErr  error
	networks   []fabric.EngineNetwork
	endpoints  map[topology.EndpointID]fabric.EngineContainer
	branches   map[topology.EndpointID]topology.Branch
	removals   []int  // branches of each RemoveBranches
	applying   func() // called by ApplyBranch
	removing   func() // called by RemoveBranches
	removed    func() // likewise, at its end
	branchErr  error
	restored   map[string]string // namespace by sandbox key
	processes  map[int]uint64
	asks       int // calls of StartTime
	published  []fabric.EngineNetwork
	stores     []*store.DB
	lookups    int
	resolvConf map[topology.ContainerID]bool
	protected  map[topology.NetworkID]bool
	admitted   map[topology.CgroupID]topology.Identity
	guarded    []topology.EndpointID // by ProtectBranch
	guardErr   error
	guardMode  fabric.GuardMode
	noSeccomp  error
	ask        fabric.GuardMode // of networks to be created
	cluster    fabric.Cluster
	changes    []peerChange
	diskErr    error // of the table of networks
	kept       int   // writes of peers
}

func newWorld(t testing.TB) *world {
	w := &world{
		t: t, dir: t.TempDir(),
		segments:   map[topology.NetworkID]topology.Segment{},
		uplinks:    map[topology.NetworkID]topology.Uplink{},
		sandboxes:  map[string]fabric.SandboxState{},
		endpoints:  map[topology.EndpointID]fabric.EngineContainer{},
		branches:   map[topology.EndpointID]topology.Branch{},
		restored:   map[string]string{},
		processes:  map[int]uint64{},
		resolvConf: map[topology.ContainerID]bool{},
		protected:  map[topology.NetworkID]bool{},
		admitted:   map[topology.CgroupID]topology.Identity{},
	}
	t.Cleanup(w.crash)
	return w
}

// crash ends the plugin as a kill would: nothing is told to anybody.
func (w *world) crash() {
	for _, db := range w.stores {
		if err := db.Close(); err != nil {
			w.t.Error(err)
		}
	}
	w.stores = nil
}

func table[T any](w *world, db *store.DB, name string) *store.Table[T] {
	tab, err := store.NewTable[T](db, name)
	if err != nil {
		w.t.Fatal(err)
	}
	return tab
}

// networksOn is a table on a disk that may be full.
type networksOn struct {
	*store.Table[fabric.Network]
	w *world
}

func (t networksOn) Put(key string, n fabric.Network) error {
	t.w.mu.Lock()
	err := t.w.diskErr
	t.w.mu.Unlock()
	if err != nil {
		return err
	}
	return t.Table.Put(key, n)
}

// peersOn is a table whose writes are counted.
type peersOn struct {
	*store.Table[[]topology.Peer]
	w *world
}

func (t peersOn) Put(key string, all []topology.Peer) error {
	t.w.mu.Lock()
	t.w.kept++
	t.w.mu.Unlock()
	return t.Table.Put(key, all)
}

func (w *world) store(file string) *store.DB {
	db, err := store.Open(filepath.Join(w.dir, file), store.Volatile)
	if err != nil {
		w.t.Fatal(err)
	}
	w.stores = append(w.stores, db)
	return db
}

// open starts the plugin on what is in the stores.
func (w *world) open() *fabric.Fabric {
	w.t.Helper()
	log := logrus.New()
	log.SetOutput(io.Discard)
	defaults, err := pool.NewDefaults(
		pool.Cut{Base: netip.MustParsePrefix("10.128.0.0/9"), Bits: 20},
		pool.Cut{Base: netip.MustParsePrefix("fd00:1:2::/48"), Bits: 64})
	if err != nil {
		w.t.Fatal(err)
	}
	durable, live := w.store("durable.db"), w.store("live.db")
	f, err := fabric.Open(context.Background(), fabric.Options{
		Segments: w, Branches: w, Sandboxes: sandboxes{w}, Engine: engine{w}, Processes: w, RunFiles: w, Resolvers: resolvers{},
		Networks: networksOn{table[fabric.Network](w, durable, "networks"), w}, Pools: table[fabric.Pool](w, durable, "pools"),
		Peers: peersOn{table[[]topology.Peer](w, durable, "peers"), w}, Cluster: w.cluster,
		Leases: table[fabric.Lease](w, live, "leases"), Endpoints: table[fabric.Endpoint](w, live, "endpoints"), Kept: table[[]netip.Prefix](w, live, "kept"),
		Defaults:     defaults,
		Underlay:     topology.Underlay{VTEP: netip.MustParseAddr("192.0.2.1"), MTU: 1500, Port: 4789},
		Local:        []netip.Prefix{netip.MustParsePrefix("169.254.0.53/32")},
		Guard:        guard{w},
		GuardMode:    w.guardMode,
		NoSeccomp:    w.noSeccomp,
		NamespaceDir: "/run/particle/netns",
		Log:          logrus.NewEntry(log),
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return f
}

// reopen is a kill of the plugin and its next start.
func (w *world) reopen() *fabric.Fabric {
	w.crash()
	return w.open()
}

func (w *world) Apply(_ context.Context, s topology.Segment) (bool, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.applies++
	if w.applied != nil {
		w.applied(w.applies)
	}
	if w.applyErr != nil {
		return false, w.applyErr
	}
	if w.foreign[s.VNI] {
		return false, fmt.Errorf("VNI %d: %w by device foreign", s.VNI, topology.ErrVNIInUse)
	}
	_, known := w.segments[s.Network]
	w.segments[s.Network] = s
	return !known, w.unreached
}

// peerChange is a call of ChangePeers.
type peerChange struct{ before, after []topology.Peer }

func (w *world) ChangePeers(_ context.Context, applied topology.Segment, before, after []topology.Peer) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.changes = append(w.changes, peerChange{before, after})
	if w.applyErr == nil {
		s := w.segments[applied.Network]
		s.Peers = slices.DeleteFunc(slices.Clone(s.Peers), func(p topology.Peer) bool {
			return slices.ContainsFunc(before, func(b topology.Peer) bool { return b.VTEP == p.VTEP })
		})
		s.Peers = append(s.Peers, after...)
		w.segments[applied.Network] = s
		return w.unreached
	}
	return w.applyErr
}

func (w *world) ApplyUplink(_ context.Context, u topology.Uplink) (bool, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	_, known := w.uplinks[u.Network]
	w.uplinks[u.Network] = u
	return !known, nil
}

func (w *world) ApplyBranch(_ context.Context, b topology.Branch) error {
	if w.applying != nil {
		w.applying()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.branchErr != nil {
		return w.branchErr
	}
	w.branches[b.Endpoint] = b
	return nil
}

func (w *world) RemoveBranches(_ context.Context, _ topology.NetworkID, ids []topology.EndpointID) error {
	if w.removing != nil {
		w.removing()
	}
	if w.removed != nil {
		defer w.removed()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.removals = append(w.removals, len(ids))
	for have := range w.branches {
		if slices.ContainsFunc(ids, func(id topology.EndpointID) bool { return id.Short() == have.Short() }) {
			delete(w.branches, have)
		}
	}
	return w.branchErr
}

func (w *world) Branches(_ context.Context, id topology.NetworkID) ([]topology.Branch, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var all []topology.Branch
	for _, b := range w.branches {
		if b.Network == id {
			all = append(all, topology.Branch{Network: id, Endpoint: topology.EndpointID(b.Endpoint.Short()), IPv4: b.IPv4, IPv6: b.IPv6, MTU: b.MTU})
		}
	}
	return all, nil
}

func (w *world) Namespace(pid int) string { return fmt.Sprintf("/proc/%d/ns/net", pid) }

func (w *world) Remove(_ context.Context, id topology.NetworkID) error {
	if w.demolish != nil {
		w.demolish()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.segments, id)
	delete(w.uplinks, id)
	return nil
}

func (w *world) Networks(context.Context) ([]topology.NetworkID, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var ids []topology.NetworkID
	for id := range w.segments {
		ids = append(ids, id)
	}
	return ids, nil
}

func (w *world) StartTime(pid int) (uint64, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.asks++
	start, ok := w.processes[pid]
	return start, ok
}

func (w *world) PublishNetworks(list []fabric.EngineNetwork) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.published = list
	return nil
}

func (w *world) SweepResolv(keep func(topology.ContainerID) bool, _ time.Duration) error {
	for id := range w.resolvConf {
		if !keep(id) {
			delete(w.resolvConf, id)
		}
	}
	return nil
}

type sandboxes struct{ w *world }

func (s sandboxes) State(_ topology.NetworkID, key string) (fabric.SandboxState, error) {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	return s.w.sandboxes[key], nil
}

func (s sandboxes) Expose(_ topology.NetworkID, key string) error {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	s.w.sandboxes[key] = fabric.SandboxTenant
	return nil
}

func (s sandboxes) Conceal(key string) error {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	delete(s.w.sandboxes, key)
	return nil
}

func (sandboxes) Namespace(key string) (string, error) { return "/host" + key, nil }

func (s sandboxes) Restore(key, namespace string) error {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	s.w.sandboxes[key], s.w.restored[key] = fabric.SandboxForeign, namespace
	return nil
}

type engine struct{ w *world }

func (e engine) Networks(context.Context) ([]fabric.EngineNetwork, error) {
	return e.w.networks, e.w.engineErr
}

func (e engine) Network(_ context.Context, ref string) (fabric.EngineNetwork, bool, error) {
	e.w.lookups++
	for _, match := range []func(fabric.EngineNetwork) bool{ // Docker's order
		func(n fabric.EngineNetwork) bool { return n.Name == ref },
		func(n fabric.EngineNetwork) bool { return strings.HasPrefix(string(n.ID), ref) },
	} {
		if i := slices.IndexFunc(e.w.networks, match); i >= 0 {
			return e.w.networks[i], true, e.w.engineErr
		}
	}
	return fabric.EngineNetwork{}, false, e.w.engineErr
}

func (e engine) Endpoints(context.Context, topology.NetworkID) (map[topology.EndpointID]fabric.EngineContainer, error) {
	return e.w.endpoints, e.w.engineErr
}

type resolvers struct{}

func (resolvers) Serve(context.Context, topology.NetworkID) (netip.Addr, error) {
	return netip.Addr{}, nil
}
func (resolvers) Stop(topology.NetworkID) {}

// guard names a cgroup by the sum of its path's bytes.
type guard struct{ w *world }

func cgroupID(path string) (id topology.CgroupID) {
	for _, b := range []byte(path) {
		id = id*31 + topology.CgroupID(b)
	}
	return id
}

func (g guard) Protect(_ context.Context, id topology.NetworkID, _ bool) error {
	g.w.mu.Lock()
	defer g.w.mu.Unlock()
	g.w.protected[id] = true
	return nil
}

func (g guard) ProtectBranch(_ context.Context, _ topology.NetworkID, id topology.EndpointID) error {
	g.w.mu.Lock()
	defer g.w.mu.Unlock()
	g.w.guarded = append(g.w.guarded, id)
	return nil
}

func (g guard) Unprotect(_ context.Context, id topology.NetworkID) error {
	g.w.mu.Lock()
	defer g.w.mu.Unlock()
	delete(g.w.protected, id)
	return nil
}

func (g guard) Admit(_ context.Context, cgroup string, id topology.Identity) (topology.CgroupID, error) {
	g.w.mu.Lock()
	defer g.w.mu.Unlock()
	if g.w.guardErr != nil {
		return 0, g.w.guardErr
	}
	g.w.admitted[cgroupID(cgroup)] = id
	return cgroupID(cgroup), nil
}

func (g guard) Expel(id topology.CgroupID) error {
	g.w.mu.Lock()
	defer g.w.mu.Unlock()
	delete(g.w.admitted, id)
	return nil
}

func (g guard) Admitted() (map[topology.CgroupID]topology.Identity, error) {
	g.w.mu.Lock()
	defer g.w.mu.Unlock()
	return maps.Clone(g.w.admitted), nil
}

var (
	errKernel = errors.New("the kernel says no")
	errDisk   = errors.New("no space is left on the disk")
)

func netID(c string) topology.NetworkID         { return topology.NetworkID(strings.Repeat(c, 64)) }
func epID(c string) topology.EndpointID         { return topology.EndpointID(strings.Repeat(c, 64)) }
func containerID(c string) topology.ContainerID { return topology.ContainerID(strings.Repeat(c, 64)) }

// create does what Docker does for `docker network create --subnet`.
func (w *world) create(f *fabric.Fabric, id topology.NetworkID, name, subnet string) fabric.Pool {
	w.t.Helper()
	ctx := context.Background()
	p, err := f.RequestPool(ctx, fabric.PoolSpec{Subnet: netip.MustParsePrefix(subnet)})
	if err != nil {
		w.t.Fatal(err)
	}
	gateway, err := f.RequestAddress(ctx, fabric.AddressSpec{Pool: p.ID, Gateway: true})
	if err != nil {
		w.t.Fatal(err)
	}
	err = f.CreateNetwork(ctx, fabric.NetworkSpec{ID: id, Guard: w.ask, Subnets: []fabric.Subnet{{Subnet: p.Subnet, Managed: true, Gateway: gateway.Addr()}}})
	if err != nil {
		w.t.Fatal(err)
	}
	w.networks = append(w.networks, fabric.EngineNetwork{ID: id, Name: name, Ours: true})
	f.NetworkSeen(id, name)
	return p
}

// start does what Docker up to 27 and our runtime do for `docker run`.
func (w *world) start(f *fabric.Fabric, id topology.NetworkID, p fabric.Pool, c string, pid int) netip.Addr {
	w.t.Helper()
	return w.startAs(f, id, fabric.AddressSpec{Pool: p.ID}, c, c, pid)
}

// startAs starts a container with an address by wish, or with another endpoint
// than at its first start.
func (w *world) startAs(f *fabric.Fabric, id topology.NetworkID, wish fabric.AddressSpec, ep, c string, pid int) netip.Addr {
	w.t.Helper()
	ctx := context.Background()
	a, err := f.RequestAddress(ctx, wish)
	if err != nil {
		w.t.Fatal(err)
	}
	w.connectAs(f, id, ep, c, a.Addr(), pid)
	return a.Addr()
}

// connect does the part of start after the address was handed out.
func (w *world) connect(f *fabric.Fabric, id topology.NetworkID, c string, a netip.Addr, pid int) {
	w.t.Helper()
	w.connectAs(f, id, c, c, a, pid)
}

func (w *world) connectAs(f *fabric.Fabric, id topology.NetworkID, ep, c string, a netip.Addr, pid int) {
	w.t.Helper()
	ctx := context.Background()
	if err := f.CreateEndpoint(ctx, fabric.EndpointSpec{ID: epID(ep), Network: id, IPv4: a}); err != nil {
		w.t.Fatal(err)
	}
	if err := f.Join(ctx, id, epID(ep), "/var/run/docker/netns/"+ep); err != nil {
		w.t.Fatal(err)
	}
	w.processes[pid] = uint64(pid) * 10
	err := f.Claim(ctx, fabric.ClaimSpec{Container: containerID(c), Name: "c" + c, Network: id, Pid: pid, Cgroup: cgroupOf(c, pid), Hostname: "h" + c,
		Hosts: []fabric.HostLine{{Addr: a, Names: []string{"h" + c}}}})
	if err != nil {
		w.t.Fatal(err)
	}
	w.endpoints[epID(ep)] = fabric.EngineContainer{ID: containerID(c), Name: "c" + c}
}

// cgroupOf is where a container's processes are: another one each time.
func cgroupOf(c string, pid int) string { return fmt.Sprintf("/docker/%s-%d", c, pid) }

// stop does what the runtime and Docker do when a container's process has ended.
func (w *world) stop(f *fabric.Fabric, p fabric.Pool, c string, pid int, a netip.Addr) {
	w.t.Helper()
	ctx := context.Background()
	delete(w.processes, pid)
	delete(w.endpoints, epID(c))
	for _, err := range []error{
		f.Release(ctx, containerID(c)), f.Leave(ctx, epID(c)), f.DeleteEndpoint(ctx, epID(c)), f.ReleaseAddress(ctx, p.ID, a),
	} {
		if err != nil {
			w.t.Fatal(err)
		}
	}
}

// pass is all that the plugin does again and again.
func pass(ctx context.Context, f *fabric.Fabric) error {
	return errors.Join(f.Reconcile(ctx), f.Repair(ctx))
}
