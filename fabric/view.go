package fabric

import (
	"cmp"
	"math/big"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/particle-net/particle/topology"
)

// View is a copy of the state at one moment, for people and programs.
type View struct {
	Version  string
	Started  time.Time
	Underlay topology.Underlay
	Networks []NetworkView
	Repairs  int
}

// NetworkView is one network in a View, its endpoints in order of address.
type NetworkView struct {
	Network
	Mode       GuardMode // what it has, whether asked for or not
	UplinkUp   bool
	UplinkAddr netip.Addr // the network's end, valid if UplinkUp
	Problem    string
	Peers      int  // other hosts that have a part of it
	Suspended  bool // no new addresses, see SuspendClaims
	Pools      []PoolView
	Endpoints  []Endpoint
}

// PoolView is an address range of a network. Pool.ID is empty for one that
// Docker's own IPAM manages; then Used counts the endpoints and Free is nil.
type PoolView struct {
	Pool
	Used   int
	Free   *big.Int
	Blocks []BlockView // of a network that a cluster shares
}

// BlockView is a part of a pool that this host owns, or owned and has containers
// on still. A single address was claimed for itself.
type BlockView struct {
	Prefix  netip.Prefix
	Used    int      // addresses held
	Free    *big.Int // addresses that can be handed out
	Leaving bool     // it is another host's by now, or nobody's
}

// View copies the state.
func (f *Fabric) View() View {
	f.mu.Lock()
	defer f.mu.Unlock()
	v := View{Version: f.o.Version, Started: f.started, Underlay: f.o.Underlay, Repairs: f.repairs}
	for _, n := range f.networks {
		v.Networks = append(v.Networks, f.viewNetwork(n))
	}
	slices.SortFunc(v.Networks, func(a, b NetworkView) int {
		if c := strings.Compare(a.Name, b.Name); c != 0 {
			return c
		}
		return strings.Compare(string(a.ID), string(b.ID))
	})
	return v
}

func (f *Fabric) viewNetwork(n *network) NetworkView {
	v := NetworkView{Network: n.Network, Mode: f.guardOf(n.Network), UplinkUp: n.uplinkUp, Problem: cmp.Or(n.problem, n.unreached), Peers: len(n.peers), Suspended: n.suspended != nil}
	v.Subnets = slices.Clone(n.Subnets)
	if u, err := topology.NewUplink(n.ID, n.Uplink, f.o.Underlay.MTU); n.uplinkUp && err == nil {
		v.UplinkAddr = u.Tenant.Addr()
	}
	for _, s := range n.Subnets {
		if p := f.boundPool(n, s.Subnet); p != nil {
			v.Pools = append(v.Pools, PoolView{Pool: p.Pool, Used: p.alloc.Used(), Free: p.alloc.Free(), Blocks: n.viewBlocks(p)})
			continue
		}
		foreign := PoolView{Pool: Pool{Subnet: s.Subnet}}
		for a := range n.addresses {
			if s.Subnet.Contains(a) {
				foreign.Used++
			}
		}
		v.Pools = append(v.Pools, foreign)
	}
	for _, e := range n.endpoints {
		v.Endpoints = append(v.Endpoints, *e)
	}
	slices.SortFunc(v.Endpoints, func(a, b Endpoint) int {
		if c := a.IPv4.Compare(b.IPv4); c != 0 {
			return c
		}
		return a.IPv6.Compare(b.IPv6)
	})
	return v
}

func (n *network) viewBlocks(p *addressPool) []BlockView {
	if n.Shared == "" {
		return nil
	}
	var all []BlockView
	for _, b := range p.alloc.Blocks() {
		all = append(all, BlockView{Prefix: b.Prefix, Used: b.Used, Free: b.Free})
	}
	for _, b := range n.Leaving {
		used := 0
		for a := range p.leases {
			if b.Contains(a) {
				used++
			}
		}
		if p.Subnet.Contains(b.Addr()) {
			all = append(all, BlockView{Prefix: b, Used: used, Free: new(big.Int), Leaving: true})
		}
	}
	for a := range n.singles {
		if p.Subnet.Contains(a) {
			all = append(all, BlockView{Prefix: netip.PrefixFrom(a, a.BitLen()), Used: 1, Free: new(big.Int)})
		}
	}
	slices.SortFunc(all, func(a, b BlockView) int { return a.Prefix.Compare(b.Prefix) })
	return all
}
