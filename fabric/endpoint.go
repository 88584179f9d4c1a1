package fabric

import (
	"context"
	"errors"
	"fmt"
	"net"
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
	IPv4    netip.Addr       // invalid if none
	IPv6    netip.Addr       // invalid if none
	MAC     net.HardwareAddr // nil unless asked for
}

// CreateEndpoint records that an endpoint holds its addresses.
func (f *Fabric) CreateEndpoint(ctx context.Context, spec EndpointSpec) error {
	fail := func(err error, fix string) error {
		return &fault.Error{Op: "create endpoint on network", On: spec.Network.Short(), Err: err, Fix: fix}
	}
	if err := f.supersede(ctx, spec); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	n := f.networks[spec.Network]
	if n == nil || n.Doomed {
		return fail(ErrNoNetwork, "remove the network with `docker network rm` and create it anew")
	}
	e := &Endpoint{ID: spec.ID, Network: spec.Network, IPv4: spec.IPv4, IPv6: spec.IPv6, MAC: spec.MAC, Created: time.Now()}
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
	n.half = nil
	for _, a := range e.Addresses() {
		f.linkLease(n, a, e.ID)
	}
	return nil
}

// supersede removes the endpoints without a process that hold the new one's
// addresses. Docker gives an address out again only when it has forgotten its
// holder; that we have not means that its delete call did not reach us (after a
// crash Docker leaves it out, if nothing has made it load our driver yet).
func (f *Fabric) supersede(ctx context.Context, spec EndpointSpec) error {
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
		if err := f.removeEndpoint(ctx, e.ID); err != nil {
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

// Join makes the endpoint's sandbox key hold the tenant namespace, or connects
// the namespace that it holds. Docker 28 and later have bound the container's
// there by now, and it is the tenant's if our runtime has put the container into
// it. Docker up to 27 binds it with a hook that our runtime takes out (a re-executed
// dockerd per container, which also switches IPv6 off in the namespace), so we
// bind it in its place: Docker looks for it after a restart with live-restore. If
// the container is to have a namespace of its own, the hook binds that over ours.
func (f *Fabric) Join(ctx context.Context, network topology.NetworkID, id topology.EndpointID, key string) error {
	fail := func(err error, fix string) error {
		return &fault.Error{Op: "join network", On: network.Short(), Err: err, Fix: fix}
	}
	f.mu.Lock()
	e, n := f.endpoints[id], f.networks[network]
	if e == nil || n == nil || e.Network != network {
		f.mu.Unlock()
		return fail(ErrNoEndpoint, "start the container again")
	}
	f.mu.Unlock()
	state, err := f.o.Sandboxes.State(network, key)
	if err != nil {
		return fail(err, "")
	}
	err = f.update(id, func(e *Endpoint) {
		e.SandboxKey, e.Joined = key, time.Now()
		e.Exposed = e.Exposed || state == SandboxAbsent
	})
	if err != nil {
		return err
	}
	switch state {
	case SandboxAbsent:
		return f.o.Sandboxes.Expose(network, key)
	case SandboxForeign:
		return f.joinOwn(ctx, n, id, key)
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
// A branch goes at once, and the addresses with it.
func (f *Fabric) DeleteEndpoint(ctx context.Context, id topology.EndpointID) error {
	f.mu.Lock()
	e := f.endpoints[id]
	if e == nil {
		f.mu.Unlock()
		return nil
	}
	gone := *e
	alive := f.alive(e)
	f.mu.Unlock()
	if alive && gone.Link == "" {
		return f.update(id, func(e *Endpoint) {
			e.Deleted = true
			if !f.ownerAlive(e) {
				e.Pid, e.Guarded = 0, 0
			}
		})
	}
	return f.removeEndpoint(ctx, id)
}

// removeEndpoint takes away all that an endpoint left behind, as its record has that by
// now: it may have got a branch since the caller looked, or be about to.
func (f *Fabric) removeEndpoint(ctx context.Context, id topology.EndpointID) error {
	defer f.beginRemoval(id)()
	if err := f.detach(ctx, f.copy(id)); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	e := f.endpoints[id]
	if e == nil {
		return nil
	}
	return f.dropEndpoint(f.networks[e.Network], e)
}

// beginRemoval has a branch go that is made until the removal is through, when end is
// called: without mu, and after the record is gone.
func (f *Fabric) beginRemoval(id topology.EndpointID) (end func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.removing[id]++
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.removing[id]--; f.removing[id] == 0 {
			delete(f.removing, id)
		}
	}
}

// detach undoes in the kernel what Join and Claim did for an endpoint.
func (f *Fabric) detach(ctx context.Context, e Endpoint) error {
	if e.Link != "" {
		if err := f.disconnect(ctx, e); err != nil {
			return err
		}
	}
	if e.Exposed {
		return f.o.Sandboxes.Conceal(e.SandboxKey)
	}
	return nil
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
