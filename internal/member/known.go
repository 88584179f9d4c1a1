package member

import (
	"errors"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/particle-net/particle/control"
	"github.com/particle-net/particle/topology"
)

// Known is what this host keeps on disk of a shared network.
type Known struct {
	Network control.Network // as the cluster last had it
	// Seen: the cluster's list of networks has had it, so that its absence means
	// something.
	Seen bool `json:",omitempty"`

	// Rule M survives a restart. On disk alone; network has them otherwise.
	Routes []control.Route
	control.Origin

	Vouch []control.Route `json:",omitempty"` // what the store has lost of others, and they have not claimed again

	Verified Stamp // when the store last said that our claims are ours
	// GivenUp: others may have them since this host was about to leave its cluster.
	GivenUp bool `json:",omitempty"`

	// Unshared: a user has removed it here; the cluster may not know yet.
	Unshared bool `json:",omitempty"`
	// Told: the cluster knows that it is removed.
	Told bool `json:",omitempty"`
	// Left: the host has left the cluster of which it is, and no cluster that it has joined
	// since has it.
	Left bool `json:",omitempty"`

	// Node is which host this one was when the disk was written. Of originKey alone.
	Node topology.NodeID `json:",omitempty"`
}

// Stamp is a moment that can be told from now after a restart, a reboot or a
// jump of the wall clock.
type Stamp struct {
	Boot string
	Up   time.Duration // since that boot
	Wall time.Time
}

// never is before all moments.
var never = Stamp{Boot: "none"}

// age is how long a stamp is past, at least.
func (s Stamp) age(now Stamp) time.Duration {
	if s.Boot == now.Boot {
		return now.Up - s.Up
	}
	// Another boot: only the wall clock tells. One that runs backwards tells
	// nothing, and then nothing is known for sure.
	if wall := now.Wall.Sub(s.Wall); wall >= now.Up {
		return wall
	} else if wall < 0 {
		return unverifiedFor
	}
	return now.Up
}

// Origin is what this host knows of the store that it saw last, on the disk of an
// earlier plugin perhaps; how far that had come at least.
func (m *Member) Origin() control.Origin {
	m.mu.Lock()
	defer m.mu.Unlock()
	last := m.cluster.Origin()
	for _, n := range m.networks {
		o := n.routes.Origin()
		if o.Instance != last.Instance {
			continue
		}
		last.Revision = max(last.Revision, o.Revision)
		last.Mark = last.Mark.Later(o.Mark)
	}
	return last
}

func (m *Member) stamp() Stamp {
	return Stamp{Boot: m.o.Node.Boot, Up: m.o.Clock(), Wall: m.o.Wall()}
}

// network is a Known with what lives as long as the process. Member.mu guards it.
type network struct {
	Known
	routes *control.Routes
	dirty  bool   // Known is newer than the disk
	here   bool   // the fabric has it
	called string // by this host's Docker
	making bool   // Docker is making it at our request

	doubles   int    // prefixes of two hosts, at the last message
	follow    func() // ends the goroutine that follows its routes; nil if there is none
	heard     bool   // routes has had a list since the start; until then the fabric knows better
	peers     []topology.Peer
	untended  bool                            // tend has to wait, for the list of networks or for the fabric
	sharedAt  time.Duration                   // the fabric may not have on record yet what Share has claimed
	peersSet  bool                            // the fabric has peers
	unset     string                          // why it has not, as people were told
	unkept    bool                            // nor has the disk, likewise
	unwritten bool                            // the disk has not taken Known, likewise
	announced map[netip.Prefix]netip.AddrPort // and as reached where
	singles   map[netip.Addr]bool             // claimed by ClaimAddress, perhaps not on the fabric's record yet
	releasing map[netip.Addr]chan struct{}    // closed when it is released
	low       map[netip.Prefix]bool           // a block of the subnet is to be claimed
	refills   map[netip.Prefix][]chan error   // who waits for one; each is told once
	lowRetry  time.Duration
	lowFails  int
	kick      chan struct{}  // has the follower look at low at once
	suspended error          // why the fabric gives out no new addresses; nil if it does
	resumed   bool           // the fabric was told that it may, by this entry: it may have left and come back
	saved     Stamp          // the Verified that the disk has or is about to have
	spare     []netip.Prefix // blocks claimed for a creation that has not succeeded yet
	absent    time.Duration  // since when the cluster's list and this host differ about it; 0 if they do not
	giveAt    time.Duration  // when to give it back to a store that lacks it
	vouchAt   time.Duration  // when to vouch for others
	leaveAt   time.Duration  // when to leave it, at the earliest

	phase   Phase
	problem string
	retry   time.Duration // when to try again what failed
	fails   int
}

// at finds or makes the entry of a network. The caller holds mu.
func (m *Member) at(id topology.SharedID) *network {
	n := m.networks[id]
	if n == nil {
		n = m.newNetwork(Known{Network: control.Network{ID: id}})
		m.networks[id] = n
	}
	return n
}

func (m *Member) newNetwork(k Known) *network {
	n := &network{
		Known: k, routes: control.NewRoutes(m.o.Node.ID), announced: map[netip.Prefix]netip.AddrPort{},
		singles: map[netip.Addr]bool{}, releasing: map[netip.Addr]chan struct{}{},
		low: map[netip.Prefix]bool{}, refills: map[netip.Prefix][]chan error{},
		kick: make(chan struct{}, 1), saved: k.Verified,
	}
	n.routes.Remember(k.Routes, k.Origin)
	n.Routes = nil
	return n
}

// load reads what the disk has.
func (m *Member) load() error {
	all, err := m.o.Known.All()
	if err != nil {
		return err
	}
	origin := all[originKey]
	delete(all, originKey)
	var seen []control.Network
	another := origin.Node != "" && origin.Node != m.o.Node.ID
	for id, k := range all {
		if another { // that one may be there, and have all of it
			k.Verified = never
		}
		n := m.newNetwork(k)
		n.dirty = another
		m.networks[topology.SharedID(id)] = n
		if k.Seen {
			seen = append(seen, k.Network)
		}
	}
	m.cluster.Remember(seen, origin.Origin)
	if m.stored, err = m.o.Hosts.All(); err != nil {
		return err
	}
	var nodes []control.NodeState
	for _, n := range m.stored {
		nodes = append(nodes, control.NodeState{Node: n})
	}
	m.nodes.Remember(nodes, control.Origin{})
	return nil
}

// originKey is where the origin of the list of networks is kept, among the
// networks themselves: no id is so short.
const originKey = "list"

// erase takes a network off the disk. The caller has forgotten it.
func (m *Member) erase(id topology.SharedID) error {
	m.saving.Lock()
	defer m.saving.Unlock()
	return m.o.Known.Delete(string(id))
}

// flush writes what has changed, of one network or of all, and says whether it could.
// Routes only guard the next restart against a store that has lost them; the fabric keeps
// the peers.
func (m *Member) flush(of ...topology.SharedID) bool {
	err, news := m.write(of...)
	if news {
		m.o.Log.WithError(err).Warn("what is known of a shared network is not on disk; trying again")
	}
	return err == nil
}

// write is flush for those who cannot go on without. What is not on disk is tried again
// with the next; news says that of some of it this is the first attempt to fail.
func (m *Member) write(of ...topology.SharedID) (err error, news bool) {
	m.saving.Lock()
	defer m.saving.Unlock()
	writes := m.unwritten(of)
	var errs []error
	for _, id := range slices.Sorted(maps.Keys(writes)) {
		err := m.o.Known.Put(id, writes[id])
		errs = append(errs, err)
		m.mu.Lock()
		failed, dirty := &m.unlisted, &m.listed
		if n := m.networks[topology.SharedID(id)]; n != nil {
			failed, dirty = &n.unwritten, &n.dirty
		}
		news = news || err != nil && !*failed
		*failed, *dirty = err != nil, *dirty || err != nil
		m.mu.Unlock()
	}
	return errors.Join(errs...), news
}

// unwritten is what has changed since it was written, and counts as written from then on.
func (m *Member) unwritten(of []topology.SharedID) map[string]Known {
	m.mu.Lock()
	defer m.mu.Unlock()
	writes := map[string]Known{}
	if m.listed && len(of) == 0 {
		var origin Known
		origin.Origin = m.cluster.Origin()
		origin.Node = m.o.Node.ID
		writes[originKey], m.listed = origin, false
	}
	if len(of) == 0 {
		of = slices.Collect(maps.Keys(m.networks))
	}
	for _, id := range of {
		n := m.networks[id]
		if n == nil || !n.dirty || !n.here && !n.Unshared {
			continue
		}
		k := n.Known
		k.Routes, k.Origin = n.routes.Known()
		k.Vouch = slices.Clone(n.Vouch) // vouch takes out of it while this is written
		writes[string(id)] = k
		n.dirty = false
	}
	return writes
}
