package fabric

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/ipam/pool"
	"github.com/particle-net/particle/topology"
)

// ErrNoPool is the cause when Docker names a pool that is not on record.
var ErrNoPool = errors.New("this host has no such address pool")

// addressPool is a Pool with its allocator and what is handed out of it now.
type addressPool struct {
	Pool
	alloc   *pool.Pool
	leases  map[netip.Addr]*Lease // not released ones
	spent   bool                  // its network has gone, and Docker is about to release it
	toldLow bool                  // the cluster was told that the blocks which serve are nearly used up
	refill  *refill               // under way; nil if none is
}

// PoolSpec is an address pool as Docker asks for it.
type PoolSpec struct {
	Subnet netip.Prefix // invalid: choose one
	Range  netip.Prefix // invalid: the whole subnet
	V6     bool
	Shared topology.SharedID // of the network it is for, where our own plugin makes it
}

// RequestPool makes a pool of its own for each call: two tenants may hold the
// same subnet, so a pool's id says nothing about its addresses.
func (f *Fabric) RequestPool(ctx context.Context, spec PoolSpec) (Pool, error) {
	if spec.Subnet.IsValid() && f.o.Cluster.Joined() {
		defer f.awaitTurn(ctx, spec)()
	}
	record := Pool{ID: newPoolID(), Subnet: spec.Subnet, Range: spec.Range, Shared: spec.Shared, Created: time.Now()}
	if !record.Subnet.IsValid() {
		f.mu.Lock()
		chosen, err := f.o.Defaults.Next(spec.V6, f.subnetInUse)
		f.mu.Unlock()
		if err != nil {
			return Pool{}, err
		}
		record.Subnet = chosen
	}
	p, err := loadPool(record, nil, nil)
	if err != nil {
		return Pool{}, err
	}
	if err := f.o.Pools.Put(string(record.ID), record); err != nil {
		return Pool{}, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.pools[record.ID] = p
	return record, nil
}

func newPoolID() topology.PoolID {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand since Go 1.24)
	return topology.PoolID("particle-" + hex.EncodeToString(b[:]))
}

func (f *Fabric) subnetInUse(candidate netip.Prefix) bool {
	for _, p := range f.pools {
		if p.Subnet.Overlaps(candidate) {
			return true
		}
	}
	return false
}

// loadPool makes a pool of its records; n is its network, nil if it has none yet.
func loadPool(record Pool, leases []Lease, n *network) (*addressPool, error) {
	shared := n != nil && n.Shared != ""
	alloc, err := pool.New(pool.Config{Subnet: record.Subnet, Range: record.Range, Blocks: shared})
	if err != nil {
		return nil, err
	}
	p := &addressPool{Pool: record, alloc: alloc, leases: map[netip.Addr]*Lease{}}
	if shared {
		if err := p.serve(n.Claims); err != nil {
			return nil, err
		}
	}
	held := slices.Clone(record.Reserved)
	var released []Lease
	for _, l := range leases {
		if l.Released.IsZero() {
			p.leases[l.Addr] = &l
			held = append(held, l.Addr)
			if shared && l.Claimed {
				n.singles[l.Addr] = true
			}
		} else {
			released = append(released, l)
		}
	}
	slices.SortFunc(released, func(a, b Lease) int { return a.Released.Compare(b.Released) })
	order := make([]netip.Addr, len(released))
	for i, l := range released {
		order[i] = l.Addr
	}
	return p, alloc.Restore(held, order)
}

// ReleasePool forgets a pool and all its leases; one that is not there is
// success.
func (f *Fabric) ReleasePool(_ context.Context, id topology.PoolID) error {
	f.mu.Lock()
	_, known := f.pools[id]
	f.mu.Unlock()
	if !known {
		return nil
	}
	// Leases first: without their pool nothing would lead to them again.
	if err := f.o.Leases.DeletePrefix(string(id) + "/"); err != nil {
		return err
	}
	if err := f.o.Pools.Delete(string(id)); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.pools, id)
	f.turns.moved()
	return nil
}

// awaiting lists the networks that may still turn out to be the pool's: they
// have its subnet, and no pool for it yet. The caller holds mu.
func (f *Fabric) awaiting(p *addressPool) []*network {
	var all []*network
	if p.Network != "" {
		return nil
	}
	for _, n := range f.networks {
		if n.hasSubnet(p.Subnet) && f.boundPool(n, p.Subnet) == nil {
			all = append(all, n)
		}
	}
	return all
}

func (f *Fabric) boundPool(n *network, subnet netip.Prefix) *addressPool {
	for _, p := range f.pools {
		if p.Network == n.ID && p.Subnet == subnet {
			return p
		}
	}
	return nil
}

// hasSubnet says whether one of the network's subnets is s, and ours to manage.
func (n *network) hasSubnet(s netip.Prefix) bool {
	return slices.ContainsFunc(n.Subnets, func(own Subnet) bool { return own.Subnet == s && own.Managed })
}

// bindPools finds the pool of each of a new network's subnets: the one unbound
// pool with that subnet, gateway and auxiliary addresses. Where two networks of
// the same subnet are made at once it may be either; then it stays open until an
// endpoint tells (see tellPool). It returns the records to write. The caller
// holds mu.
func (f *Fabric) bindPools(n *network) ([]Pool, error) {
	var bound []Pool
	var errs []error
	for _, s := range n.Subnets {
		own := f.boundPool(n, s.Subnet)
		if candidates := f.candidates(s, n.joined()); own == nil && len(candidates) == 1 {
			own = candidates[0]
			errs = append(errs, f.bind(own, n, s))
		}
		if own != nil {
			bound = append(bound, own.Pool)
		}
	}
	return bound, errors.Join(errs...)
}

// candidates are the pools that may be those of a new network's subnet. The
// caller holds mu.
func (f *Fabric) candidates(s Subnet, joined topology.SharedID) []*addressPool {
	var all []*addressPool
	for _, p := range f.pools {
		if s.Managed && p.Network == "" && !p.spent && p.Subnet == s.Subnet && p.holds(s.reserved()) && (p.Shared == "" || p.Shared == joined) {
			all = append(all, p)
		}
	}
	for _, better := range []func(*addressPool) bool{
		func(p *addressPool) bool { return p.Shared != "" },                // our own plugin has said so
		func(p *addressPool) bool { return time.Since(p.Created) < grace }, // Docker has not given it up
	} {
		if i := slices.IndexFunc(all, better); i >= 0 {
			all = slices.DeleteFunc(all, func(p *addressPool) bool { return !better(p) })
		}
	}
	return all
}

// claimPools is bindPools for a network that is to be shared: its pools must be
// known, because they hand out the network's blocks alone. The caller holds mu.
func (f *Fabric) claimPools(n *network, joined topology.SharedID) error {
	for i, s := range n.Subnets {
		candidates := f.candidates(s, joined)
		if len(candidates) != 1 {
			return fault.New("share subnet", s.Subnet.String(),
				fmt.Sprintf("%d address pools may be its own, where Docker's word for one is lacking", len(candidates)),
				"create the network again in a minute")
		}
		if err := f.bind(candidates[0], n, s); err != nil {
			return err
		}
		n.Subnets[i].Range = candidates[0].Range
	}
	return nil
}

// joined is the network's id in the cluster if another host has brought it there.
func (n *network) joined() topology.SharedID {
	if n.Shared == topology.SharedID(n.ID) {
		return ""
	}
	return n.Shared
}

// divide makes a pool hand out nothing but blocks.
func (p *addressPool) divide(blocks []netip.Prefix) error {
	alloc, err := pool.New(pool.Config{Subnet: p.Subnet, Blocks: true})
	if err != nil {
		return err
	}
	held, released := p.alloc.Snapshot()
	p.alloc = alloc
	return errors.Join(p.serve(blocks), alloc.Restore(held, released))
}

// bind makes the pool the network's, in memory, and tells its leases apart: some
// are the network's own auxiliary addresses, some those of its endpoints. The
// caller holds mu.
func (f *Fabric) bind(p *addressPool, n *network, s Subnet) error {
	p.Network = n.ID
	f.turns.moved()
	var errs []error
	if n.Shared != "" {
		errs = append(errs, p.divide(n.Claims))
	}
	for _, a := range s.reserved() {
		lease := p.leases[a]
		if slices.Contains(p.Reserved, a) || (lease != nil && n.addresses[a] != nil) {
			continue
		}
		if lease != nil {
			delete(p.leases, a)
			errs = append(errs, f.o.Leases.Delete(lease.key()))
		} else if p.alloc.Take(a) != nil {
			continue // outside the pool, where Docker lets it be
		}
		p.Reserved = append(slices.Clone(p.Reserved), a)
	}
	for a, lease := range p.leases {
		if e := n.addresses[a]; e != nil {
			lease.Endpoint = e.ID
		} else if lease.Returned {
			errs = append(errs, f.freeLease(p, lease))
		}
	}
	return errors.Join(errs...)
}

// reserved are the subnet's addresses that no container gets.
func (s Subnet) reserved() []netip.Addr {
	all := slices.Clone(s.Aux)
	if s.Gateway.IsValid() {
		all = append(all, s.Gateway)
	}
	return all
}

func (p *addressPool) holds(all []netip.Addr) bool {
	for _, a := range all {
		if !slices.Contains(p.Reserved, a) && p.leases[a] == nil {
			return false
		}
	}
	return true
}
