package addrguard

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/topology"
)

// cgroupID is that of a directory below the root of the hierarchy.
func cgroupID(path string) (topology.CgroupID, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	return topology.CgroupID(st.Ino), nil
}

// place is a cgroup that programs hang on.
type place struct {
	path string // below the root of the hierarchy
	// gate: that of socket(2) alone hangs there, for what is below.
	gate bool
	// gated: that of socket(2) hangs above.
	gated bool
}

// gatekeeper is the program that denies sockets to strangers.
const gatekeeper = guardProgSockCreate

// holds reports whether a program hangs there.
func (p place) holds(program string) bool {
	if program == gatekeeper {
		return !p.gated
	}
	return !p.gate
}

// placesOf are the cgroups that the programs for a cgroup hang on. The anchor is the
// first on the way down that is no slice of systemd's: /docker of /docker/4f2a, and
// the whole of /system.slice/docker-4f2a.scope. Slices hold services of the host as
// well, which shall not pay for what they do with sockets; but who is in no container
// shall have none in a container's namespace, so a slice at the top is a gate.
func placesOf(cgroup string) ([]place, error) {
	clean := filepath.Clean(cgroup)
	if !filepath.IsAbs(clean) || clean != strings.TrimRight(cgroup, "/") {
		return nil, fault.New("find cgroup", cgroup, "not a path from the root of the hierarchy",
			"run the plugin in the host's cgroup namespace")
	}
	parts := strings.Split(clean[1:], "/")
	depth := slices.IndexFunc(parts, func(part string) bool { return !strings.HasSuffix(part, ".slice") })
	if depth < 0 {
		depth = len(parts) - 1
	}
	anchor := place{path: "/" + strings.Join(parts[:depth+1], "/"), gated: depth > 0}
	if depth == 0 {
		return []place{anchor}, nil
	}
	return []place{{path: "/" + parts[0], gate: true}, anchor}, nil
}

func anchorPin(id topology.CgroupID, program string) string {
	return fmt.Sprintf("anchor-%d-%s", id, program)
}

// parseAnchorPin undoes anchorPin.
func parseAnchorPin(name string) (id topology.CgroupID, program string, ok bool) {
	rest, ok := strings.CutPrefix(name, "anchor-")
	if !ok {
		return 0, "", false
	}
	number, program, ok := strings.Cut(rest, "-")
	n, err := strconv.ParseUint(number, 10, 64)
	return topology.CgroupID(n), program, ok && err == nil
}

// anchor attaches the programs that are for a cgroup, if they are not.
func (g *Guard) anchor(ctx context.Context, cgroup string) error {
	places, err := placesOf(cgroup)
	if err != nil {
		return err
	}
	for _, p := range places {
		id, err := cgroupID(filepath.Join(g.opts.Cgroups, p.path))
		if err != nil {
			return err
		}
		if g.anchored(id) {
			continue
		}
		if err := g.attachLocked(ctx, p, id); err != nil {
			return err
		}
	}
	return nil
}

func (g *Guard) anchored(id topology.CgroupID) bool {
	g.mu.RLock()
	defer g.mu.RUnlock()
	_, ok := g.anchors[id]
	return ok
}

func (g *Guard) attachLocked(ctx context.Context, p place, id topology.CgroupID) error {
	unlock, err := g.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	return g.attach(p, id)
}

// attach makes the programs of a place run there. The pins' lock is held.
func (g *Guard) attach(p place, id topology.CgroupID) error {
	err := g.eachAt(p, func(name string, prog *ebpf.Program, attach func() (link.Link, error)) error {
		return g.ensure(anchorPin(id, name), prog, attach)
	})
	if err != nil {
		return attachError(p.path, err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.anchors[id] = p
	return nil
}

// eachAt calls do for each program that hangs on a place, with what attaches it there.
func (g *Guard) eachAt(at place, do func(name string, prog *ebpf.Program, attach func() (link.Link, error)) error) error {
	dir, err := os.Open(filepath.Join(g.opts.Cgroups, at.path))
	if err != nil {
		return err
	}
	defer dir.Close()
	for _, p := range []*part{g.core, g.unix} {
		if p == nil {
			continue
		}
		for name, prog := range p.Programs {
			if !g.runs(name) || !at.holds(name) {
				continue
			}
			err := do(name, prog, func() (link.Link, error) {
				return link.AttachRawLink(link.RawLinkOptions{Target: int(dir.Fd()), Program: prog, Attach: p.attachType(name)})
			})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

func attachError(cgroup string, err error) error {
	if errors.Is(err, unix.EPERM) { // it could be loaded
		return &fault.Error{Op: "attach address guard to cgroup", On: cgroup, Err: fmt.Errorf("another program is there or above that bears none beside it: %w", err),
			Fix: "detach it (`bpftool cgroup tree` shows those without the flags multi and override), or set PARTICLE_GUARD=seccomp"}
	}
	return fmt.Errorf("cgroup %s: %w", cgroup, err)
}

// hooks reports whether a program of this version hangs on anchors.
func (g *Guard) hooks(program string) bool {
	return g.runs(program) && (g.core.Programs[program] != nil || g.unix != nil && g.unix.Programs[program] != nil)
}

// runs reports whether an anchor's program has anything to do: devices check what
// leaves, where they can, and newer kernels tell packets' programs the namespace.
func (g *Guard) runs(program string) bool {
	switch program {
	case guardProgEgress:
		return g.device == nil
	case guardProgSockForeign:
		return !g.packetNetns()
	}
	return true
}
