package main

import (
	"context"
	"errors"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/addrguard"
	"github.com/particle-net/particle/fabric"
	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/internal/holder"
	"github.com/particle-net/particle/internal/hostapi"
	"github.com/particle-net/particle/internal/hostpath"
	"github.com/particle-net/particle/internal/hostview"
	"github.com/particle-net/particle/internal/process"
	"github.com/particle-net/particle/internal/runtimeapi"
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
	s.Strangers, s.Denied = totals.StrangersDenied, denials(totals)
	s.Changed = runtimeapi.Rewritings{Binds: totals.BindsRewritten, Steered: totals.Steered, Pings: totals.PingsRewritten}
	return s
}

// Denials implements hostapi.Guard.
func (g guard) Denials(id topology.CgroupID) (runtimeapi.Denials, error) {
	c, err := g.Counters(id)
	return denials(c), err
}

func denials(c addrguard.Counters) runtimeapi.Denials {
	return runtimeapi.Denials{
		Binds: c.BindsDenied, Connects: c.ConnectsDenied, Sources: c.SourcesDenied, Sockets: c.SocketsDenied,
		Unix: c.UnixDenied, Packets: c.EgressDropped + c.IngressDropped,
	}
}

// unguarded is the guard of a host without eBPF: that by system calls, which
// particle-runtime begins, or none.
type unguarded struct {
	fabric.Unguarded
	mode fabric.GuardMode
	why  string // it is not eBPF, if that was to be found out
}

// Status implements hostapi.Guard.
func (u unguarded) Status() runtimeapi.GuardStatus {
	return runtimeapi.GuardStatus{Mode: string(u.mode), Why: u.why}
}

// Denials implements hostapi.Guard.
func (unguarded) Denials(topology.CgroupID) (runtimeapi.Denials, error) {
	return runtimeapi.Denials{}, nil
}

// held asks the process that answers system calls.
func held() (map[topology.ContainerID]holder.Denials, error) {
	return holder.Count(onHost(hostpath.HolderDir))
}

// keeper is what the fabric and the status need of a guard.
type keeper interface {
	fabric.Guard
	hostapi.Guard
}

// openGuard loads the guard, or takes it out of the kernel if another is wanted.
func (p *plugin) openGuard(ctx context.Context, wanted string, of fabric.Options) error {
	o := addrguard.Options{Pins: onHost(hostpath.GuardDir), Cgroups: cgroupRoot, Parents: addrguard.Parents(), Spaces: p.plane}
	if mode := fabric.GuardMode(wanted); mode == fabric.GuardSeccomp || mode == fabric.GuardOff {
		p.guard = unguarded{mode: mode}
		return addrguard.Cleanup(ctx, o)
	}
	// What has been in force since the boot is in force still, and an error now is no
	// reason for another guard.
	free := wanted == guardAuto && !addrguard.InForce(o.Pins)
	if free && supervised(of) {
		p.guard = unguarded{mode: fabric.GuardSeccomp, why: "containers that run were started so"}
		return nil
	}
	g, err := openBPF(ctx, o, free)
	if err == nil {
		p.closers = append(p.closers, g.Close)
		p.guard = guard{g}
		return exempt(ctx, g)
	}
	if !free {
		return err
	}
	// Containers are refused where the other guard is impossible too.
	p.log.WithError(err).Warn("eBPF cannot be attached; the address guard works by system calls")
	p.guard = unguarded{mode: fabric.GuardSeccomp, why: hostview.Text(err.Error())}
	return nil
}

// supervised says whether containers run under the guard by system calls because it was
// the host's, and not because their network asks for it. Under another they could not
// bind any more.
func supervised(of fabric.Options) bool {
	containers, err := held()
	networks, errN := of.Networks.All()
	endpoints, errE := of.Endpoints.All()
	if errors.Join(err, errN, errE) != nil {
		return false // whatever it is, others will tell
	}
	for _, e := range endpoints {
		network, known := networks[string(e.Network)]
		if _, ok := containers[e.Container]; ok && known && network.Guard == "" {
			return true
		}
	}
	return false
}

// openBPF is for a guard that was asked for by name content with programs that can be
// loaded: whoever is in the way of attaching them may go before a container comes.
func openBPF(ctx context.Context, o addrguard.Options, try bool) (*addrguard.Guard, error) {
	if err := mountCgroups(); err != nil {
		return nil, err
	}
	g, err := addrguard.Open(ctx, o)
	if err != nil || !try {
		return g, err
	}
	if err := g.TryAttach(); err != nil {
		return nil, errors.Join(err, g.Close())
	}
	return g, nil
}

// mountCgroups mounts the version 2 hierarchy for particle-runtime where the host has
// version 1 alone, so that the guard can know containers by it there too.
func mountCgroups() error {
	table, err := os.ReadFile("/proc/1/mountinfo")
	if err != nil {
		return err
	}
	if strings.Contains(string(table), " - cgroup2 ") { // the host's, or ours of an earlier start
		return nil
	}
	dir := onHost(hostpath.CgroupDir)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("particle", dir, "cgroup2", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return &fault.Error{Op: "mount cgroup v2", On: dir, Err: err, Fix: "mount it on the host at /sys/fs/cgroup/unified"}
	}
	return nil
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
