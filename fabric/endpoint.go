package fabric

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/topology"
)

// Causes that callers may ask for.
var (
	ErrNoEndpoint   = errors.New("this network has no such endpoint")
	ErrAddressTaken = errors.New("the address is taken")
)

// EndpointSpec is an attachment as Docker asks for it, its addresses chosen.
type EndpointSpec struct {
	ID      topology.EndpointID
	Network topology.NetworkID
	IPv4    netip.Addr // invalid if none
	IPv6    netip.Addr // invalid if none
}

// CreateEndpoint records that an endpoint holds its addresses.
func (f *Fabric) CreateEndpoint(_ context.Context, spec EndpointSpec) error {
	fail := func(err error, fix string) error {
		return &fault.Error{Op: "create endpoint on network", On: spec.Network.Short(), Err: err, Fix: fix}
	}
	if err := f.supersede(spec); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	n := f.networks[spec.Network]
	if n == nil || n.Doomed {
		return fail(ErrNoNetwork, "remove the network with `docker network rm` and create it anew")
	}
	e := &Endpoint{ID: spec.ID, Network: spec.Network, IPv4: spec.IPv4, IPv6: spec.IPv6, Created: time.Now()}
	if len(e.Addresses()) == 0 {
		return fail(errors.New("it was given no address"), "create the network with a subnet")
	}
	if known := f.endpoints[spec.ID]; known != nil {
		if known.Network == e.Network && known.IPv4 == e.IPv4 && known.IPv6 == e.IPv6 {
			return nil
		}
		return fail(fmt.Errorf("endpoint %s exists with other addresses", spec.ID.Short()), "")
	}
	for _, a := range e.Addresses() {
		if _, inside := n.subnetOf(a); !inside {
			return fail(fmt.Errorf("address %s is in none of its subnets", a), "")
		}
		if holder := n.addresses[a]; holder != nil && !f.succeed(e, holder) {
			return fail(fmt.Errorf("%w: %s is held by endpoint %s (%s)", ErrAddressTaken, a, holder.ID.Short(), holder.holder()),
				"remove that container or choose another --ip")
		}
	}
	slot, err := n.takeSlot()
	if err != nil {
		return err
	}
	e.Slot = slot
	if err := f.o.Endpoints.Put(string(e.ID), *e); err != nil {
		return err
	}
	if err := f.takeOver(n, e); err != nil {
		return err
	}
	f.index(n, e)
	for _, a := range e.Addresses() {
		f.linkLease(n, a, e.ID)
	}
	return nil
}

// supersede removes the endpoints without a process that hold the new one's
// addresses. Docker gives an address out again only when it has forgotten its
// holder; that we have not means that its delete call did not reach us (after a
// crash Docker leaves it out, if nothing has made it load our driver yet).
func (f *Fabric) supersede(spec EndpointSpec) error {
	f.mu.Lock()
	var stale []Endpoint
	if n := f.networks[spec.Network]; n != nil {
		for _, a := range []netip.Addr{spec.IPv4, spec.IPv6} {
			if holder := n.addresses[a]; holder != nil && holder.ID != spec.ID && !f.alive(holder) {
				stale = append(stale, *holder)
			}
		}
	}
	f.mu.Unlock()
	for _, e := range stale {
		if err := f.removeEndpoint(e); err != nil {
			return err
		}
	}
	return nil
}

// holder names who has the endpoint, for people: its container, or a guest that
// has outlived it.
func (e *Endpoint) holder() string {
	switch {
	case e.Name == "":
		return e.State()
	case e.Pid == 0 && len(e.Guests) > 0:
		return "container " + e.Guests[0].Name + " as a guest of " + e.Name
	}
	return "container " + e.Name
}

// Join makes the endpoint's sandbox key hold the tenant namespace. Docker 28
// and later have bound the container's own namespace there by now, so anything
// but the tenant's means that the container was not started by our runtime.
// Docker up to 27 binds it with a hook that our runtime takes out (a re-executed
// dockerd per container, which also switches IPv6 off in the namespace), so we
// bind it in its place: Docker looks for it after a restart with live-restore.
func (f *Fabric) Join(_ context.Context, network topology.NetworkID, id topology.EndpointID, key string) error {
	fail := func(err error, fix string) error {
		return &fault.Error{Op: "join network", On: network.Short(), Err: err, Fix: fix}
	}
	f.mu.Lock()
	e := f.endpoints[id]
	if e == nil || e.Network != network {
		f.mu.Unlock()
		return fail(ErrNoEndpoint, "start the container again")
	}
	f.mu.Unlock()
	state, err := f.o.Sandboxes.State(network, key)
	if err != nil {
		return fail(err, "")
	}
	if state == SandboxForeign {
		return fail(errors.New("the container runs in a network namespace of its own: it was started by another runtime, or runs already"),
			"start it on this network alone, without --runtime or with --runtime particle")
	}
	err = f.update(id, func(e *Endpoint) {
		e.SandboxKey, e.Joined = key, time.Now()
		e.Exposed = e.Exposed || state == SandboxAbsent
	})
	if err != nil {
		return err
	}
	if state == SandboxAbsent {
		return f.o.Sandboxes.Expose(network, key)
	}
	return nil
}

// update changes an endpoint: its record first, then what others see.
func (f *Fabric) update(id topology.EndpointID, change func(*Endpoint)) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	e := f.endpoints[id]
	if e == nil {
		return &fault.Error{Op: "change endpoint", On: id.Short(), Err: ErrNoEndpoint, Fix: "start the container again"}
	}
	changed := *e
	change(&changed)
	return f.replace(e, changed)
}

// replace writes a changed record and puts it in the place of the old one. The
// caller holds mu.
func (f *Fabric) replace(e *Endpoint, changed Endpoint) error {
	if err := f.o.Endpoints.Put(string(changed.ID), changed); err != nil {
		return err
	}
	f.disown(e)
	f.expelMissing(*e, changed)
	*e = changed
	f.own(e)
	return nil
}

// Leave undoes Join; an endpoint that is not there is success.
func (f *Fabric) Leave(_ context.Context, id topology.EndpointID) error {
	f.mu.Lock()
	e := f.endpoints[id]
	if e == nil || !e.Exposed || f.ownerAlive(e) {
		f.mu.Unlock()
		return nil
	}
	key := e.SandboxKey
	f.mu.Unlock()
	if err := f.o.Sandboxes.Conceal(key); err != nil {
		return err
	}
	return f.update(id, func(e *Endpoint) { e.Exposed = false })
}

// DeleteEndpoint forgets an endpoint; one that is not there is success. Docker
// up to 27 deletes the endpoints of live containers when it cannot restore
// their sandbox, and every version those of containers whose guests live on. So
// an endpoint keeps its addresses until the last process that uses them is gone.
func (f *Fabric) DeleteEndpoint(_ context.Context, id topology.EndpointID) error {
	f.mu.Lock()
	e := f.endpoints[id]
	if e == nil {
		f.mu.Unlock()
		return nil
	}
	gone := *e
	alive := f.alive(e)
	f.mu.Unlock()
	if alive {
		return f.update(id, func(e *Endpoint) {
			e.Deleted = true
			if !f.ownerAlive(e) {
				e.Pid, e.Guarded = 0, 0
			}
		})
	}
	return f.removeEndpoint(gone)
}

// removeEndpoint takes away all that an endpoint left behind.
func (f *Fabric) removeEndpoint(e Endpoint) error {
	if e.Exposed {
		if err := f.o.Sandboxes.Conceal(e.SandboxKey); err != nil {
			return err
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	current := f.endpoints[e.ID]
	if current == nil {
		return nil
	}
	return f.dropEndpoint(f.networks[e.Network], current)
}

// dropEndpoint deletes the record and frees the leases of an endpoint that
// Docker has released already. The caller holds mu.
func (f *Fabric) dropEndpoint(n *network, e *Endpoint) error {
	if err := f.o.Endpoints.Delete(string(e.ID)); err != nil {
		return err
	}
	f.unindex(n, e)
	f.expelMissing(*e, Endpoint{ID: e.ID})
	return f.unlinkLeases(e)
}
