package fabric

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
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

// AddressSpec is an address as Docker asks for it.
type AddressSpec struct {
	Pool    topology.PoolID
	Addr    netip.Addr // invalid: choose one
	Gateway bool       // for the network's gateway
	Name    string     // of the container, where Docker sends it
}

// RequestAddress hands out an address, as a prefix with the pool's length. An
// address for the network itself (its gateway, its auxiliary addresses) is kept
// as long as the pool; one for a container until the next boot at most.
func (f *Fabric) RequestAddress(_ context.Context, spec AddressSpec) (netip.Prefix, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	p := f.pools[spec.Pool]
	if p == nil {
		return netip.Prefix{}, &fault.Error{Op: "request address from pool", On: string(spec.Pool), Err: ErrNoPool,
			Fix: "remove the network with `docker network rm` and create it anew"}
	}
	a, err := p.take(spec.Addr)
	if err != nil {
		return netip.Prefix{}, f.explainTaken(p, spec.Addr, err)
	}
	// Auxiliary addresses come before the network is created, and by name.
	if spec.Gateway || (p.Network == "" && spec.Addr.IsValid()) {
		err = f.reserve(p, a)
	} else {
		lease := &Lease{Pool: p.ID, Addr: a, Name: spec.Name, Since: time.Now()}
		if err = f.o.Leases.Put(lease.key(), *lease); err == nil {
			p.leases[a] = lease
		}
	}
	if err != nil {
		p.alloc.Release(a)
		return netip.Prefix{}, err
	}
	return netip.PrefixFrom(a, p.Subnet.Bits()), nil
}

func (p *addressPool) take(want netip.Addr) (netip.Addr, error) {
	if !want.IsValid() {
		return p.alloc.Any()
	}
	return want, p.alloc.Take(want)
}

// explainTaken adds who holds the address. The caller holds mu.
func (f *Fabric) explainTaken(p *addressPool, a netip.Addr, err error) error {
	lease := p.leases[a]
	if !errors.Is(err, pool.ErrTaken) || lease == nil {
		return err
	}
	holder := ""
	if e := f.endpoints[lease.Endpoint]; e != nil && e.Name != "" {
		holder = e.holder()
	} else if lease.Name != "" {
		holder = "container " + lease.Name
	}
	if holder == "" {
		return err
	}
	return &fault.Error{Op: "reserve address", On: a.String(), Err: errors.New(holder + " holds it"),
		Fix: "remove that container or choose another --ip"}
}

// reserve keeps an address with the pool's record. Called with mu held, which
// it gives up while the record is flushed.
func (f *Fabric) reserve(p *addressPool, a netip.Addr) error {
	p.Reserved = append(p.Reserved, a)
	record := p.Pool
	record.Reserved = slices.Clone(record.Reserved)
	f.mu.Unlock()
	err := f.o.Pools.Put(string(record.ID), record)
	f.mu.Lock()
	if err != nil {
		p.Reserved = slices.DeleteFunc(p.Reserved, func(r netip.Addr) bool { return r == a })
	}
	return err
}

// ReleaseAddress takes an address back; one that is not held is success. An
// address whose process lives stays held until Reconcile finds it gone.
func (f *Fabric) ReleaseAddress(_ context.Context, id topology.PoolID, a netip.Addr) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	p := f.pools[id]
	if p == nil {
		return nil
	}
	if i := slices.Index(p.Reserved, a); i >= 0 {
		p.Reserved = slices.Delete(slices.Clone(p.Reserved), i, i+1)
		p.alloc.Release(a)
		record := p.Pool
		f.mu.Unlock()
		err := f.o.Pools.Put(string(id), record)
		f.mu.Lock()
		return err
	}
	lease := p.leases[a]
	if lease == nil {
		return nil
	}
	if e := f.endpoints[lease.Endpoint]; e != nil {
		if f.alive(e) {
			return nil
		}
		// Docker takes an address back without deleting its endpoint only when
		// it never learned that the endpoint was made.
		if e.Joined.IsZero() {
			if err := f.dropEndpoint(f.networks[e.Network], e); err != nil {
				return err
			}
		}
	}
	return f.freeLease(p, lease)
}

// freeLease returns the address to its pool. The caller holds mu.
func (f *Fabric) freeLease(p *addressPool, lease *Lease) error {
	gone := *lease
	gone.Released, gone.Endpoint, gone.Name = time.Now(), "", ""
	if err := f.o.Leases.Put(gone.key(), gone); err != nil {
		return err
	}
	delete(p.leases, lease.Addr)
	p.alloc.Release(lease.Addr)
	return nil
}

// linkLease notes which endpoint a lease was for. It writes nothing: the
// endpoint's own record tells it again after a restart. A network whose
// addresses Docker's own IPAM hands out has no leases. The caller holds mu.
func (f *Fabric) linkLease(n *network, a netip.Addr, id topology.EndpointID) {
	if lease := f.findLease(n, a); lease != nil {
		lease.Endpoint = id
	}
}

// findLease finds the unlinked lease of an address on a network. A pool that
// could not be told from another one with the same subnet when the network was
// made is told now, if it alone has handed the address out. The caller holds mu.
func (f *Fabric) findLease(n *network, a netip.Addr) *Lease {
	var found *addressPool
	for _, p := range f.pools {
		lease := p.leases[a]
		if lease == nil || lease.Endpoint != "" || !p.Subnet.Contains(a) {
			continue
		}
		if p.Network == n.ID {
			return lease
		}
		if p.Network == "" && n.hasSubnet(p.Subnet) {
			if found != nil {
				return nil
			}
			found = p
		}
	}
	if found == nil || f.boundPool(n, found.Subnet) != nil {
		return nil
	}
	lease := found.leases[a]
	found.Network = n.ID
	// Once in the life of such a network, so flushing it under mu does no harm.
	// A failure leaves it for the next endpoint to tell.
	if err := f.o.Pools.Put(string(found.ID), found.Pool); err != nil {
		found.Network = ""
	}
	return lease
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
// endpoint tells. It returns the records to write. The caller holds mu.
func (f *Fabric) bindPools(n *network) []Pool {
	var bound []Pool
	for _, s := range n.Subnets {
		var candidates []*addressPool
		for _, p := range f.pools {
			if s.Managed && p.Network == "" && p.Subnet == s.Subnet && p.reserves(s) {
				candidates = append(candidates, p)
			}
		}
		if len(candidates) == 1 {
			candidates[0].Network = n.ID
			bound = append(bound, candidates[0].Pool)
		}
	}
	return bound
}

func (p *addressPool) reserves(s Subnet) bool {
	wanted := slices.Clone(s.Aux)
	if s.Gateway.IsValid() {
		wanted = append(wanted, s.Gateway)
	}
	for _, a := range wanted {
		if !slices.Contains(p.Reserved, a) {
			return false
		}
	}
	return true
}

// unlinkLeases follows the end of an endpoint: its leases wait for Docker's
// ReleaseAddress, which may come after the next container has started, or are
// free at once if Docker has sent it already. The caller holds mu.
func (f *Fabric) unlinkLeases(e *Endpoint) error {
	var errs []error
	for _, p := range f.pools {
		for _, a := range e.Addresses() {
			lease := p.leases[a]
			if lease == nil || lease.Endpoint != e.ID {
				continue
			}
			if e.Deleted {
				errs = append(errs, f.freeLease(p, lease))
				continue
			}
			lease.Endpoint, lease.Since = "", time.Now()
			errs = append(errs, f.o.Leases.Put(lease.key(), *lease))
		}
	}
	return errors.Join(errs...)
}
