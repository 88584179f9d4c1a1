package fabric

import (
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
	UplinkUp   bool
	UplinkAddr netip.Addr // the tenant's end, valid if UplinkUp
	Problem    string
	Pools      []PoolView
	Endpoints  []Endpoint
}

// PoolView is an address range of a network. Pool.ID is empty for one that
// Docker's own IPAM manages; then Used counts the endpoints and Free is nil.
type PoolView struct {
	Pool
	Used int
	Free *big.Int
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
	v := NetworkView{Network: n.Network, UplinkUp: n.uplinkUp, Problem: n.problem}
	v.Subnets = slices.Clone(n.Subnets)
	if u, err := topology.NewUplink(n.ID, n.Uplink, f.o.Underlay.MTU); n.uplinkUp && err == nil {
		v.UplinkAddr = u.Tenant.Addr()
	}
	for _, s := range n.Subnets {
		if p := f.boundPool(n, s.Subnet); p != nil {
			v.Pools = append(v.Pools, PoolView{Pool: p.Pool, Used: p.alloc.Used(), Free: p.alloc.Free()})
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
