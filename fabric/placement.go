package fabric

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/topology"
)

// Ref is a network as a container's configuration names it.
type Ref struct {
	Name string // a name, an id, or the start of an id, as the user typed it
	ID   string // empty until the container's first start; may be stale
}

// Placement is where a container belongs.
type Placement struct {
	Network   topology.NetworkID
	Name      string
	Namespace string // file on the host
	Internal  bool
	Resolver  netip.Addr // invalid if none is needed
	// Supervised says that the container's guard is GuardSeccomp, which
	// particle-runtime begins.
	Supervised bool
}

// Place finds the particle network among the networks of a container that is
// about to be made. ok is false if there is none. The network's way out is made
// here, once, because this call holds up one container and not its network. own
// says that the container will have a namespace of its own, and may therefore be
// on networks of other drivers, too.
func (f *Fabric) Place(ctx context.Context, refs []Ref, own bool) (p Placement, ok bool, err error) {
	var home *network
	several := len(refs) > 1 && !own
	for _, ref := range refs {
		n, err := f.resolve(ctx, ref)
		if err != nil {
			return Placement{}, false, &fault.Error{Op: "find network", On: ref.Name, Err: err,
				Fix: "start the container again; if it stays, look at the log of the Docker daemon"}
		}
		if n != nil {
			several = several || home != nil && home != n
			home = n
		}
	}
	if home == nil {
		return Placement{}, false, nil
	}
	f.mu.Lock()
	record, ready, label := home.Network, home.applied && home.problem == "", home.label()
	f.mu.Unlock()
	if several && own {
		return Placement{}, false, fault.New("place container on network", label,
			fmt.Sprintf("another of its %d networks is a particle network, too", len(refs)),
			"start it on one of them; with the label particle.namespace=own it can be connected to others while it runs")
	}
	if several {
		return Placement{}, false, fault.New("place container on network", label,
			fmt.Sprintf("it asks for %d networks, and a container in a shared namespace can have one", len(refs)),
			"connect it to this network alone, or give it the label particle.namespace=own")
	}
	if err := f.checkGuard(record, label, own); err != nil {
		return Placement{}, false, err
	}
	if !ready { // it may be by now
		if err := f.applyNow(ctx, home); err != nil {
			return Placement{}, false, err
		}
	}
	if err := f.ensureUplink(ctx, home); err != nil {
		return Placement{}, false, err
	}
	resolver, err := f.o.Resolvers.Serve(ctx, home.ID)
	if err != nil {
		return Placement{}, false, err
	}
	return Placement{
		Network:   record.ID,
		Name:      record.Name,
		Namespace: path.Join(f.o.NamespaceDir, string(record.ID)),
		Internal:  record.Internal,
		Resolver:  resolver,

		Supervised: !own && f.guardOf(record) == GuardSeccomp,
	}, true, nil
}

// resolve finds the network a reference means, nil if it is none of ours. The
// order is Docker's: a full id, a name, the start of an id.
func (f *Fabric) resolve(ctx context.Context, ref Ref) (*network, error) {
	n, sure := f.lookup(ref)
	if sure {
		return n, nil
	}
	// A network of ours was made a moment ago and its name is not known yet, or
	// the reference may be the start of an id. Docker knows.
	found, exists, err := f.o.Engine.Network(ctx, ref.Name)
	if err != nil {
		if ref.ID != "" || n != nil {
			// Its id is on disk and is none of ours, or only one of ours fits.
			// Join, and Reconcile after it, see to it if that was wrong.
			return n, nil
		}
		return nil, err
	}
	if !exists || !found.Ours {
		return nil, nil
	}
	f.learnName(found.ID, found.Name)
	return f.network(found.ID), nil
}

// lookup resolves without asking anybody; sure is false if that is not enough.
// A doomed network is out of Docker's sight, and its name may be another's now.
func (f *Fabric) lookup(ref Ref) (n *network, sure bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, id := range []string{ref.Name, ref.ID} {
		if n := f.networks[topology.NetworkID(id)]; n != nil && !n.Doomed {
			return n, true
		}
	}
	matches, unnamed, prefixed := 0, false, false
	var match *network
	for _, n := range f.networks {
		if n.Doomed {
			continue
		}
		if n.Name == ref.Name {
			match = n
			matches++
		}
		unnamed = unnamed || n.Name == ""
		prefixed = prefixed || strings.HasPrefix(string(n.ID), ref.Name)
	}
	switch {
	case matches > 1: // one of them is a network whose removal we missed
		return nil, false
	case matches == 1:
		return match, !unnamed
	}
	return nil, !unnamed && !prefixed
}

// learnName notes a network's name, which Docker does not send with its
// creation.
func (f *Fabric) learnName(id topology.NetworkID, name string) {
	f.mu.Lock()
	n := f.networks[id]
	if n == nil || n.Name == name || name == "" {
		f.mu.Unlock()
		return
	}
	n.Name = name
	f.mu.Unlock()
	n.work.Lock() // a record is written by one at a time, and as it is then
	defer n.work.Unlock()
	f.mu.Lock()
	here, record := f.networks[id] == n, n.Network
	f.mu.Unlock()
	if !here {
		return
	}
	if err := errors.Join(f.o.Networks.Put(string(id), record), f.publish()); err != nil {
		// The name is asked for again after the next start.
		f.o.Log.WithError(err).WithField("net", id.Short()).Warn("name of network not kept")
	}
}

// ContainerRenamed notes what Docker calls a container from now on. It tells no driver,
// and under its new name the container is asked for when it starts again.
func (f *Fabric) ContainerRenamed(id topology.ContainerID, name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, e := range f.endpoints {
		if !slices.Contains(e.containers(), id) {
			continue
		}
		changed := *e
		if e.Container == id {
			changed.Name = name
		}
		changed.Guests = slices.Clone(e.Guests)
		for i := range changed.Guests {
			if changed.Guests[i].Container == id {
				changed.Guests[i].Name = name
			}
		}
		if err := f.replace(e, changed); err != nil {
			// The next start tells it.
			f.o.Log.WithError(err).WithField("ep", e.ID.Short()).Warn("name of container not kept")
		}
	}
}

// HostLine is a line of a container's hosts file.
type HostLine struct {
	Addr  netip.Addr
	Names []string
}

// ClaimSpec says which process and cgroup own a container's address.
type ClaimSpec struct {
	Container topology.ContainerID
	Name      string
	Network   topology.NetworkID
	Pid       int
	Cgroup    string
	Join      topology.ContainerID // whose address it shares; empty if it has its own
	Own       bool                 // it has a namespace of its own, to be connected
	Reason    string               // why, as its user would say it
	Hosts     []HostLine           // these two tell its own
	Hostname  string
}

// Claim binds a container to the endpoint Docker made for it. The endpoint is
// recognised by the container's own line in its hosts file: no call of Docker's
// before version 29 carries a container's name or id. A container that joined
// another's network has no endpoint and becomes a guest of the other's. One with
// a namespace of its own is connected here.
//
// The guard admits the container first: one that is on record without it would
// be mended later, but runs as soon as Claim returns. It has nothing to do with
// namespaces of containers' own.
func (f *Fabric) Claim(ctx context.Context, spec ClaimSpec) error {
	f.admission.RLock()
	defer f.admission.RUnlock()
	start, ok := f.o.Processes.StartTime(spec.Pid)
	if !ok {
		return claimError(spec, fmt.Sprintf("its process %d is gone", spec.Pid))
	}
	if spec.Own {
		return f.claimOwn(ctx, spec, start)
	}
	f.mu.Lock()
	e, err := f.claimed(spec)
	if err != nil {
		f.mu.Unlock()
		return err
	}
	id, identity := e.ID, e.identity()
	guard := f.kernelGuard(f.networks[e.Network].Network)
	f.mu.Unlock()
	guarded, err := guard.Admit(ctx, spec.Cgroup, identity)
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	e, err = f.claimed(spec)
	if err == nil && e.ID != id {
		err = claimError(spec, "another endpoint took the place of its own meanwhile")
	}
	if err == nil {
		err = f.replace(e, f.withClaim(*e, spec, start, guarded))
	}
	if err != nil {
		return errors.Join(err, guard.Expel(guarded))
	}
	return nil
}

// claimed finds the endpoint that a claim is about. The caller holds mu.
func (f *Fabric) claimed(spec ClaimSpec) (*Endpoint, error) {
	n := f.networks[spec.Network]
	if n == nil {
		return nil, claimError(spec, "its network "+spec.Network.Short()+" does not exist any more")
	}
	if spec.Join != "" {
		return f.joined(n, spec)
	}
	e := f.ownEndpoint(n, spec)
	if e != nil {
		return e, nil
	}
	if rival := f.rival(n, spec); rival != nil {
		return nil, &fault.Error{Op: "claim the address of container", On: spec.Name, Err: fmt.Errorf("%w: %s holds it", ErrAddressTaken, rival.holder()),
			Fix: "remove that container or choose another --ip"}
	}
	return nil, claimError(spec, "no address that Docker gave out on this network is in its hosts file")
}

func claimError(spec ClaimSpec, cause string) error {
	return fault.New("claim the address of container", spec.Name, cause, "start the container again")
}

// withClaim is the endpoint with the claim in it. The caller holds mu.
func (f *Fabric) withClaim(e Endpoint, spec ClaimSpec, start uint64, guarded topology.CgroupID) Endpoint {
	if spec.Join != "" {
		e.Guests = append(f.otherGuests(&e, spec.Container), Guest{
			Container: spec.Container, Name: spec.Name, Pid: spec.Pid, PidStart: start,
			Cgroup: spec.Cgroup, Guarded: guarded, Claimed: time.Now(),
		})
		return e
	}
	e.Container, e.Name, e.Cgroup, e.Guarded = spec.Container, spec.Name, spec.Cgroup, guarded
	e.Pid, e.PidStart, e.Claimed = spec.Pid, start, time.Now()
	return e
}

// ownEndpoint finds the joined endpoint that the container's hosts file names.
// The container's own line is the last one with its host name; lines of
// --add-host stand before it and may name any address. The caller holds mu.
func (f *Fabric) ownEndpoint(n *network, spec ClaimSpec) *Endpoint {
	for _, line := range slices.Backward(spec.Hosts) {
		e := n.addresses[line.Addr]
		if e == nil || e.Joined.IsZero() || !slices.Contains(line.Names, spec.Hostname) {
			continue
		}
		if e.Container != "" && e.Container != spec.Container { // also if that has ended: Docker makes another for each start
			continue
		}
		if name := f.leasedTo(n, line.Addr); name != "" && name != spec.Name {
			continue
		}
		return e
	}
	return nil
}

// anothers says whether another container has claimed the endpoint, or has
// guests there. The caller holds mu.
func (f *Fabric) anothers(e *Endpoint, id topology.ContainerID) bool {
	return e.Container != "" && e.Container != id && f.alive(e)
}

// rival is the endpoint that a container may not have although its hosts file
// names it: it is the address of a container which is gone, and whose guests
// still use it. The caller holds mu.
func (f *Fabric) rival(n *network, spec ClaimSpec) *Endpoint {
	for _, line := range slices.Backward(spec.Hosts) {
		e := n.addresses[line.Addr]
		if e != nil && len(e.Guests) > 0 && slices.Contains(line.Names, spec.Hostname) && f.anothers(e, spec.Container) {
			return e
		}
	}
	return nil
}

// leasedTo is the container's name that came with the request for an address,
// empty where Docker sent none. The caller holds mu.
func (f *Fabric) leasedTo(n *network, a netip.Addr) string {
	for _, p := range f.pools {
		if lease := p.leases[a]; lease != nil && p.Network == n.ID {
			return lease.Name
		}
	}
	return ""
}

// Release notes that a container's process is gone. Its address stays held
// until Docker takes it back and no guest uses it.
func (f *Fabric) Release(ctx context.Context, id topology.ContainerID) error {
	f.mu.Lock()
	var claimed []topology.EndpointID
	for _, e := range f.containers[id] {
		claimed = append(claimed, e.ID)
	}
	f.mu.Unlock()
	var errs []error
	for _, e := range claimed {
		errs = append(errs, f.settle(ctx, e))
	}
	return errors.Join(errs...)
}
