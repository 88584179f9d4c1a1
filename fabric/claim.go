package fabric

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"time"

	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/topology"
)

// SetClaims says what this host owns of a network, all of it. New blocks serve
// when it returns. One that is gone hands out nothing more, and stays local while
// addresses of it are used. A single address that no lease has is given back.
// Where the disk cannot be written, what is gone is so all the same, for a later plugin
// too; nothing new serves, and Reconcile tries again to write what is left.
// Cause: ErrNoNetwork, also while it is being made.
func (f *Fabric) SetClaims(ctx context.Context, id topology.SharedID, claims []netip.Prefix) error {
	n, err := f.shared("set blocks of network", id)
	if err != nil {
		return err
	}
	n.work.Lock()
	defer n.work.Unlock()
	blocks := blocksOf(claims)
	f.mu.Lock()
	if f.networks[n.ID] != n {
		f.mu.Unlock()
		return &fault.Error{Op: "set blocks of network", On: id.Short(), Err: ErrNoNetwork}
	}
	for _, c := range claims {
		if c.IsSingleIP() && !n.singles[c.Addr()] {
			n.unused = append(n.unused, c.Addr())
		}
	}
	if slices.Equal(blocks, n.Claims) && n.applied && !n.claimsNew {
		f.mu.Unlock()
		return nil
	}
	kept := slices.DeleteFunc(slices.Clone(n.Claims), func(b netip.Prefix) bool { return !slices.Contains(blocks, b) })
	f.confine(n, kept) // before it is found out what is used
	record := n.Network
	record.Claims, record.Leaving = blocks, f.leaving(n, blocks)
	// What is lost is another's, whether that can be written down or not.
	noted, errNote := f.noteKept(n, kept)
	n.Claims, n.Leaving, n.claimsNew = kept, f.leaving(n, kept), true
	f.mu.Unlock()
	// On disk before an address is handed out: after a kill it must be local again.
	errDisk := f.o.Networks.Put(string(n.ID), record)
	if errDisk == nil {
		f.mu.Lock()
		errNote = errors.Join(errNote, f.recorded(n, record.Claims, record.Leaving, noted))
		f.mu.Unlock()
	}
	if _, err = f.apply(ctx, n); err != nil && ctx.Err() != nil {
		f.mu.Lock()
		n.applied = false // of what is new the kernel may have nothing; it says nothing about that
		f.mu.Unlock()
	}
	return errors.Join(errDisk, errNote, err)
}

// SuspendClaims stops the handing out of addresses, for the reason given: ErrUnverified,
// ErrLeaving or ErrLeft; nil allows it again. What is in use stays.
func (f *Fabric) SuspendClaims(id topology.SharedID, why error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, n := range f.networks {
		if n.Shared == id && id != "" {
			n.suspended = why
		}
	}
}

// serve makes the pools of a shared network hand out the blocks given, and no
// others. The caller holds mu.
func (f *Fabric) serve(n *network, blocks []netip.Prefix) error {
	if n.Shared == "" {
		return nil
	}
	var errs []error
	for _, p := range f.pools {
		if p.Network == n.ID {
			errs = append(errs, p.serve(blocks))
		}
	}
	return errors.Join(errs...)
}

// confine makes them hand out no other blocks than those given; what the kernel does
// not have yet does not come by that. The caller holds mu.
func (f *Fabric) confine(n *network, blocks []netip.Prefix) {
	for _, p := range f.pools {
		if p.Network == n.ID {
			p.confine(blocks)
		}
	}
}

func (p *addressPool) confine(blocks []netip.Prefix) {
	for _, b := range p.alloc.Blocks() {
		if !slices.Contains(blocks, b.Prefix) {
			p.alloc.Withdraw(b.Prefix)
		}
	}
}

func (p *addressPool) serve(blocks []netip.Prefix) error {
	p.confine(blocks)
	served := len(p.alloc.Blocks())
	var errs []error
	for _, b := range blocks {
		if p.Subnet.Contains(b.Addr()) {
			errs = append(errs, p.alloc.Extend(b))
		}
	}
	if len(p.alloc.Blocks()) > served {
		p.toldLow = false // that was of what there was before
	}
	return errors.Join(errs...)
}

// leaving are the blocks that this host has lost, or had lost before, and of
// which containers have addresses still. The caller holds mu.
func (f *Fabric) leaving(n *network, blocks []netip.Prefix) []netip.Prefix {
	var left []netip.Prefix
	for _, b := range slices.Concat(n.Claims, n.Leaving) {
		if !slices.Contains(blocks, b) && !slices.Contains(left, b) && f.inhabitedBlock(n, b) {
			left = append(left, b)
		}
	}
	return left
}

// inhabitedBlock says whether an address of the block is used. The caller holds
// mu.
func (f *Fabric) inhabitedBlock(n *network, b netip.Prefix) bool {
	for a := range n.addresses {
		if b.Contains(a) {
			return true
		}
	}
	for _, p := range f.pools {
		if p.Network != n.ID {
			continue
		}
		for a := range p.leases {
			if b.Contains(a) {
				return true
			}
		}
	}
	return false
}

// claimAddress hands out an address that is in no block of this host. It waits
// for the cluster's store.
func (f *Fabric) claimAddress(ctx context.Context, p *addressPool, n *network, spec AddressSpec) (netip.Prefix, error) {
	n.singleTurn.Lock()
	defer n.singleTurn.Unlock()
	a := spec.Addr
	f.mu.Lock()
	err := p.alloc.Take(a)
	if err != nil {
		err = f.explainTaken(p, a, err)
	}
	f.mu.Unlock()
	if err != nil {
		return netip.Prefix{}, err
	}
	bounded, cancel := context.WithTimeout(ctx, storeLimit)
	defer cancel()
	if err := f.o.Cluster.ClaimAddress(bounded, n.Shared, a, spec.Name); err != nil {
		f.mu.Lock()
		p.alloc.Release(a)
		f.mu.Unlock()
		if bounded.Err() != nil { // it may be ours all the same
			f.o.Cluster.ReleaseAddress(n.Shared, a)
		}
		return netip.Prefix{}, fixed("claim address", a.String(), err, "omit --ip, choose an address of this host's blocks (`particle status` lists them), or repeat it when the cluster's store answers")
	}
	lease := &Lease{Pool: p.ID, Addr: a, Name: spec.Name, Claimed: true, Since: time.Now()}
	f.mu.Lock()
	n.singles[a] = true
	if f.pools[p.ID] != p {
		err = noPool(p.ID) // removed meanwhile
	} else if err = f.o.Leases.Put(lease.key(), *lease); err == nil {
		p.leases[a] = lease
	} else {
		p.alloc.Release(a)
	}
	f.mu.Unlock()
	if err == nil {
		if err = f.applyNow(ctx, n); err == nil {
			return netip.PrefixFrom(a, p.Subnet.Bits()), nil
		}
		f.mu.Lock()
		err = errors.Join(err, f.freeLease(p, lease))
		f.mu.Unlock()
	}
	return netip.Prefix{}, errors.Join(err, f.returnSingles(ctx, n))
}

// applyNow is apply for those who have looked the network up without n.work. Cause:
// ErrNoNetwork, if it was removed meanwhile.
func (f *Fabric) applyNow(ctx context.Context, n *network) error {
	n.work.Lock()
	defer n.work.Unlock()
	if err := f.stays(n); err != nil {
		return err
	}
	_, err := f.apply(ctx, n)
	return err
}

// stays says that a network was removed while its turn was waited for: it would come back
// by halves. The caller holds n.work.
func (f *Fabric) stays(n *network) error {
	if f.network(n.ID) == n {
		return nil
	}
	return &fault.Error{Op: "use network", On: n.ID.Short(), Err: ErrNoNetwork, Fix: "create the network anew"}
}

// returnSingles gives back the single addresses that no lease has any more. They
// cease to be local first: whoever has one next is to be reached from here. The
// caller holds n.singleTurn.
func (f *Fabric) returnSingles(ctx context.Context, n *network) error {
	f.mu.Lock()
	var local, gone []netip.Addr
	for a := range n.singles {
		if !f.leased(n, a) {
			local = append(local, a)
			delete(n.singles, a)
		}
	}
	for _, a := range n.unused {
		if !f.leased(n, a) {
			gone = append(gone, a)
		}
	}
	n.unused = nil
	f.mu.Unlock()
	var err error
	if len(local) > 0 {
		err = f.applyNow(ctx, n)
	}
	if errors.Is(err, ErrNoNetwork) {
		err = nil // nothing of it is local
	}
	if err != nil {
		f.mu.Lock()
		for _, a := range local {
			n.singles[a] = true // and again later
		}
		f.mu.Unlock()
		local = nil
	}
	for _, a := range slices.Concat(local, gone) {
		f.o.Cluster.ReleaseAddress(n.Shared, a)
	}
	return err
}

// leased says whether an address of the network is handed out. The caller holds
// mu.
func (f *Fabric) leased(n *network, a netip.Addr) bool {
	for _, p := range f.pools {
		if p.Network == n.ID && p.leases[a] != nil {
			return true
		}
	}
	return false
}

// settleClaims ends what the end of leases has left of claims: single addresses,
// and blocks that were lost before. It writes what could not be written then.
func (f *Fabric) settleClaims(ctx context.Context) error {
	var errs []error
	for _, n := range f.snapshot() {
		f.mu.Lock()
		shared, here := n.Shared != "", f.networks[n.ID] == n
		due := len(n.Leaving) > 0 || n.claimsNew
		f.mu.Unlock()
		if !shared || !here {
			continue
		}
		n.singleTurn.Lock()
		errs = append(errs, f.returnSingles(ctx, n))
		n.singleTurn.Unlock()
		if due {
			errs = append(errs, f.settleLeaving(ctx, n))
		}
	}
	return errors.Join(errs...)
}

func (f *Fabric) settleLeaving(ctx context.Context, n *network) error {
	n.work.Lock()
	defer n.work.Unlock()
	f.mu.Lock()
	record := n.Network
	record.Leaving = f.leaving(n, n.Claims)
	same, here := len(record.Leaving) == len(n.Leaving) && !n.claimsNew, f.networks[n.ID] == n
	f.mu.Unlock()
	if same || !here {
		return nil
	}
	if err := f.o.Networks.Put(string(n.ID), record); err != nil {
		return err
	}
	f.mu.Lock()
	errNote := f.recorded(n, n.Claims, record.Leaving, n.claimsNew)
	f.mu.Unlock()
	_, err := f.apply(ctx, n)
	return errors.Join(errNote, err)
}

// local is what is local of a network that a cluster shares. The caller holds mu.
func (n *network) local() []netip.Prefix {
	all := slices.Concat(n.Claims, n.Leaving)
	for a := range n.singles {
		all = append(all, netip.PrefixFrom(a, a.BitLen()))
	}
	slices.SortFunc(all, netip.Prefix.Compare)
	return all
}

// sharedBy is the network that a pool's addresses are of, if a cluster shares
// it. The caller holds mu.
func (f *Fabric) sharedBy(p *addressPool) *network {
	if n := f.networks[p.Network]; n != nil && n.Shared != "" {
		return n
	}
	return nil
}

// mustClaim says whether an address is asked for that is no business of this
// host's blocks. The caller holds mu.
func (p *addressPool) mustClaim(spec AddressSpec) bool {
	return spec.Addr.IsValid() && !spec.Gateway && p.Subnet.Contains(spec.Addr) &&
		!p.alloc.Held(spec.Addr) && !p.alloc.HandsOut(spec.Addr)
}

// mayHandOut tells why a pool cannot be used for containers now. The caller holds
// mu.
func (f *Fabric) mayHandOut(p *addressPool, n *network, spec AddressSpec) error {
	switch {
	case spec.Gateway:
		return nil
	case n != nil && n.suspended != nil:
		fix := "see with `particle cluster status` why the cluster's store cannot be reached"
		switch {
		case errors.Is(n.suspended, ErrLeaving):
			fix = "wait until `particle cluster status` says that this host is in no cluster; the network goes with it"
		case errors.Is(n.suspended, ErrLeft):
			fix = "join that cluster again, or stop the network's containers: it goes with the last"
		}
		return &fault.Error{Op: "request address on network", On: n.label(), Err: n.suspended, Fix: fix}
	case n == nil && slices.ContainsFunc(f.awaiting(p), func(n *network) bool { return n.Shared != "" }):
		return fault.New("request address from pool", string(p.ID), "the creation of its network was interrupted",
			"remove the network with `docker network rm` and create it anew")
	}
	return nil
}
