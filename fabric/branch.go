package fabric

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/topology"
)

// A container with a network namespace of its own is connected by a branch:
//
//   - at Join, if Docker (28 and later) has made its namespace by then, or if it
//     runs already (docker network connect): whoever started it;
//   - at its claim, if our runtime started it. By then Docker has connected it to
//     its other networks and named their links, so that ours can take the first
//     name that is left;
//   - by Reconcile, if another runtime started it under Docker up to 27, which
//     joins first and makes the namespace afterwards.

// Names of a container's link. Docker gives its own links numbers as if there
// were no others, so before the claim ours must not be called eth0.
const (
	linkAtJoin  = "particle%d"
	linkAtClaim = "eth%d"
)

// Reasons for a namespace of its own where our runtime has told none. Docker 28 and
// later joins a container that starts as it does one that runs.
const (
	reasonJoined  = "another runtime, or docker network connect while it ran"
	reasonRuntime = "another runtime"
)

// connect gives an endpoint its branch into a namespace. The record comes first,
// so that no branch is without one. The caller holds the network's work.
func (f *Fabric) connect(ctx context.Context, n *network, id topology.EndpointID, namespace, link, reason string) error {
	now := f.copy(id)
	if guests := f.otherGuests(&now, ""); len(guests) > 0 {
		// It was in the shared namespace at its last start, as they still are.
		return &fault.Error{Op: "connect container to network", On: n.ID.Short(), Err: fmt.Errorf("%w: container %s shares it in the network's namespace", ErrAddressTaken, guests[0].Name),
			Fix: "stop that container or choose another --ip"}
	}
	if err := f.update(id, func(e *Endpoint) { e.Link, e.Reason = link, reason }); err != nil {
		return err
	}
	b, ok := f.branch(n, id)
	gone := &fault.Error{Op: "connect endpoint", On: id.Short(), Err: ErrNoEndpoint, Fix: "start the container again"}
	if !ok {
		return gone
	}
	b.Namespace = namespace
	if err := f.o.Branches.ApplyBranch(ctx, b); err != nil {
		return err
	}
	if f.isGoing(id) {
		// Who takes it away may have found no branch. Nobody would miss the record of this
		// one, and its address, which leads there, is another's soon.
		err := f.o.Branches.RemoveBranches(ctx, n.ID, []topology.EndpointID{id})
		if err != nil {
			f.mu.Lock()
			n.branchesSeen = false // Repair looks for it
			f.mu.Unlock()
		}
		return errors.Join(gone, err)
	}
	return f.kernelGuard(n.Network).ProtectBranch(ctx, n.ID, id)
}

// isGoing says whether an endpoint is gone, or is being taken away.
func (f *Fabric) isGoing(id topology.EndpointID) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.endpoints[id] == nil || f.removing[id] > 0
}

// branch is what an endpoint's record asks for, but for the namespace.
func (f *Fabric) branch(n *network, id topology.EndpointID) (topology.Branch, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	e := f.endpoints[id]
	if e == nil {
		return topology.Branch{}, false
	}
	b := topology.Branch{Network: n.ID, Endpoint: id, IPv4: e.IPv4, IPv6: e.IPv6, MTU: n.MTU, Link: e.Link, MAC: e.MAC, Internal: n.Internal}
	for _, s := range n.Subnets {
		b.Subnets = append(b.Subnets, s.Subnet)
	}
	for _, p := range f.o.Local {
		if p.IsSingleIP() { // the resolver; ranges have a meaning in the tenant namespace alone
			b.Subnets = append(b.Subnets, p)
		}
	}
	return b, true
}

// joinOwn connects a container whose namespace Docker has bound on the key.
func (f *Fabric) joinOwn(ctx context.Context, n *network, id topology.EndpointID, key string) error {
	namespace, err := f.o.Sandboxes.Namespace(key)
	if err == nil {
		err = f.ensureUplink(ctx, n) // without our runtime, nothing was placed
	}
	if err != nil {
		return err
	}
	n.work.Lock()
	defer n.work.Unlock()
	return f.connect(ctx, n, id, namespace, linkAtJoin, reasonJoined)
}

// claimOwn is Claim for a container that our runtime has left a namespace of its
// own.
func (f *Fabric) claimOwn(ctx context.Context, spec ClaimSpec, start uint64) error {
	f.mu.Lock()
	n := f.networks[spec.Network]
	e, err := f.claimed(spec)
	if err != nil {
		f.mu.Unlock()
		return err
	}
	was := *e
	f.mu.Unlock()
	n.work.Lock()
	defer n.work.Unlock()
	namespace := f.o.Processes.Namespace(spec.Pid)
	if err := f.connect(ctx, n, was.ID, namespace, linkAtClaim, spec.Reason); err != nil {
		return err
	}
	// Docker up to 27 has bound the container's namespace over the tenant's,
	// which Join had bound there. What Docker undoes is the upper one.
	if was.Exposed {
		if err := f.o.Sandboxes.Restore(was.SandboxKey, namespace); err != nil {
			return err
		}
	}
	return f.update(was.ID, func(e *Endpoint) {
		*e = f.withClaim(*e, spec, start, 0)
		e.Exposed = false
	})
}

// adopt connects a container that another runtime has started under Docker up to
// 27, and says so: it may have missed the network at its start.
func (f *Fabric) adopt(ctx context.Context, e Endpoint) error {
	n := f.network(e.Network)
	namespace, err := f.o.Sandboxes.Namespace(e.SandboxKey)
	if n == nil || err != nil {
		return err
	}
	if err := f.ensureUplink(ctx, n); err != nil {
		return err
	}
	n.work.Lock()
	defer n.work.Unlock()
	if !f.strayed(f.copy(e.ID)) { // it was claimed, or is gone
		return nil
	}
	err = f.connect(ctx, n, e.ID, namespace, linkAtJoin, reasonRuntime)
	if err == nil {
		err = f.o.Sandboxes.Restore(e.SandboxKey, namespace)
	}
	if err == nil {
		err = f.update(e.ID, func(e *Endpoint) { e.Exposed = false })
	}
	if err != nil {
		return err
	}
	f.countRepair()
	f.o.Log.WithFields(map[string]any{"net": e.Network.Short(), "ep": e.ID.Short()}).
		Warn("container of another runtime connected after its start; with --runtime particle it is connected before")
	return nil
}

// copy is the record of an endpoint, or an empty one.
func (f *Fabric) copy(id topology.EndpointID) Endpoint {
	f.mu.Lock()
	defer f.mu.Unlock()
	if e := f.endpoints[id]; e != nil {
		return *e
	}
	return Endpoint{}
}

// departures gathers branches that go at the same time: the kernel needs as long
// for one as for a hundred.
type departures struct {
	turn sync.Mutex // one batch is removed at a time. Rank: before mu
	mu   sync.Mutex
	next map[topology.NetworkID]*departure // guarded by mu
}

// departure is a batch. err is valid once done is closed.
type departure struct {
	endpoints []topology.EndpointID
	done      chan struct{}
	err       error
}

// departLimit bounds the removal of a batch.
const departLimit = 15 * time.Second

// disconnect removes an endpoint's branch. The first to come waits for the batch
// before its own to be through, and takes all who have come by then with it.
func (f *Fabric) disconnect(ctx context.Context, e Endpoint) error {
	d := &f.departures
	d.mu.Lock()
	batch := d.next[e.Network]
	first := batch == nil
	if first {
		batch = &departure{done: make(chan struct{})}
		d.next[e.Network] = batch
	}
	batch.endpoints = append(batch.endpoints, e.ID)
	d.mu.Unlock()
	if first {
		f.depart(ctx, e.Network, batch)
	}
	select {
	case <-batch.done:
		return batch.err
	case <-ctx.Done():
		return &fault.Error{Op: "disconnect endpoint", On: e.ID.Short(), Err: context.Cause(ctx), Fix: "it is tried again by itself"}
	}
}

// depart removes a batch under its own deadline: others wait for it, too.
func (f *Fabric) depart(ctx context.Context, id topology.NetworkID, batch *departure) {
	f.departures.turn.Lock()
	defer f.departures.turn.Unlock()
	f.departures.mu.Lock()
	delete(f.departures.next, id)
	f.departures.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), departLimit)
	defer cancel()
	batch.err = f.o.Branches.RemoveBranches(ctx, id, batch.endpoints)
	close(batch.done)
}

// repairBranches makes the kernel match the records of a network's branches. The
// caller holds n.work.
func (f *Fabric) repairBranches(ctx context.Context, n *network) error {
	f.mu.Lock()
	need := !n.branchesSeen
	for _, e := range n.endpoints {
		need = need || e.Link != ""
	}
	f.mu.Unlock()
	if !need {
		return nil
	}
	found, err := f.o.Branches.Branches(ctx, n.ID)
	if err != nil {
		return err
	}
	have := map[string]topology.Branch{}
	for _, b := range found {
		have[b.Endpoint.Short()] = b
	}
	f.mu.Lock()
	n.branchesSeen = true
	var lacking []Endpoint
	for _, e := range n.endpoints {
		if e.Link == "" {
			continue
		}
		if b := have[e.ID.Short()]; b.IPv4 != e.IPv4 || b.IPv6 != e.IPv6 || b.MTU != n.MTU {
			lacking = append(lacking, *e)
		}
		delete(have, e.ID.Short())
	}
	f.mu.Unlock()
	var errs []error
	for _, e := range lacking {
		errs = append(errs, f.reconnect(ctx, n, e))
	}
	var orphans []topology.EndpointID
	for _, b := range have {
		orphans = append(orphans, b.Endpoint)
		f.countRepair()
	}
	if len(orphans) > 0 {
		errs = append(errs, f.o.Branches.RemoveBranches(ctx, n.ID, orphans))
	}
	return errors.Join(errs...)
}

// reconnect makes a branch again that has gone. It goes with its container, too,
// and then Docker or the runtime will say so.
func (f *Fabric) reconnect(ctx context.Context, n *network, e Endpoint) error {
	namespace := f.o.Processes.Namespace(e.Pid)
	if !f.ownerAlive(&e) {
		state, err := f.o.Sandboxes.State(e.Network, e.SandboxKey)
		if err != nil || state != SandboxForeign {
			return err
		}
		if namespace, err = f.o.Sandboxes.Namespace(e.SandboxKey); err != nil {
			return err
		}
	}
	switch err := f.connect(ctx, n, e.ID, namespace, e.Link, e.Reason); {
	case errors.Is(err, ErrNoEndpoint) && f.isGoing(e.ID): // that is why it lacked its branch
		return nil
	case err != nil:
		return fmt.Errorf("repair branch: %w", err)
	}
	f.countRepair()
	return nil
}
