package fabric

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/particle-net/particle/ipam/pool"
	"github.com/particle-net/particle/topology"
)

// Options are what a Fabric stands on. All interfaces but Cluster are needed.
type Options struct {
	Segments  Segments
	Branches  Branches
	Sandboxes Sandboxes
	Engine    Engine
	Processes Processes
	RunFiles  RunFiles
	Resolvers Resolvers
	Guard     Guard
	// GuardMode is what networks get that ask for nothing else; Guard is that of
	// GuardBPF, or Unguarded.
	GuardMode GuardMode
	// NoSeccomp says why containers cannot have GuardSeccomp here; nil if they can.
	NoSeccomp error
	Cluster   Cluster // nil: this host is alone

	Networks  Table[Network]         // durable
	Pools     Table[Pool]            // durable
	Peers     Table[[]topology.Peer] // durable, by network
	Leases    Table[Lease]           // until the next boot
	Endpoints Table[Endpoint]        // until the next boot
	Kept      Table[[]netip.Prefix]  // until the next boot, by network: what of its Claims this host has still

	Defaults     *pool.Defaults // used under Fabric's lock
	Underlay     topology.Underlay
	Local        []netip.Prefix // local in every tenant namespace, beside the pools
	NamespaceDir string         // where tenant namespaces are bound, as the host sees it
	Version      string
	Log          *logrus.Entry
}

// Fabric is the state of this host. All methods are safe for concurrent use.
type Fabric struct {
	o       Options
	started time.Time

	// publishing keeps an older list of networks from replacing a newer one.
	// Rank: before mu, after a network's work.
	publishing sync.Mutex

	// admission is held for reading from a cgroup's admission until it is on
	// record. Rank: before mu.
	admission sync.RWMutex

	// mu guards everything below, and o.Underlay. It is never held over kernel work, the Docker
	// API or a flush to disk; a write to a volatile table is allowed.
	mu        sync.Mutex
	networks  map[topology.NetworkID]*network
	pools     map[topology.PoolID]*addressPool
	turns     poolTurns
	endpoints map[topology.EndpointID]*Endpoint
	// containers holds the endpoints by the containers that have claimed them, as
	// their own or as guests; usually one.
	containers map[topology.ContainerID][]*Endpoint
	repairs    int
	departures departures
	// removing counts who takes an endpoint away: a branch that is made meanwhile goes, too.
	removing map[topology.EndpointID]int
	// suspected holds when Reconcile first found an endpoint without a process.
	suspected map[topology.EndpointID]time.Time
}

// network is a Network with what is only known at run time.
type network struct {
	Network
	// work serialises the kernel work and the durable writes of one network.
	// Rank: before Fabric.mu.
	work     sync.Mutex
	creating bool // its first Apply is not through
	applied  bool // the kernel was made to match since the plugin started
	uplinkUp bool // the uplink was applied since the plugin started
	problem  string
	// unreached tells of peers that this host has no way to; containers run without.
	unreached string
	// branchesSeen: those that the kernel has were compared with the records since
	// the plugin started.
	branchesSeen bool
	endpoints    map[topology.EndpointID]*Endpoint
	addresses    map[netip.Addr]*Endpoint
	slots        map[topology.Slot]bool // taken
	lastSlot     topology.Slot          // the one given out last
	// half is the first address of an endpoint to be, while Docker is expected to ask
	// for the second: see half.go.
	half *Lease

	// Of a network that a cluster shares, or is about to.
	shareable bool
	sharing   topology.SharedID // as what it is offered to the cluster
	peers     []topology.Peer
	peersNew  bool                // the disk does not have peers yet
	claimsNew bool                // nor Claims and Leaving
	suspended error               // why no new addresses; nil if they may be
	singles   map[netip.Addr]bool // claimed for themselves, and local
	unused    []netip.Addr        // likewise in the cluster, but by no lease here
	// singleTurn is held while a single address is claimed or given back, over
	// calls to the cluster. Rank: before work.
	singleTurn sync.Mutex
}

// rebuildLimit stays under the 12.5 s after which Docker gives a starting plugin
// up (plugin/manager_linux.go).
const rebuildLimit = 6 * time.Second

// Open loads what the stores hold and makes the kernel match. A network that
// cannot be rebuilt does not stop the others; its problem shows in Status and
// Repair tries again.
func Open(ctx context.Context, o Options) (*Fabric, error) {
	if o.Cluster == nil {
		o.Cluster = alone{}
	}
	f := &Fabric{
		o:          o,
		started:    time.Now(),
		networks:   map[topology.NetworkID]*network{},
		pools:      map[topology.PoolID]*addressPool{},
		endpoints:  map[topology.EndpointID]*Endpoint{},
		containers: map[topology.ContainerID][]*Endpoint{},
		suspected:  map[topology.EndpointID]time.Time{},
		removing:   map[topology.EndpointID]int{},
		departures: departures{next: map[topology.NetworkID]*departure{}},
		turns:      newPoolTurns(),
	}
	if err := f.load(); err != nil {
		return nil, err
	}
	// What is not rebuilt in time follows when a container asks for it.
	bounded, cancel := context.WithTimeout(ctx, rebuildLimit)
	defer cancel()
	for _, n := range f.snapshot() {
		f.rebuild(bounded, n)
	}
	return f, f.publish()
}

func (f *Fabric) load() error {
	networks, errN := f.o.Networks.All()
	pools, errP := f.o.Pools.All()
	leases, errL := f.o.Leases.All()
	endpoints, errE := f.o.Endpoints.All()
	peers, errH := f.o.Peers.All()
	kept, errK := f.o.Kept.All()
	if err := errors.Join(errN, errP, errL, errE, errH, errK); err != nil {
		return err
	}
	for id, n := range networks {
		f.networks[topology.NetworkID(id)] = newNetwork(n)
		f.networks[topology.NetworkID(id)].peers = peers[id]
	}
	defer f.withdrawLost(kept)()
	byPool := map[topology.PoolID][]Lease{}
	for _, l := range leases {
		byPool[l.Pool] = append(byPool[l.Pool], l)
	}
	for id, p := range pools {
		loaded, err := loadPool(p, byPool[p.ID], f.networks[p.Network])
		if err != nil {
			return fmt.Errorf("pool %s: %w", id, err)
		}
		if p.Network != "" && f.networks[p.Network] == nil { // Docker has lost it, and the pool with it
			loaded.Network, loaded.spent = "", true
		}
		f.pools[topology.PoolID(id)] = loaded
	}
	for id, e := range endpoints {
		n := f.networks[e.Network]
		if n == nil {
			// Its network was removed while the plugin was not there to see it.
			if err := f.o.Endpoints.Delete(id); err != nil {
				return err
			}
			continue
		}
		f.index(n, &e)
	}
	// All are known by now: one may tell whose a pool is, and with it the leases
	// of others.
	for id, e := range f.endpoints {
		for _, a := range e.Addresses() {
			f.linkLease(f.networks[e.Network], a, id)
		}
	}
	return f.giveSlots()
}

// giveSlots completes the endpoints of a version that knew no slots.
func (f *Fabric) giveSlots() error {
	for _, e := range f.endpoints {
		if e.Slot != 0 {
			continue
		}
		slot, err := f.networks[e.Network].takeSlot()
		if err != nil {
			return err
		}
		f.networks[e.Network].slots[slot] = true
		e.Slot = slot
		if err := f.o.Endpoints.Put(string(e.ID), *e); err != nil {
			return err
		}
	}
	return nil
}

func newNetwork(record Network) *network {
	return &network{
		Network:   record,
		endpoints: map[topology.EndpointID]*Endpoint{},
		addresses: map[netip.Addr]*Endpoint{},
		slots:     map[topology.Slot]bool{},
		singles:   map[netip.Addr]bool{},
	}
}

// rebuild makes a known network's kernel state after a start of the plugin.
func (f *Fabric) rebuild(ctx context.Context, n *network) {
	n.work.Lock()
	defer n.work.Unlock()
	if _, err := f.apply(ctx, n); err != nil {
		f.o.Log.WithError(err).WithField("net", n.ID.Short()).Error("network not rebuilt; trying again later")
	}
}

// apply makes the kernel match the network's record. That other hosts cannot be reached
// is noted, and is no failure: containers of this host run and reach the rest. The caller
// holds n.work.
func (f *Fabric) apply(ctx context.Context, n *network) (bool, error) {
	f.mu.Lock()
	segment, record := f.segment(n), n.Network
	f.mu.Unlock()
	changed, err := f.o.Segments.Apply(ctx, segment)
	err = f.noteUnreached(n, err)
	up := false
	if err == nil && record.Uplink != NoUplink {
		var more bool
		more, err = f.applyUplink(ctx, record)
		changed, up = changed || more, err == nil
	}
	if err == nil {
		err = f.kernelGuard(record).Protect(ctx, n.ID, record.hasIPv6())
	}
	if err != nil && ctx.Err() != nil {
		return changed, err // that our time is over says nothing about the network
	}
	f.mu.Lock()
	if err == nil {
		err = f.serve(n, n.Claims) // what is local now may be handed out
	}
	n.applied, n.uplinkUp, n.problem = err == nil, up, ""
	if err != nil {
		n.problem = err.Error()
	}
	f.mu.Unlock()
	if err != nil {
		return changed, err
	}
	// Without its resolver a network still carries everything else.
	_, err = f.o.Resolvers.Serve(ctx, n.ID)
	return changed, err
}

// noteUnreached takes what Segments.Apply says, and gives it back unless it only tells of
// other hosts.
func (f *Fabric) noteUnreached(n *network, err error) error {
	unreached := ""
	switch {
	case errors.Is(err, topology.ErrUnreached):
		unreached = err.Error()
	case err != nil:
		return err
	}
	f.mu.Lock()
	news := n.unreached != unreached
	n.unreached = unreached
	f.mu.Unlock()
	if news && unreached != "" {
		f.o.Log.WithField("net", n.ID.Short()).Warn(unreached)
	}
	return nil
}

func (f *Fabric) applyUplink(ctx context.Context, n Network) (bool, error) {
	f.mu.Lock()
	mtu := f.o.Underlay.MTU
	f.mu.Unlock()
	u, err := topology.NewUplink(n.ID, n.Uplink, mtu)
	if err != nil {
		return false, err
	}
	if n.hasIPv6() {
		u = u.WithIPv6()
	}
	return f.o.Segments.ApplyUplink(ctx, u)
}

func (f *Fabric) segment(n *network) topology.Segment {
	s := topology.Segment{
		Network: n.ID,
		VNI:     n.VNI,
		VTEP:    f.o.Underlay.VTEP,
		Port:    f.o.Underlay.Port,
		MTU:     n.MTU,
	}
	for _, p := range n.Subnets {
		s.Pools = append(s.Pools, p.Subnet)
	}
	if n.Shared != "" {
		s.Subnets, s.Pools, s.Peers = s.Pools, n.local(), n.peers
	}
	s.Pools = append(s.Pools, f.o.Local...)
	return s
}

// SetUnderlay follows a change of what VXLAN packets travel over: a host's
// address may come after the plugin's start, and change. Repair and the next
// container of each network bring the kernel in line.
func (f *Fabric) SetUnderlay(u topology.Underlay) (changed bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.o.Underlay == u {
		return false
	}
	f.o.Underlay = u
	for _, n := range f.networks {
		n.applied = false
	}
	return true
}

// snapshot lists the networks without holding mu over what is done with them.
func (f *Fabric) snapshot() []*network {
	f.mu.Lock()
	defer f.mu.Unlock()
	all := make([]*network, 0, len(f.networks))
	for _, n := range f.networks {
		all = append(all, n)
	}
	return all
}

// publish writes the list of networks for particle-runtime.
func (f *Fabric) publish() error {
	f.publishing.Lock()
	defer f.publishing.Unlock()
	f.mu.Lock()
	list := make([]EngineNetwork, 0, len(f.networks))
	for _, n := range f.networks {
		list = append(list, EngineNetwork{ID: n.ID, Name: n.Name, Ours: true})
	}
	f.mu.Unlock()
	return f.o.RunFiles.PublishNetworks(list)
}

// index enters an endpoint into the maps. The caller holds mu, or is alone.
func (f *Fabric) index(n *network, e *Endpoint) {
	f.endpoints[e.ID] = e
	n.endpoints[e.ID] = e
	n.slots[e.Slot] = true
	n.lastSlot = max(n.lastSlot, e.Slot)
	f.own(e)
	for _, a := range e.Addresses() {
		n.addresses[a] = e
	}
}

// unindex is the reverse of index.
func (f *Fabric) unindex(n *network, e *Endpoint) {
	delete(f.endpoints, e.ID)
	f.disown(e)
	if n == nil {
		return
	}
	delete(n.endpoints, e.ID)
	delete(n.slots, e.Slot)
	for _, a := range e.Addresses() {
		if n.addresses[a] == e {
			delete(n.addresses, a)
		}
	}
}
