package addrguard

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/internal/fault"
)

// part is one object: programs that are attached at one kind of place.
type part struct {
	*ebpf.Collection
	spec *ebpf.CollectionSpec
}

func (p *part) close() {
	if p != nil {
		p.Collection.Close()
	}
}

// attachType is where a program belongs.
func (p *part) attachType(program string) ebpf.AttachType { return p.spec.Programs[program].AttachType }

// loadPart puts one object into the kernel. Maps it shares with others are those
// given; the rest is new, or pinned, if the guard has a directory for it.
func (g *Guard) loadPart(load func() (*ebpf.CollectionSpec, error), shared map[string]*ebpf.Map) (*part, error) {
	spec, err := load()
	if err != nil {
		return nil, err
	}
	if err := g.setConstants(spec); err != nil {
		return nil, err
	}
	opts := ebpf.CollectionOptions{Maps: ebpf.MapOptions{PinPath: g.dir}, MapReplacements: map[string]*ebpf.Map{}}
	for name, want := range spec.Maps {
		if g.dir == "" {
			want.Pinning = ebpf.PinNone
		}
		if m, ok := shared[name]; ok && want.Pinning == ebpf.PinByName { // constants are each object's own
			opts.MapReplacements[name] = m
		}
	}
	made, err := ebpf.NewCollectionWithOptions(spec, opts)
	if err != nil {
		return nil, err
	}
	return &part{made, spec}, nil
}

// setConstants gives the programs what they cannot know when they are compiled.
func (g *Guard) setConstants(spec *ebpf.CollectionSpec) error {
	constants := map[string]any{
		guardVarLoopback6:   words(loopback6.Addr()),
		guardVarPacketNetns: g.packetNetns(),
		guardVarSocketFlags: g.socketFlags(),
	}
	for name, value := range constants {
		v, ok := spec.Variables[name]
		if !ok {
			continue // this object does without
		}
		if err := v.Set(value); err != nil {
			return fmt.Errorf("set %s: %w", name, err)
		}
	}
	return nil
}

// socketFlags reports whether programs can change flags of TCP sockets. There is nothing
// to try it with but a socket.
func (g *Guard) socketFlags() bool {
	version, err := features.LinuxVersionCode()
	return err == nil && version >= 6<<16|12<<8 && !g.opts.before615
}

// packetNetns reports whether programs on packets tell the namespaces by themselves.
func (g *Guard) packetNetns() bool { return !g.opts.before615 && asksNetns(ebpf.CGroupSKB) }

// asksNetns reports whether programs of a kind may ask for the namespace. Those on
// packets may since Linux 6.15.
func asksNetns(kind ebpf.ProgramType) bool {
	return features.HaveProgramHelper(kind, asm.FnGetNetnsCookie) == nil
}

// load puts everything into the kernel. Maps that are pinned are used. What only
// newer kernels have is left out and told by Lacks.
func (g *Guard) load() error {
	var err error
	if g.core, err = g.loadPart(loadGuard, nil); err != nil {
		return coreError(g.dir, err)
	}
	g.networks, g.containers = g.core.Maps[guardMapNetworks], g.core.Maps[guardMapContainers]
	g.steers, g.totals = g.core.Maps[guardMapSteers], g.core.Maps[guardMapTotals]
	g.senders = g.core.Maps[guardMapSenders]
	if g.device, err = g.loadDevice(); err != nil {
		g.lack(deviceDuty, err, "use Linux 6.6 or later")
	}
	if g.unix, err = g.loadPart(loadUnix, g.core.Maps); err != nil {
		g.lack("keep abstract unix sockets apart", err, "use Linux 6.7 or later")
	}
	return nil
}

// deviceDuty is what nobody does without the programs of devices. The check of
// sources, which they do as well, is then the anchors' (runs).
const deviceDuty = "set right the source of echo requests and steer IPv6 to sockets for both families"

func (g *Guard) loadDevice() (*part, error) {
	if g.opts.before66 {
		return nil, ebpf.ErrNotSupported
	}
	p, err := g.loadPart(loadDevice, g.core.Maps)
	if err != nil {
		return nil, err
	}
	if err := p.attachable(); err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

func (g *Guard) lack(what string, err error, fix string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.lacks = append(g.lacks, &fault.Error{Op: what, Err: err, Fix: fix})
}

// Lacks tells, one error each, what the guard does without on this kernel. What is
// needed to keep addresses apart is not among it: without that, Open fails.
func (g *Guard) Lacks() []error {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return append([]error(nil), g.lacks...)
}

// coreError explains why the programs that nothing can replace did not load.
func coreError(dir string, err error) error {
	e := &fault.Error{Op: "load address guard", Err: err, Fix: "run `particle doctor`, which names what this kernel lacks"}
	switch {
	case errors.Is(err, ebpf.ErrMapIncompatible):
		e.On = dir
		e.Fix = "another version left its maps; stop the containers of particle networks, then run `particle uninstall` and install again"
	case errors.Is(err, unix.EPERM):
		e.Fix = "grant CAP_SYS_ADMIN, or CAP_BPF with CAP_NET_ADMIN and CAP_PERFMON, and allow bpf(2) where a filter of system calls denies it"
	case errors.Is(err, ebpf.ErrNotSupported):
		e.Fix = "use Linux 6.1 or later with CONFIG_CGROUP_BPF and CONFIG_DEBUG_INFO_BTF"
	}
	return e
}
