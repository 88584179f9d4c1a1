package memory

import (
	"crypto/rand"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"

	"github.com/particle-net/particle/control"
	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/topology"
)

// Cluster is what several hosts share. It is safe for concurrent use.
type Cluster struct {
	mu      sync.Mutex
	now     state
	stores  map[topology.NodeID]*Store // as they were opened last
	changed chan struct{}              // closed at each change of anything
}

// place names a claim or an announcement within a cluster.
type place struct {
	network topology.SharedID
	prefix  netip.Prefix
}

type announcement struct {
	place
	node topology.NodeID
}

// state is all that the store holds. Its values are never changed in place.
type state struct {
	instance  string
	revision  int64
	nodes     map[topology.NodeID]control.NodeState
	networks  map[topology.SharedID]control.Network
	names     map[string]topology.SharedID
	claims    map[place]control.Claim
	freed     map[place]int64 // revision at which a block was given up
	announced map[announcement]control.Route
	vouched   map[announcement]control.Route
	settling  map[topology.SharedID]bool // networks that grant no new claims
}

// New returns a cluster without hosts.
func New() *Cluster {
	return &Cluster{now: empty(), stores: map[topology.NodeID]*Store{}, changed: make(chan struct{})}
}

func empty() state {
	return state{
		instance: rand.Text(), revision: 1,
		nodes: map[topology.NodeID]control.NodeState{}, networks: map[topology.SharedID]control.Network{},
		names: map[string]topology.SharedID{}, claims: map[place]control.Claim{},
		freed: map[place]int64{}, announced: map[announcement]control.Route{}, vouched: map[announcement]control.Route{},
		settling: map[topology.SharedID]bool{},
	}
}

func (s state) clone() state {
	s.nodes, s.networks, s.names = maps.Clone(s.nodes), maps.Clone(s.networks), maps.Clone(s.names)
	s.claims, s.freed, s.announced = maps.Clone(s.claims), maps.Clone(s.freed), maps.Clone(s.announced)
	s.vouched, s.settling = maps.Clone(s.vouched), maps.Clone(s.settling)
	return s
}

// touch tells every watch to look. c.mu is held.
func (c *Cluster) touch() {
	close(c.changed)
	c.changed = make(chan struct{})
}

// Snapshot is the state of a cluster at one moment.
type Snapshot struct{ s state }

// Save keeps the state for Load.
func (c *Cluster) Save() Snapshot {
	c.mu.Lock()
	defer c.mu.Unlock()
	return Snapshot{c.now.clone()}
}

// Load sets the cluster back, as a store that was restored from a copy is: hosts
// find that out, and make it another instance, at an older revision.
func (c *Cluster) Load(s Snapshot) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = s.s.clone()
	c.now.instance = rand.Text()
	for id := range c.now.networks {
		c.now.settling[id] = true
	}
	c.touch()
}

// Settle lets the 10 minutes pass in which hosts claim again what a store has
// lost that was wiped or set back.
func (c *Cluster) Settle() {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.now.settling)
}

// Wipe takes everything away, as an operator who deletes the store's folder
// does. The records of the hosts that run and reach the store come back at once,
// as they write them anew; claims are theirs to restore.
func (c *Cluster) Wipe() {
	c.mu.Lock()
	defer c.mu.Unlock()
	nodes := c.now.nodes
	c.now = empty()
	for id, s := range c.stores {
		if n, ok := nodes[id]; ok && n.Alive && !s.cut {
			c.now.nodes[id] = n
		}
	}
	c.touch()
}

// SetAlive says whether a host's lease lives.
func (c *Cluster) SetAlive(id topology.NodeID, alive bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if n, ok := c.now.nodes[id]; ok {
		n.Alive = alive
		c.now.nodes[id] = n
		c.now.revision++
		c.touch()
	}
}

// Host adds a host, or opens its store anew, as after a restart of its plugin.
func (c *Cluster) Host(n control.Node) *Store {
	s := &Store{c: c, id: n.ID, node: n, closed: make(chan struct{})}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stores[n.ID] = s
	c.now.nodes[n.ID] = control.NodeState{Node: n, Alive: true}
	c.now.revision++
	c.touch()
	return s
}

// nameOf is what people call a host. c.mu is held.
func (c *Cluster) nameOf(id topology.NodeID) string {
	if n, ok := c.now.nodes[id]; ok && n.Name != "" {
		return "host " + n.Name
	}
	return "host " + id.Short()
}

// routes are the network's routes: its claims and what was announced beside
// them. c.mu is held.
func (s state) routes(id topology.SharedID) []control.Route {
	var out []control.Route
	for p, c := range s.claims {
		if p.network != id {
			continue
		}
		r := s.nodes[c.Node].Route(id, p.prefix)
		r.Node = c.Node // who may be gone
		if said, ok := s.announced[announcement{p, c.Node}]; ok {
			r = said
		}
		out = append(out, r)
	}
	for a, r := range s.announced {
		if c, ok := s.claims[a.place]; a.network == id && (!ok || c.Node != a.node) {
			out = append(out, r)
		}
	}
	for a, r := range s.vouched {
		if a.network == id {
			out = append(out, r)
		}
	}
	return out
}

// drop ends claims. c.mu is held.
func (c *Cluster) drop(of func(control.Claim) bool) {
	for p, claim := range c.now.claims {
		if !of(claim) {
			continue
		}
		delete(c.now.claims, p)
		if !claim.Single() {
			c.now.revision++
			c.now.freed[p] = c.now.revision
		}
	}
}

// collect takes away a removed network without claims. c.mu is held.
func (c *Cluster) collect(id topology.SharedID) {
	n, ok := c.now.networks[id]
	if !ok || !n.Removed {
		return
	}
	for p := range c.now.claims {
		if p.network == id {
			return
		}
	}
	for a := range c.now.vouched {
		if a.network == id {
			return
		}
	}
	delete(c.now.networks, id)
	maps.DeleteFunc(c.now.freed, func(p place, _ int64) bool { return p.network == id })
}

// taken tells who has the address, or the block around it, or what of the block.
// c.mu is held.
func (c *Cluster) taken(id topology.SharedID, p netip.Prefix) (control.Claim, bool) {
	for at, claim := range c.now.claims {
		if at.network == id && at.prefix.Overlaps(p) {
			return claim, true
		}
	}
	return control.Claim{}, false
}

func (c *Cluster) refuse(p netip.Prefix, by control.Claim) error {
	how := ""
	if by.Prefix != p {
		how = fmt.Sprintf(" with %s", by.Prefix)
	}
	return &fault.Error{
		Op: "claim", On: p.String(), Err: fmt.Errorf("%w by %s%s", control.ErrTaken, c.nameOf(by.Node), how),
		Fix: "choose another address or leave it out",
	}
}

// oldest is the block that was given up first. c.mu is held.
func (c *Cluster) oldest(of func(place) bool) (netip.Prefix, bool) {
	waiting := slices.Collect(maps.Keys(c.now.freed))
	waiting = slices.DeleteFunc(waiting, func(p place) bool { return !of(p) })
	if len(waiting) == 0 {
		return netip.Prefix{}, false
	}
	return slices.MinFunc(waiting, func(a, b place) int { return int(c.now.freed[a] - c.now.freed[b]) }).prefix, true
}
