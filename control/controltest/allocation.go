package controltest

import (
	"context"
	"errors"
	"net/netip"
	"testing"

	"github.com/particle-net/particle/control"
	"github.com/particle-net/particle/topology"
)

// Store is all of a cluster's store that one host sees.
type Store interface {
	control.Allocator
	control.Directory
	control.Distributor
	SetNode(context.Context, control.Node) error
	RemoveNode(context.Context, topology.NodeID) error
	Instance() string
	Close() error
}

// Cluster is a store under test, with as many hosts as a case wants.
type Cluster struct {
	Open   func(t *testing.T, n control.Node) Store // the host's store; it ends with the test
	Stop   func()                                   // the store goes away from all hosts
	Back   func()                                   // it comes back with all it had
	Wipe   func()                                   // it has lost everything
	Save   func()                                   // keeps a copy
	Load   func()                                   // sets the store back to the copy
	Settle func()                                   // the time is over in which hosts claim again what was lost
	// Expire has the lease of a host run out that has closed its store.
	Expire func(topology.NodeID)
}

// allocation is one case: two hosts and one network that the first has made.
type allocation struct {
	Cluster
	t    *testing.T
	a, b Store
	n    control.Network
	four netip.Prefix // the network's IPv4 subnet
}

// Allocation is the suite that every store passes. It asks for a new cluster for
// each case.
func Allocation(t *testing.T, fresh func(t *testing.T) Cluster) {
	for _, c := range []struct {
		name string
		run  func(*allocation)
	}{
		{"a VNI is chosen or given, once", (*allocation).vni},
		{"registering may be repeated", (*allocation).register},
		{"a name is of one network", (*allocation).name},
		{"a removed network stays until the last host has left", (*allocation).remove},
		{"a removed network that nobody uses goes at once", (*allocation).removeUnused},
		{"blocks come in order", (*allocation).order},
		{"racers for one block: one winner", (*allocation).raceBlock},
		{"racers for many blocks: all win another", (*allocation).raceBlocks},
		{"one host claims many blocks at once", (*allocation).raceOwn},
		{"racers for one address: one winner", (*allocation).raceAddress},
		{"blocks and single addresses do not overlap", (*allocation).overlap},
		{"racers for blocks and addresses do not overlap", (*allocation).raceOverlap},
		{"reserved addresses", (*allocation).reserved},
		{"what was given up longest ago is claimed first", (*allocation).reuse},
		{"release of what is not there, or another's", (*allocation).release},
		{"leaving gives up all claims", (*allocation).leave},
		{"a store that was wiped gets everything back", (*allocation).wipe},
		{"a store that was set back is told", (*allocation).rewind},
		{"a block comes back to who has an address in it", (*allocation).restoreAround},
		{"what hosts vouch for is kept for its owner", (*allocation).vouch},
		{"a removed network stays for a host that is vouched for", (*allocation).vouchRemoved},
		{"without the store nothing waits for ever", (*allocation).unreachable},
		{"hosts are seen, suspect and removed", (*allocation).nodes},
		{"a new tunnel address reaches all claims", (*allocation).readdress},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := &allocation{Cluster: fresh(t), t: t, n: Network(1)}
			a.four = a.n.Subnets[0].Prefix
			a.a, a.b = a.Open(t, Node(1)), a.Open(t, Node(2))
			vni, err := a.a.ClaimNetwork(t.Context(), a.n)
			a.n.VNI = vni
			if err == nil {
				err = a.a.NameNetwork(t.Context(), a.n)
			}
			if err != nil {
				t.Fatal(err)
			}
			c.run(a)
		})
	}
}

// must fails the test if there is an error.
func (a *allocation) must(err error) {
	a.t.Helper()
	if err != nil {
		a.t.Fatal(err)
	}
}

// refused fails the test if the cause is another.
func (a *allocation) refused(what string, err, cause error) {
	a.t.Helper()
	if !errors.Is(err, cause) {
		a.t.Errorf("%s: error %v, want %v", what, err, cause)
	}
}

func (a *allocation) block(s Store) control.Claim {
	a.t.Helper()
	c, err := s.ClaimBlock(a.t.Context(), a.n.ID, a.four)
	a.must(err)
	return c
}

func (a *allocation) routes(s Store) *Table[RouteKey, control.Route] {
	return Follow(a.t, s.WatchRoutes(a.t.Context(), a.n), Key)
}

func (a *allocation) networks(s Store) *Table[topology.SharedID, control.Network] {
	return Follow(a.t, s.WatchNetworks(a.t.Context()), func(n control.Network) topology.SharedID { return n.ID })
}
