package fabric

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/ipam/pool"
	"github.com/particle-net/particle/topology"
)

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
//
// Docker marks the gateway's requests, but not those of auxiliary addresses.
// They come before the network is created, and by wish. While another network of
// the same subnet waits for its pool, a container's request looks the same;
// then it is a lease, until bind has the network's word for it.
//
// It waits for nothing but an address by wish that is in no block of this host,
// and for another block when all addresses of this host's are in use; both on a
// network that a cluster shares.
func (f *Fabric) RequestAddress(ctx context.Context, spec AddressSpec) (netip.Prefix, error) {
	half, second := f.takeHalf(spec.Pool)
	if !second {
		f.giveUp(ctx, half)
	}
	got, err := f.awaitAddress(ctx, spec)
	switch {
	case second && err != nil:
		f.giveUp(ctx, half)
	case !second && err == nil:
		f.putHalf(spec.Pool, got.Addr())
	}
	return got, err
}

func (f *Fabric) awaitAddress(ctx context.Context, spec AddressSpec) (netip.Prefix, error) {
	for {
		got, refill, err := f.requestAddress(ctx, spec)
		if refill == nil {
			return got, err
		}
		// Others may use that block up before this request's turn comes; then it
		// waits for the next one, until there are none.
		if why := refill.wait(ctx); why != nil {
			return netip.Prefix{}, &fault.Error{Op: "request address from pool", On: string(spec.Pool), Err: fmt.Errorf("%w, and no other came: %w", pool.ErrNoBlock, why)}
		}
	}
}

// requestAddress is one attempt. If there is a refill, it is to be repeated after
// that.
func (f *Fabric) requestAddress(ctx context.Context, spec AddressSpec) (netip.Prefix, *refill, error) {
	f.mu.Lock()
	p := f.pools[spec.Pool]
	if p == nil {
		f.mu.Unlock()
		return netip.Prefix{}, nil, noPool(spec.Pool)
	}
	n := f.sharedBy(p)
	if err := f.mayHandOut(p, n, spec); err != nil {
		f.mu.Unlock()
		return netip.Prefix{}, nil, err
	}
	if n != nil && p.mustClaim(spec) {
		f.mu.Unlock()
		got, err := f.claimAddress(ctx, p, n, spec)
		return got, nil, err
	}
	got, err := f.handOut(p, spec)
	if n != nil && errors.Is(err, pool.ErrNoBlock) {
		r := f.refill(ctx, n, p)
		f.mu.Unlock()
		return netip.Prefix{}, r, err
	}
	low := n != nil && !p.toldLow && p.alloc.Low()
	p.toldLow = p.toldLow || low
	f.mu.Unlock()
	if low {
		f.o.Cluster.Low(n.Shared, p.Subnet)
	}
	return got, nil, err
}

func noPool(id topology.PoolID) error {
	return &fault.Error{Op: "request address from pool", On: string(id), Err: ErrNoPool,
		Fix: "remove the network with `docker network rm` and create it anew"}
}

// handOut is RequestAddress without waiting. The caller holds mu.
func (f *Fabric) handOut(p *addressPool, spec AddressSpec) (netip.Prefix, error) {
	a, err := p.take(spec.Addr)
	if lease := p.leases[spec.Addr]; err != nil && f.mayReturn(lease, spec.Name) {
		lease.Returned, lease.Name = false, spec.Name
		return netip.PrefixFrom(lease.Addr, p.Subnet.Bits()), f.o.Leases.Put(lease.key(), *lease)
	}
	if err != nil {
		return netip.Prefix{}, f.explainTaken(p, spec.Addr, err)
	}
	auxiliary := p.Network == "" && spec.Addr.IsValid() && spec.Name == "" && len(f.awaiting(p)) == 0
	if spec.Gateway || auxiliary {
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

// mayReturn says whether only guests use an address that Docker has given back.
// Their host may have it again when it starts with --ip; for whom Docker asks it
// does not say before version 29, so Claim turns another container away. The
// caller holds mu.
func (f *Fabric) mayReturn(lease *Lease, name string) bool {
	if lease == nil || !lease.Returned {
		return false
	}
	e := f.endpoints[lease.Endpoint]
	return e != nil && f.lent(e) && (name == "" || name == e.Name)
}

func (p *addressPool) take(want netip.Addr) (netip.Addr, error) {
	if !want.IsValid() {
		return p.alloc.Any()
	}
	return want, p.alloc.Take(want)
}

// explainTaken adds who or what holds the address. The caller holds mu.
func (f *Fabric) explainTaken(p *addressPool, a netip.Addr, err error) error {
	if errors.Is(err, pool.ErrTaken) && slices.Contains(p.Reserved, a) {
		return &fault.Error{Op: "reserve address", On: a.String(), Err: fmt.Errorf("%w as the network's gateway or an auxiliary address", pool.ErrTaken),
			Fix: "choose another --ip"}
	}
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
func (f *Fabric) ReleaseAddress(ctx context.Context, id topology.PoolID, a netip.Addr) error {
	f.mu.Lock()
	p := f.pools[id]
	if p == nil {
		f.mu.Unlock()
		return nil
	}
	err := f.takeBack(p, a)
	n := f.sharedBy(p)
	single := n != nil && n.singles[a]
	f.mu.Unlock()
	if single {
		n.singleTurn.Lock()
		defer n.singleTurn.Unlock()
		err = errors.Join(err, f.returnSingles(ctx, n))
	}
	return err
}

// takeBack is ReleaseAddress for a pool on record. The caller holds mu.
func (f *Fabric) takeBack(p *addressPool, a netip.Addr) error {
	if i := slices.Index(p.Reserved, a); i >= 0 {
		p.Reserved = slices.Delete(slices.Clone(p.Reserved), i, i+1)
		p.alloc.Release(a)
		record := p.Pool
		f.mu.Unlock()
		err := f.o.Pools.Put(string(record.ID), record)
		f.mu.Lock()
		return err
	}
	lease := p.leases[a]
	if lease == nil {
		return nil
	}
	if f.inUse(p, lease) {
		lease.Returned = true
		return f.o.Leases.Put(lease.key(), *lease)
	}
	// Docker takes an address back without deleting its endpoint only when it
	// never learned that the endpoint was made.
	if e := f.endpoints[lease.Endpoint]; e != nil && e.Joined.IsZero() {
		if err := f.dropEndpoint(f.networks[e.Network], e); err != nil {
			return err
		}
	}
	return f.freeLease(p, lease)
}

// inUse says whether a process lives that has the address: that of the lease's
// endpoint, or, as long as it is open whose the pool is, that of an endpoint on
// any network it may belong to. The caller holds mu.
func (f *Fabric) inUse(p *addressPool, lease *Lease) bool {
	if e := f.endpoints[lease.Endpoint]; e != nil {
		return f.alive(e)
	}
	for _, n := range f.awaiting(p) {
		if e := n.addresses[lease.Addr]; e != nil && f.alive(e) {
			return true
		}
	}
	return false
}

// freeLease returns the address to its pool. The caller holds mu.
func (f *Fabric) freeLease(p *addressPool, lease *Lease) error {
	gone := *lease
	gone.Released, gone.Returned, gone.Endpoint, gone.Name = time.Now(), false, "", ""
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
	for _, p := range f.pools {
		if lease := p.leases[a]; lease != nil && lease.Endpoint == "" && p.Network == n.ID {
			lease.Endpoint = id
			return
		}
	}
	f.tellPool(n, a)
}

// tellPool learns from an endpoint's address whose a pool is that could not be
// told from another one with the same subnet when the network was made: this
// network's, if it alone has handed the address out. The caller holds mu.
func (f *Fabric) tellPool(n *network, a netip.Addr) {
	s, found := n.subnetOf(a)
	if !found || !s.Managed || f.boundPool(n, s.Subnet) != nil {
		return
	}
	var only *addressPool
	for _, p := range f.pools {
		if lease := p.leases[a]; lease == nil || p.Network != "" || p.Subnet != s.Subnet {
			continue
		}
		if only != nil {
			return
		}
		only = p
	}
	if only == nil {
		return
	}
	// Once in the life of such a network, so flushing it under mu does no harm.
	err := f.bind(only, n, s)
	if err = errors.Join(err, f.o.Pools.Put(string(only.ID), only.Pool)); err != nil {
		// After the next start an endpoint tells it again.
		f.o.Log.WithError(err).WithField("net", n.ID.Short()).Warn("pool of network not kept")
	}
}

// giveBack notes that Docker holds the endpoint's addresses no longer. The
// caller holds mu.
func (f *Fabric) giveBack(e *Endpoint) error {
	var errs []error
	for _, p := range f.pools {
		for _, a := range e.Addresses() {
			if lease := p.leases[a]; lease != nil && lease.Endpoint == e.ID {
				lease.Returned = true
				errs = append(errs, f.o.Leases.Put(lease.key(), *lease))
			}
		}
	}
	return errors.Join(errs...)
}

// unlinkLease lets another endpoint of the network have a lease. The caller
// holds mu.
func (f *Fabric) unlinkLease(e *Endpoint, a netip.Addr) {
	for _, p := range f.pools {
		if lease := p.leases[a]; lease != nil && lease.Endpoint == e.ID {
			lease.Endpoint = ""
		}
	}
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
			if lease.Returned {
				errs = append(errs, f.freeLease(p, lease))
				continue
			}
			lease.Endpoint, lease.Since = "", time.Now()
			errs = append(errs, f.o.Leases.Put(lease.key(), *lease))
		}
	}
	return errors.Join(errs...)
}
