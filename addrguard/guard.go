package addrguard

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"

	"github.com/cilium/ebpf"

	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/topology"
)

// Options say where things are on this host.
type Options struct {
	// Pins is a directory of a BPF file system; Open mounts one there if it is
	// none. What is pinned lives as long as the mount does: it must be one that
	// outlives this process.
	Pins string
	// Cgroups is the root of the cgroup v2 hierarchy; Open mounts it there if it
	// is not, which works beside version 1.
	Cgroups string
	// Parents are cgroups below which containers' are expected, for TryAttach.
	Parents []string
	Spaces  Spaces

	before615, before66 bool // act as on older kernels, for tests
}

// Spaces finds tenant namespaces. Within runs fn on a thread inside one.
type Spaces interface {
	Within(id topology.NetworkID, fn func() error) error
}

// layout names the directory of the pins. It changes with the layout of the maps,
// which outlive the programs.
const layout = "layout-1"

// Guard is the address guard of one host.
type Guard struct {
	opts Options
	dir  string // of the pins

	core                                 *part // hooks of cgroups
	unix                                 *part // hooks of cgroups for unix sockets; nil if the kernel lacks what it takes
	device                               *part // of devices; likewise
	networks, containers, steers, totals *ebpf.Map
	senders                              *ebpf.Map

	// branches are the links equipped by this process: ifindexes by name, by the
	// namespace's cookie. The lock of the pins guards it.
	branches map[uint64]map[string]int

	// only4 are the namespaces, by their cookies, to which no IPv6 comes from elsewhere,
	// as far as this process was told. The lock of the pins guards it.
	only4 map[uint64]bool

	steering steering // its lock ranks after that of the pins

	// mu guards what follows; it ranks after the lock of the pins.
	mu      sync.RWMutex
	anchors map[topology.CgroupID]place   // programs attached
	leaving map[topology.CgroupID]bool    // anchors of those that were expelled
	cookies map[topology.NetworkID]uint64 // of protected namespaces
	lacks   []error
}

// Open loads the programs. What an earlier process pinned is taken over: maps stay
// as they are, and the programs of this version replace those attached, one by
// one, without a moment in which none is.
//
// Causes are told by Probe.
func Open(ctx context.Context, opts Options) (*Guard, error) {
	g := &Guard{opts: opts, dir: filepath.Join(opts.Pins, layout),
		branches: map[uint64]map[string]int{}, only4: map[uint64]bool{}, steering: steering{holders: map[guardSteerKey]map[topology.CgroupID]bool{}}, anchors: map[topology.CgroupID]place{}, leaving: map[topology.CgroupID]bool{}, cookies: map[topology.NetworkID]uint64{}}
	if err := g.open(ctx); err != nil {
		return nil, errors.Join(openError(opts, err), g.Close())
	}
	return g, nil
}

func openError(opts Options, err error) error {
	var known *fault.Error
	if errors.As(err, &known) {
		return err
	}
	return &fault.Error{Op: "open address guard", On: opts.Pins, Err: err,
		Fix: "run `particle doctor`, which names what this kernel lacks"}
}

func (g *Guard) open(ctx context.Context) error {
	if err := mountBPF(g.opts.Pins); err != nil {
		return err
	}
	if err := mountCgroups(g.opts.Cgroups); err != nil {
		return err
	}
	if err := os.MkdirAll(g.dir, 0o700); err != nil {
		return err
	}
	unlock, err := g.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if err := g.load(); err != nil {
		return err
	}
	if err := g.readNetworks(); err != nil {
		return err
	}
	if err := g.takeStock(); err != nil {
		return err
	}
	return g.takeOver()
}

// Close lets go of what this process holds. Enforcement stays.
func (g *Guard) Close() error {
	g.core.close()
	g.unix.close()
	g.device.close()
	return nil
}
