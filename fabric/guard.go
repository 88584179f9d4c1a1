package fabric

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/topology"
)

// Unguarded stands in for a Guard where the administrator has switched it off:
// the containers of a network then share its addresses as processes of one
// machine do.
type Unguarded struct{}

// Protect does nothing.
func (Unguarded) Protect(context.Context, topology.NetworkID, bool) error { return nil }

// ProtectBranch does nothing.
func (Unguarded) ProtectBranch(context.Context, topology.NetworkID, topology.EndpointID) error {
	return nil
}

// Unprotect does nothing.
func (Unguarded) Unprotect(context.Context, topology.NetworkID) error { return nil }

// Admit does nothing.
func (Unguarded) Admit(context.Context, string, topology.Identity) (topology.CgroupID, error) {
	return 0, nil
}

// Expel does nothing.
func (Unguarded) Expel(topology.CgroupID) error { return nil }

// Admitted lists nothing.
func (Unguarded) Admitted() (map[topology.CgroupID]topology.Identity, error) { return nil, nil }

// GuardMode is what keeps the containers of a network to their own addresses.
type GuardMode string

const (
	GuardBPF     GuardMode = "bpf"     // Options.Guard
	GuardSeccomp GuardMode = "seccomp" // system calls are answered by a process of the host, begun by particle-runtime
	GuardOff     GuardMode = "off"     // nothing
)

// guardOf is the network's.
func (f *Fabric) guardOf(n Network) GuardMode {
	if n.Guard != "" {
		return n.Guard
	}
	return f.o.GuardMode
}

// kernelGuard is Options.Guard for the networks that it guards.
func (f *Fabric) kernelGuard(n Network) Guard {
	if f.guardOf(n) == GuardSeccomp {
		return Unguarded{}
	}
	return f.o.Guard
}

// checkGuard refuses a container that would share a network's namespace without
// the guard that the network must have.
func (f *Fabric) checkGuard(n Network, label string, own bool) error {
	switch mode := f.guardOf(n); {
	case own:
	case mode == GuardSeccomp && f.o.NoSeccomp != nil:
		return &fault.Error{Op: "guard addresses on network", On: label, Err: f.o.NoSeccomp}
	case n.Guard == GuardBPF && f.o.GuardMode != GuardBPF:
		return fault.New("guard addresses on network", label, fmt.Sprintf("it was created with particle.guard=bpf, and this host has the guard %s", f.o.GuardMode),
			"look at `particle status` for the reason, or create the network without that option")
	}
	return nil
}

// Supervised is what a container must be held to whose guard is GuardSeccomp; ok is
// false for others. It has claimed its address.
func (f *Fabric) Supervised(id topology.ContainerID) (i topology.Identity, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, e := range f.containers[id] {
		n := f.networks[e.Network]
		if n != nil && e.Link == "" && f.guardOf(n.Network) == GuardSeccomp && f.addressOf(n, id) == e {
			return e.identity(), true
		}
	}
	return i, false
}

// takeSlot finds a slot that no endpoint of the network has, the one given back
// longest ago first: a socket that lingers in the namespace must not meet the
// next container. The caller holds mu, or is alone.
func (n *network) takeSlot() (topology.Slot, error) {
	for range topology.MaxSlots {
		n.lastSlot++
		if n.lastSlot == 0 {
			n.lastSlot = 1
		}
		if !n.slots[n.lastSlot] {
			return n.lastSlot, nil
		}
	}
	return 0, fault.New("find a place on network", n.label(), fmt.Sprintf("all %d of this host are taken", topology.MaxSlots),
		"use another network for further containers")
}

// claim is one container's use of an endpoint.
type claim struct {
	container topology.ContainerID
	name      string
	endpoint  topology.EndpointID
	pid       int
	start     uint64
	cgroup    string
	guarded   topology.CgroupID
	identity  topology.Identity
}

// claims lists what the endpoint's own container and its guests have claimed.
func (e *Endpoint) claims() []claim {
	var all []claim
	if e.Pid != 0 && e.Link == "" { // the namespace of its own is none of the guard's
		all = append(all, claim{e.Container, e.Name, e.ID, e.Pid, e.PidStart, e.Cgroup, e.Guarded, e.identity()})
	}
	for _, g := range e.Guests {
		all = append(all, claim{g.Container, g.Name, e.ID, g.Pid, g.PidStart, g.Cgroup, g.Guarded, e.identity()})
	}
	return all
}

// identity is what the guard holds the endpoint's containers to.
func (e *Endpoint) identity() topology.Identity {
	return topology.Identity{Network: e.Network, IPv4: e.IPv4, IPv6: e.IPv6, Slot: e.Slot}
}

// guarded lists the cgroups that the guard admits on behalf of the endpoint.
func (e *Endpoint) guarded() []topology.CgroupID {
	all := []topology.CgroupID{e.Guarded}
	for _, g := range e.Guests {
		all = append(all, g.Guarded)
	}
	return all
}

// expelMissing expels the cgroups of was that now has not. One that fails,
// Repair expels. It may be called with mu held: the kernel forgets an entry
// without waiting for anything.
func (f *Fabric) expelMissing(was, now Endpoint) {
	left := now.guarded()
	for _, id := range was.guarded() {
		if id == 0 || slices.Contains(left, id) {
			continue
		}
		if err := f.o.Guard.Expel(id); err != nil {
			f.o.Log.WithError(err).WithField("ep", was.ID.Short()).Warn("address guard still admits a container that ended")
		}
	}
}

// sweepGuard makes the guard admit the cgroups of live containers, and no
// others.
func (f *Fabric) sweepGuard(ctx context.Context) error {
	f.admission.Lock() // no claim stands between its admission and its record
	defer f.admission.Unlock()
	admitted, err := f.o.Guard.Admitted()
	if err != nil {
		return err
	}
	f.mu.Lock()
	var claims []claim
	for _, e := range f.endpoints {
		if n := f.networks[e.Network]; n != nil && f.guardOf(n.Network) == GuardSeccomp {
			continue
		}
		claims = append(claims, e.claims()...)
	}
	f.mu.Unlock()
	var errs []error
	for _, c := range claims {
		have, known := admitted[c.guarded]
		delete(admitted, c.guarded)
		if !(known && have == c.identity) && f.processAlive(c.pid, c.start) {
			errs = append(errs, f.readmit(ctx, c))
		}
	}
	for id := range admitted {
		errs = append(errs, f.o.Guard.Expel(id))
		f.countRepair()
	}
	return errors.Join(errs...)
}

// readmit mends the guard for a container that runs.
func (f *Fabric) readmit(ctx context.Context, c claim) error {
	id, err := f.o.Guard.Admit(ctx, c.cgroup, c.identity)
	if err != nil || id == 0 { // the latter with the guard switched off
		return err
	}
	f.countRepair()
	f.o.Log.WithField("container", c.name).Warn("address guard admits a container that it had lost")
	return f.update(c.endpoint, func(e *Endpoint) {
		if e.Container == c.container {
			e.Guarded = id
		}
		guests := append([]Guest(nil), e.Guests...) // copies of the endpoint share the list
		for i := range guests {
			if guests[i].Container == c.container {
				guests[i].Guarded = id
			}
		}
		e.Guests = guests
	})
}
