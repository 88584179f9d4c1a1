package fabric

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"net/netip"
	"slices"
	"time"

	"github.com/particle-net/particle/ipam/pool"
	"github.com/particle-net/particle/topology"
)

// ErrNoPool is the cause when Docker names a pool that is not on record.
var ErrNoPool = errors.New("this host has no such address pool")

// addressPool is a Pool with its allocator and what is handed out of it now.
type addressPool struct {
	Pool
	alloc  *pool.Pool
	leases map[netip.Addr]*Lease // not released ones
}

// PoolSpec is an address pool as Docker asks for it.
type PoolSpec struct {
	Subnet netip.Prefix // invalid: choose one
	Range  netip.Prefix // invalid: the whole subnet
	V6     bool
}

// RequestPool makes a pool of its own for each call: two tenants may hold the
// same subnet, so a pool's id says nothing about its addresses.
func (f *Fabric) RequestPool(_ context.Context, spec PoolSpec) (Pool, error) {
	record := Pool{ID: newPoolID(), Subnet: spec.Subnet, Range: spec.Range, Created: time.Now()}
	if !record.Subnet.IsValid() {
		f.mu.Lock()
		chosen, err := f.o.Defaults.Next(spec.V6, f.subnetInUse)
		f.mu.Unlock()
		if err != nil {
			return Pool{}, err
		}
		record.Subnet = chosen
	}
	p, err := loadPool(record, nil)
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

func loadPool(record Pool, leases []Lease) (*addressPool, error) {
	alloc, err := pool.New(pool.Config{Subnet: record.Subnet, Range: record.Range})
	if err != nil {
		return nil, err
	}
	p := &addressPool{Pool: record, alloc: alloc, leases: map[netip.Addr]*Lease{}}
	held := slices.Clone(record.Reserved)
	var released []Lease
	for _, l := range leases {
		if l.Released.IsZero() {
			p.leases[l.Addr] = &l
			held = append(held, l.Addr)
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
		var candidates []*addressPool
		for _, p := range f.pools {
			if s.Managed && p.Network == "" && p.Subnet == s.Subnet && p.holds(s.reserved()) {
				candidates = append(candidates, p)
			}
		}
		if len(candidates) == 1 {
			errs = append(errs, f.bind(candidates[0], n, s))
			bound = append(bound, candidates[0].Pool)
		}
	}
	return bound, errors.Join(errs...)
}

// bind makes the pool the network's, in memory, and tells its leases apart: some
// are the network's own auxiliary addresses, some those of its endpoints. The
// caller holds mu.
func (f *Fabric) bind(p *addressPool, n *network, s Subnet) error {
	p.Network = n.ID
	var errs []error
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
