package fabric

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/topology"
)

// joined finds the endpoint whose address a container shares. That of a
// container which is a guest itself is its host's. The caller holds mu.
func (f *Fabric) joined(n *network, spec ClaimSpec) (*Endpoint, error) {
	if e := f.addressOf(n, spec.Join); e != nil {
		return e, nil
	}
	return nil, &fault.Error{Op: "share the address of container", On: spec.Join.Short(), Err: fmt.Errorf("%w for it", ErrNoEndpoint),
		Fix: fmt.Sprintf("start that container, then container %s", spec.Name)}
}

// addressOf finds the endpoint that a container uses now, as its own or as a
// guest: an earlier one of its own may still be there for its guests. The caller
// holds mu.
func (f *Fabric) addressOf(n *network, id topology.ContainerID) *Endpoint {
	for _, e := range f.containers[id] {
		own := e.Container == id && f.ownerAlive(e)
		guest := func(g Guest) bool { return g.Container == id && f.guestAlive(g) }
		if e.Network == n.ID && (own || slices.ContainsFunc(e.Guests, guest)) {
			return e
		}
	}
	return nil
}

// otherGuests are the guests that live, less the container named. The list is a
// new one: copies of the endpoint share the old one. The caller holds mu, or
// passes a copy of its own.
func (f *Fabric) otherGuests(e *Endpoint, but topology.ContainerID) []Guest {
	var left []Guest
	for _, g := range e.Guests {
		if g.Container != but && f.guestAlive(g) {
			left = append(left, g)
		}
	}
	return left
}

// lent says whether only guests use the endpoint's addresses: its container has
// ended, and Docker has forgotten the endpoint. The caller holds mu.
func (f *Fabric) lent(e *Endpoint) bool {
	return e.Deleted && !e.Exposed && !f.ownerAlive(e) && f.alive(e)
}

// succeed makes a new endpoint the next one of the container whose guests still
// use the old one's addresses, so that nobody else can claim it. It returns false
// if others use them. The caller holds mu.
func (f *Fabric) succeed(e, old *Endpoint) bool {
	if !f.lent(old) || (e.Container != "" && e.Container != old.Container) {
		return false
	}
	e.Container, e.Name = old.Container, old.Name
	for _, g := range old.Guests {
		e.Guests = append(f.otherGuests(e, g.Container), g)
	}
	return true
}

// takeOver takes the addresses of a new endpoint from the ones it succeeds. One
// that has others left, in a network of both IP versions, keeps those, and its
// guests as well. The caller holds mu.
func (f *Fabric) takeOver(n *network, e *Endpoint) error {
	var errs []error
	for _, a := range e.Addresses() {
		old := n.addresses[a]
		if old == nil {
			continue
		}
		delete(n.addresses, a)
		f.unlinkLease(old, a)
		rest := *old
		switch a {
		case rest.IPv4:
			rest.IPv4 = netip.Addr{}
		case rest.IPv6:
			rest.IPv6 = netip.Addr{}
		}
		if len(rest.Addresses()) > 0 {
			errs = append(errs, f.replace(old, rest))
			continue
		}
		errs = append(errs, f.o.Endpoints.Delete(string(old.ID)))
		f.unindex(n, old)
	}
	return errors.Join(errs...)
}

// settle notes which processes of the endpoint's containers are gone. An
// endpoint that Docker has deleted goes with the last of them.
func (f *Fabric) settle(ctx context.Context, id topology.EndpointID) error {
	f.mu.Lock()
	e := f.endpoints[id]
	if e == nil {
		f.mu.Unlock()
		return nil
	}
	was := *e
	f.mu.Unlock()
	owned, guests := f.ownerAlive(&was), f.otherGuests(&was, "") // looking at processes takes long
	switch {
	case was.Deleted && !owned && len(guests) == 0:
		return f.removeEndpoint(ctx, id)
	case (owned || was.Pid == 0) && len(guests) == len(was.Guests):
		return nil
	}
	return f.update(id, func(e *Endpoint) {
		if !f.ownerAlive(e) {
			e.Pid, e.Guarded = 0, 0
		}
		e.Guests = f.otherGuests(e, "")
	})
}

// own enters an endpoint into the lists of its containers. The caller holds mu,
// or is alone.
func (f *Fabric) own(e *Endpoint) {
	for _, id := range e.containers() {
		f.containers[id] = append(f.containers[id], e)
	}
}

// disown is the reverse of own.
func (f *Fabric) disown(e *Endpoint) {
	for _, id := range e.containers() {
		left := slices.DeleteFunc(f.containers[id], func(o *Endpoint) bool { return o == e })
		if len(left) == 0 {
			delete(f.containers, id)
		} else {
			f.containers[id] = left
		}
	}
}

// alive says whether a process lives that has claimed the endpoint's addresses
// or shares them. The caller holds mu, or passes a copy of its own.
func (f *Fabric) alive(e *Endpoint) bool {
	return f.ownerAlive(e) || slices.ContainsFunc(e.Guests, f.guestAlive)
}

// ownerAlive leaves the guests out.
func (f *Fabric) ownerAlive(e *Endpoint) bool { return f.processAlive(e.Pid, e.PidStart) }

func (f *Fabric) guestAlive(g Guest) bool { return f.processAlive(g.Pid, g.PidStart) }

func (f *Fabric) processAlive(pid int, since uint64) bool {
	if pid == 0 {
		return false
	}
	start, ok := f.o.Processes.StartTime(pid)
	return ok && start == since
}
