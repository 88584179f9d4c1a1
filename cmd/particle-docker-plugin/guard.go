package main

import (
	"context"
	"errors"

	"github.com/particle-net/particle/addrguard"
	"github.com/particle-net/particle/fabric"
	"github.com/particle-net/particle/internal/hostapi"
	"github.com/particle-net/particle/internal/hostpath"
	"github.com/particle-net/particle/internal/process"
	"github.com/particle-net/particle/internal/runtimeapi"
	"github.com/particle-net/particle/overlay"
	"github.com/particle-net/particle/topology"
)

// cgroupRoot is where the plugin sees the host's cgroup v2 hierarchy. Docker
// shows a plugin a read-only part of it, so the guard mounts it anew, for this
// mount namespace alone.
const cgroupRoot = "/cgroup"

// guard tells addrguard's identities from the fabric's: the fabric knows
// containers alone, no helpers.
type guard struct{ *addrguard.Guard }

// Admit implements fabric.Guard.
func (g guard) Admit(ctx context.Context, cgroup string, id topology.Identity) (topology.CgroupID, error) {
	return g.Guard.Admit(ctx, cgroup, addrguard.Identity{Identity: id})
}

// Admitted implements fabric.Guard.
func (g guard) Admitted() (map[topology.CgroupID]topology.Identity, error) {
	all, err := g.Guard.Admitted()
	containers := make(map[topology.CgroupID]topology.Identity, len(all))
	for cgroup, id := range all {
		if !id.Exempt {
			containers[cgroup] = id.Identity
		}
	}
	return containers, err
}

// Status implements hostapi.Guard.
func (g guard) Status() runtimeapi.GuardStatus {
	s := runtimeapi.GuardStatus{Mode: "bpf"}
	for _, lack := range g.Lacks() {
		s.Lacks = append(s.Lacks, lack.Error())
	}
	totals, err := g.Totals()
	if err != nil {
		s.Problem = err.Error()
	}
	s.Strangers = totals.StrangersDenied
	return s
}

// Denials implements hostapi.Guard.
func (g guard) Denials(id topology.CgroupID) (runtimeapi.Denials, error) {
	c, err := g.Counters(id)
	return runtimeapi.Denials{
		Binds: c.BindsDenied, Connects: c.ConnectsDenied, Sources: c.SourcesDenied, Sockets: c.SocketsDenied,
		Unix: c.UnixDenied, Packets: c.EgressDropped + c.IngressDropped,
	}, err
}

// unguarded is the guard switched off.
type unguarded struct{ fabric.Unguarded }

// Status implements hostapi.Guard.
func (unguarded) Status() runtimeapi.GuardStatus { return runtimeapi.GuardStatus{Mode: "off"} }

// Denials implements hostapi.Guard.
func (unguarded) Denials(topology.CgroupID) (runtimeapi.Denials, error) {
	return runtimeapi.Denials{}, nil
}

// keeper is what the fabric and the status need of a guard.
type keeper interface {
	fabric.Guard
	hostapi.Guard
}

// openGuard loads the guard, or takes it out of the kernel if it is switched off.
func openGuard(ctx context.Context, wanted bool, plane *overlay.Host) (keeper, func() error, error) {
	o := addrguard.Options{Pins: onHost(hostpath.GuardDir), Cgroups: cgroupRoot, Spaces: plane}
	if !wanted {
		return unguarded{}, func() error { return nil }, addrguard.Cleanup(ctx, o)
	}
	g, err := addrguard.Open(ctx, o)
	if err != nil {
		return nil, nil, err
	}
	if err := exempt(ctx, g); err != nil {
		return nil, nil, errors.Join(err, g.Close())
	}
	return guard{g}, g.Close, nil
}

// exempt lets the plugin itself open sockets in tenant namespaces, for name
// servers, where its cgroup lies below one that holds containers.
func exempt(ctx context.Context, g *addrguard.Guard) error {
	own, err := process.Unified("/proc/self/cgroup")
	if err != nil || own == "" || own == "/" {
		return err
	}
	_, err = g.Admit(ctx, own, addrguard.Identity{Exempt: true})
	return err
}
