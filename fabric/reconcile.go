package fabric

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/particle-net/particle/topology"
)

// grace is how long a thing may stay half made before Reconcile asks Docker
// about it. Docker itself gives up on a plugin call after 30 s.
const grace = time.Minute

// askLimit bounds each question to Docker, so that one that hangs leaves time
// for what needs no answer.
const askLimit = 5 * time.Second

// Reconcile compares this host's state with Docker's and with the processes that
// live, and repairs what differs. It is safe beside all other methods; run it again
// and again. What Docker cannot be asked about is left as it is. The kernel is
// Repair's, which never waits for Docker.
func (f *Fabric) Reconcile(ctx context.Context) error {
	// dockerd accepts connections while it boots and answers them at the end.
	asked, cancel := context.WithTimeout(ctx, askLimit)
	listed, err := f.o.Engine.Networks(asked)
	cancel()
	if err != nil {
		return errors.Join(err, f.settleAll(ctx), f.settleClaims(ctx))
	}
	known := map[topology.NetworkID]bool{}
	used := map[netip.Prefix]bool{}
	for _, n := range listed {
		if n.Ours {
			known[n.ID] = true
			f.learnName(n.ID, n.Name)
		}
		for _, subnet := range n.Pools {
			used[subnet] = true
		}
	}
	return errors.Join(
		f.settleAll(ctx),
		f.sweepEndpoints(ctx, known),
		f.sweepNetworks(ctx, known),
		f.sweepPools(ctx, used),
		f.settleClaims(ctx),
		f.o.RunFiles.SweepResolv(f.resolvKept(), grace),
	)
}

// settleAll finds the processes that ended while nobody could tell us.
func (f *Fabric) settleAll(ctx context.Context) error {
	f.mu.Lock()
	ids := slices.Collect(maps.Keys(f.endpoints))
	f.mu.Unlock()
	var errs []error
	for _, id := range ids {
		errs = append(errs, f.settle(ctx, id))
	}
	return errors.Join(errs...)
}

// sweepEndpoints removes the endpoints that no process holds and Docker does
// not know.
func (f *Fabric) sweepEndpoints(ctx context.Context, known map[topology.NetworkID]bool) error {
	var errs []error
	for id, suspects := range f.suspects() {
		var live map[topology.EndpointID]EngineContainer
		if known[id] {
			asked, cancel := context.WithTimeout(ctx, askLimit)
			var err error
			live, err = f.o.Engine.Endpoints(asked, id)
			cancel()
			if err != nil {
				errs = append(errs, err)
				continue
			}
		}
		for _, e := range suspects {
			holder, exists := live[e.ID]
			switch stray := f.strayed(e); {
			case exists && stray:
				errs = append(errs, f.adopt(ctx, e))
			case exists:
				errs = append(errs, f.name(e, holder))
			case stray || f.suspectedFor(e.ID) > grace:
				errs = append(errs, f.retire(ctx, e))
			}
		}
	}
	return errors.Join(errs...)
}

// suspects are the endpoints, by network, whose own container had no live process
// for the whole of grace: younger ones are still being made, or Docker is taking
// them down. One that Docker has deleted is left to its guests.
// A stray needs no grace, nor does one whose name alone is asked for.
func (f *Fabric) suspects() map[topology.NetworkID][]Endpoint {
	f.mu.Lock()
	endpoints := make([]Endpoint, 0, len(f.endpoints))
	for _, e := range f.endpoints {
		endpoints = append(endpoints, *e)
	}
	for id := range f.suspected {
		if f.endpoints[id] == nil {
			delete(f.suspected, id)
		}
	}
	f.mu.Unlock()
	all := map[topology.NetworkID][]Endpoint{}
	for _, e := range endpoints { // looking at processes takes long, and mu is not held
		if f.ownerAlive(&e) || (e.Deleted && f.alive(&e)) {
			f.mu.Lock()
			delete(f.suspected, e.ID)
			f.mu.Unlock()
			continue
		}
		nameless := e.Link != "" && e.Name == ""
		if f.suspectedFor(e.ID) > grace || f.strayed(e) || nameless {
			all[e.Network] = append(all[e.Network], e)
		}
	}
	return all
}

// name notes who holds an endpoint that no start has claimed, such as one that Docker has
// connected while its container ran. Errors and the status name it.
func (f *Fabric) name(e Endpoint, holder EngineContainer) error {
	if holder.ID == "" || holder.Name == e.Name || !e.Claimed.IsZero() {
		return nil
	}
	err := f.update(e.ID, func(e *Endpoint) {
		if e.Claimed.IsZero() {
			e.Name = holder.Name
		}
	})
	if errors.Is(err, ErrNoEndpoint) { // it has left meanwhile
		return nil
	}
	return err
}

// suspectedFor notes that the endpoint has no process and says how long that
// has been so.
func (f *Fabric) suspectedFor(id topology.EndpointID) time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	since, before := f.suspected[id]
	if !before {
		since = time.Now()
		f.suspected[id] = since
	}
	return time.Since(since)
}

// strayed says whether a container has a namespace of its own that is not
// connected yet, most likely because it was started without our runtime. Docker
// up to 27 joins it before the runtime is run, so Join cannot tell; but its own
// namespace is bound over ours soon after.
func (f *Fabric) strayed(e Endpoint) bool {
	if e.Joined.IsZero() || !e.Claimed.IsZero() || !e.Exposed {
		return false
	}
	state, err := f.o.Sandboxes.State(e.Network, e.SandboxKey)
	return err == nil && state == SandboxForeign
}

// retire removes an endpoint that nobody holds, with its own leases, or leaves it
// to its guests. Docker may have removed it meanwhile and given its addresses to
// another.
func (f *Fabric) retire(ctx context.Context, e Endpoint) error {
	defer f.beginRemoval(e.ID)()
	now := f.copy(e.ID) // it may have got a branch since
	if f.ownerAlive(&now) {
		return nil
	}
	if err := f.detach(ctx, now); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	current := f.endpoints[e.ID]
	if current == nil || f.ownerAlive(current) {
		return nil
	}
	f.repairs++
	f.o.Log.WithFields(map[string]any{"net": e.Network.Short(), "ep": e.ID.Short()}).
		Warn("endpoint without container removed")
	// Docker knows it no more, so its leases wait for no release.
	if err := f.giveBack(current); err != nil || !f.alive(current) {
		return errors.Join(err, f.dropEndpoint(f.networks[e.Network], current))
	}
	kept := *current
	kept.Deleted, kept.Exposed, kept.Pid = true, false, 0
	kept.Guarded = 0 // it was admitted for its own container
	return f.replace(current, kept)
}

// sweepNetworks removes the networks that Docker does not list, and namespaces
// that belong to none. The cluster keeps them: no user has removed them, but Docker
// has lost them.
func (f *Fabric) sweepNetworks(ctx context.Context, known map[topology.NetworkID]bool) error {
	var errs []error
	for _, n := range f.snapshot() {
		f.mu.Lock()
		gone := n.Doomed || (!known[n.ID] && !n.creating && time.Since(n.Created) > grace)
		f.mu.Unlock()
		if gone && !f.inhabited(n) {
			n.work.Lock()
			errs = append(errs, f.demolish(ctx, n))
			n.work.Unlock()
			f.countRepair()
		}
	}
	bound, err := f.o.Segments.Networks(ctx)
	errs = append(errs, err)
	for _, id := range bound {
		if f.network(id) == nil && !known[id] {
			errs = append(errs, f.o.Segments.Remove(ctx, id))
			f.countRepair()
		}
	}
	return errors.Join(errs...)
}

// Repair compares the kernel with this host's records, and repairs what differs.
// Like Reconcile, it is safe beside all other methods.
func (f *Fabric) Repair(ctx context.Context) error {
	return errors.Join(f.repairSegments(ctx), f.sweepGuard(ctx))
}

// repairSegments makes the kernel match the records again.
func (f *Fabric) repairSegments(ctx context.Context) error {
	var errs []error
	for _, n := range f.snapshot() {
		n.work.Lock()
		f.mu.Lock()
		skip := n.creating || f.networks[n.ID] != n
		f.mu.Unlock()
		if !skip {
			changed, err := f.apply(ctx, n)
			errs = append(errs, err)
			if err == nil {
				errs = append(errs, f.repairBranches(ctx, n))
			}
			if changed {
				f.countRepair()
				f.o.Log.WithField("net", n.ID.Short()).Warn("network's kernel state had drifted and was repaired")
			}
		}
		n.work.Unlock()
	}
	return errors.Join(errs...)
}

// sweepPools frees leases that never got an endpoint, and pools that never got
// a network: Docker asked for them and broke off.
func (f *Fabric) sweepPools(ctx context.Context, used map[netip.Prefix]bool) error {
	f.mu.Lock()
	var errs []error
	var orphans []topology.PoolID
	for id, p := range f.pools {
		if p.Network == "" {
			// A network of another driver may have its addresses from us.
			if time.Since(p.Created) > grace && !used[p.Subnet] && len(f.awaiting(p)) == 0 {
				orphans = append(orphans, id)
			}
			errs = append(errs, f.sweepReturned(p))
			continue
		}
		for _, lease := range p.leases {
			if f.endpoints[lease.Endpoint] == nil && time.Since(lease.Since) > grace {
				errs = append(errs, f.freeLease(p, lease))
			}
		}
	}
	f.mu.Unlock()
	for _, id := range orphans {
		errs = append(errs, f.ReleasePool(ctx, id))
		f.countRepair()
	}
	return errors.Join(errs...)
}

// sweepReturned frees what was in use when Docker took it back, in a pool of
// which it is open whose it is. The caller holds mu.
func (f *Fabric) sweepReturned(p *addressPool) error {
	var errs []error
	for _, lease := range p.leases {
		if lease.Returned && !f.inUse(p, lease) {
			errs = append(errs, f.freeLease(p, lease))
		}
	}
	return errors.Join(errs...)
}

// resolvKept says of which containers the resolv.conf is still needed.
func (f *Fabric) resolvKept() func(topology.ContainerID) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	held := make(map[topology.ContainerID]bool, len(f.endpoints))
	for _, e := range f.endpoints {
		held[e.Container] = true
	}
	return func(id topology.ContainerID) bool { return held[id] }
}

func (f *Fabric) countRepair() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.repairs++
}

// NoteRepair counts a repair of what is beside the networks.
func (f *Fabric) NoteRepair() { f.countRepair() }

// NetworkSeen notes what Docker calls a network of ours.
func (f *Fabric) NetworkSeen(id topology.NetworkID, name string) { f.learnName(id, name) }
