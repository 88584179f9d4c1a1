package fabric

import (
	"context"
	"errors"
	"time"

	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/topology"
)

// grace is how long a thing may stay half made before Reconcile asks Docker
// about it. Docker itself gives up on a plugin call after 30 s.
const grace = time.Minute

// Reconcile compares this host's state with Docker's, with the processes that
// live and with the kernel, and repairs what differs. It is safe beside all
// other methods; run it again and again. What Docker cannot be asked about is
// left as it is.
func (f *Fabric) Reconcile(ctx context.Context) error {
	listed, err := f.o.Engine.Networks(ctx)
	if err != nil {
		return errors.Join(err, f.repairSegments(ctx))
	}
	known := map[topology.NetworkID]bool{}
	for _, n := range listed {
		known[n.ID] = true
		f.learnName(n.ID, n.Name)
	}
	return errors.Join(
		f.sweepEndpoints(ctx, known),
		f.sweepNetworks(ctx, known),
		f.repairSegments(ctx),
		f.sweepPools(ctx),
		f.o.RunFiles.SweepResolv(f.keepsResolv, grace),
	)
}

// sweepEndpoints removes the endpoints that no process holds and Docker does
// not know.
func (f *Fabric) sweepEndpoints(ctx context.Context, known map[topology.NetworkID]bool) error {
	var errs []error
	for id, suspects := range f.suspects() {
		var live map[topology.EndpointID]EngineContainer
		if known[id] {
			var err error
			if live, err = f.o.Engine.Endpoints(ctx, id); err != nil {
				errs = append(errs, err)
				continue
			}
		}
		for _, e := range suspects {
			holder, exists := live[e.ID]
			switch {
			case !exists:
				errs = append(errs, f.retire(e))
			case f.strayed(e):
				errs = append(errs, f.evict(ctx, e, holder))
			}
		}
	}
	return errors.Join(errs...)
}

// suspects are the endpoints, by network, that had no live process for the whole
// of grace: younger ones are still being made, or Docker is taking them down.
// A stray needs no grace, nor does an endpoint that Docker deleted before its
// process ended.
func (f *Fabric) suspects() map[topology.NetworkID][]Endpoint {
	f.mu.Lock()
	defer f.mu.Unlock()
	all := map[topology.NetworkID][]Endpoint{}
	for id, e := range f.endpoints {
		if f.alive(e) {
			delete(f.suspected, id)
			continue
		}
		since, before := f.suspected[id]
		if !before {
			since = time.Now()
			f.suspected[id] = since
		}
		if time.Since(since) > grace || e.Deleted || f.strayed(*e) {
			all[e.Network] = append(all[e.Network], *e)
		}
	}
	for id := range f.suspected {
		if f.endpoints[id] == nil {
			delete(f.suspected, id)
		}
	}
	return all
}

// strayed says whether a container was started on the network without our
// runtime. Docker up to 27 joins it before the runtime is run, so Join cannot
// tell; but its own namespace is bound over ours soon after.
func (f *Fabric) strayed(e Endpoint) bool {
	if e.Joined.IsZero() || !e.Claimed.IsZero() || !e.Exposed {
		return false
	}
	state, err := f.o.Sandboxes.State(e.Network, e.SandboxKey)
	return err == nil && state == SandboxForeign
}

// evict ends a container that runs on one of our networks in a namespace of its
// own: it has an address that it cannot use, and nobody told its user.
func (f *Fabric) evict(ctx context.Context, e Endpoint, holder EngineContainer) error {
	if holder.ID == "" {
		return nil
	}
	cause := fault.New("end container", holder.Name, "it was started on a particle network by another runtime and has no connection",
		"start it with --runtime particle")
	f.o.Log.WithFields(map[string]any{"net": e.Network.Short(), "ep": e.ID.Short()}).Error(cause)
	f.countRepair()
	return f.o.Engine.Kill(ctx, holder.ID)
}

// retire removes an endpoint that nobody holds, and frees its addresses.
func (f *Fabric) retire(e Endpoint) error {
	f.countRepair()
	f.o.Log.WithFields(map[string]any{"net": e.Network.Short(), "ep": e.ID.Short()}).
		Warn("endpoint without container removed")
	if err := f.removeEndpoint(e); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	var errs []error
	for _, p := range f.pools {
		for _, a := range e.Addresses() {
			if lease := p.leases[a]; lease != nil && lease.Endpoint == "" && p.Network == e.Network {
				errs = append(errs, f.freeLease(p, lease))
			}
		}
	}
	return errors.Join(errs...)
}

// sweepNetworks removes the networks that Docker does not list, and namespaces
// that belong to none.
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
func (f *Fabric) sweepPools(ctx context.Context) error {
	f.mu.Lock()
	var errs []error
	var orphans []topology.PoolID
	for id, p := range f.pools {
		if p.Network == "" {
			if time.Since(p.Created) > grace && !f.awaited(p) {
				orphans = append(orphans, id)
			}
			continue
		}
		for _, lease := range p.leases {
			if lease.Endpoint == "" && time.Since(lease.Since) > grace {
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

// awaited says whether a network may still turn out to be the pool's. The
// caller holds mu.
func (f *Fabric) awaited(p *addressPool) bool {
	for _, n := range f.networks {
		if n.hasSubnet(p.Subnet) && f.boundPool(n, p.Subnet) == nil {
			return true
		}
	}
	return false
}

func (f *Fabric) keepsResolv(id topology.ContainerID) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, e := range f.endpoints {
		if e.Container == id {
			return true
		}
	}
	return false
}

func (f *Fabric) countRepair() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.repairs++
}

// NetworkSeen notes what Docker calls a network of ours.
func (f *Fabric) NetworkSeen(id topology.NetworkID, name string) { f.learnName(id, name) }
