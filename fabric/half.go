package fabric

import (
	"context"
	"net/netip"

	"github.com/particle-net/particle/topology"
)

// Docker asks for an endpoint's IPv4 address first, then for its IPv6 address, and
// for nothing else of that network before the endpoint is made or given up: it
// holds a lock on the network meanwhile (libnetwork, Network.CreateEndpoint). If
// it gets no IPv6 address it does not give the IPv4 address back. But what it asks
// for next tells that it has given that up: see network.half.

// takeHalf says whether a pool is that of second addresses, and whose first address
// came last, if no endpoint has it. It is nobody's half any more.
func (f *Fabric) takeHalf(id topology.PoolID) (half *Lease, second bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	p, n := f.networkOfPool(id)
	if n == nil {
		return nil, false
	}
	half, n.half = n.half, nil
	if half != nil {
		if of := f.pools[half.Pool]; of == nil || of.leases[half.Addr] != half {
			half = nil // given back already
		}
	}
	return half, p.Subnet.Addr().Is6()
}

// putHalf notes a first address, if a second one is to come.
func (f *Fabric) putHalf(id topology.PoolID, a netip.Addr) {
	f.mu.Lock()
	defer f.mu.Unlock()
	p, n := f.networkOfPool(id)
	if n == nil {
		return
	}
	for _, s := range n.Subnets {
		if s.Managed && s.Subnet.Addr().Is6() {
			n.half = p.leases[a]
		}
	}
}

// networkOfPool finds a pool's network; nil if it is of none yet. The caller holds mu.
func (f *Fabric) networkOfPool(id topology.PoolID) (*addressPool, *network) {
	p := f.pools[id]
	if p == nil {
		return nil, nil
	}
	return p, f.networks[p.Network]
}

// giveUp takes a first address back without Docker's word.
func (f *Fabric) giveUp(ctx context.Context, half *Lease) {
	if half == nil {
		return
	}
	if err := f.ReleaseAddress(ctx, half.Pool, half.Addr); err != nil {
		f.o.Log.WithError(err).WithField("addr", half.Addr).Warn("address of an endpoint without an IPv6 address not taken back; trying again")
	}
}
