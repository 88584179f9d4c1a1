package member

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/particle-net/particle/control"
	"github.com/particle-net/particle/topology"
)

// Phase is where a network stands on this host.
type Phase string

// A network is Ready, or there is a problem to tell of.
const (
	Ready    Phase = "ready"
	Pending  Phase = "pending"  // it is not made here yet
	Conflict Phase = "conflict" // another network of this host or of the cluster has its name
	Leaving  Phase = "leaving"  // it was removed, and containers of this host still live on it
)

// Health is whether the store's watch delivers.
type Health struct {
	Healthy bool
	Since   time.Time
	Problem string // why not
}

// Status is this host's view of its cluster.
type Status struct {
	Enrolled bool
	Self     topology.NodeID
	Store    Health
	Hosts    []Host          // by name
	Networks []NetworkStatus // by name
}

// Host is a host of the cluster.
type Host struct {
	ID      topology.NodeID
	Name    string
	VTEP    netip.Addr
	Port    uint16 // 0 if it has not told
	Version string
	Alive   bool // false: suspect, which is advice and no more
}

// NetworkStatus is a network of the cluster, or one of this host that the cluster
// is about to have or to lose.
type NetworkStatus struct {
	ID      topology.SharedID
	Name    string // if the cluster has none yet, what this host's Docker calls it
	VNI     topology.VNI
	Phase   Phase
	Problem string
	Claims  []netip.Prefix // this host's, as the store has them
	Peers   int            // other hosts that answer for addresses

	// Held routes: withdrawn a moment ago, or lost with too much else.
	Withdrawn, Doubted int
	Duplicates         []control.Duplicate
	Suspended          error // why it gives out no new addresses; nil if it does
	Unshared           bool  // its removal is not known to the cluster yet
}

// Status copies the state.
func (m *Member) Status() Status {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := Status{Enrolled: m.enrolled == enrolled, Self: m.o.Node.ID, Store: m.health}
	if !s.Enrolled {
		return s
	}
	for _, h := range m.nodes.All(control.Current, control.Withdrawn, control.Doubted) {
		s.Hosts = append(s.Hosts, Host{ID: h.ID, Name: h.Name, VTEP: h.VTEP, Port: h.Port, Version: h.Version, Alive: h.Alive})
	}
	slices.SortStableFunc(s.Hosts, func(a, b Host) int { return strings.Compare(a.Name, b.Name) })
	listed := map[topology.SharedID]bool{}
	for _, record := range m.cluster.All(control.Current, control.Doubted) {
		n := m.networks[record.ID]
		if listed[record.ID] = true; !over(record, n) {
			s.Networks = append(s.Networks, m.networkStatus(record, n))
		}
	}
	for id, n := range m.networks {
		if !listed[id] && (n.Unshared || n.problem != "") && !over(n.Network, n) {
			s.Networks = append(s.Networks, m.networkStatus(n.Network, n))
		}
	}
	slices.SortFunc(s.Networks, func(a, b NetworkStatus) int {
		if c := strings.Compare(a.Name, b.Name); c != 0 {
			return c
		}
		return strings.Compare(string(a.ID), string(b.ID))
	})
	return s
}

// over says whether a network was removed and is no business of this host any more:
// its record stays until the last host has left it. n may be nil.
func over(record control.Network, n *network) bool {
	return record.Removed && (n == nil || !n.here && !n.Unshared)
}

func (m *Member) networkStatus(record control.Network, n *network) NetworkStatus {
	s := NetworkStatus{ID: record.ID, Name: record.Name, VNI: record.VNI, Phase: Pending}
	if n == nil {
		return s
	}
	s.Name = cmp.Or(s.Name, n.called)
	s.Phase, s.Problem, s.Suspended, s.Unshared = n.phase, n.problem, n.suspended, n.Unshared && !n.Told
	if s.Phase == "" {
		s.Phase = Pending
	}
	s.Claims, s.Peers, s.Duplicates = n.routes.Own(), len(n.peers), n.routes.Duplicates()
	s.Withdrawn, s.Doubted = n.routes.Count(control.Withdrawn), n.routes.Count(control.Doubted)
	return s
}
