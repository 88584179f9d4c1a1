package addrguard

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

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

// anchorOf is the top of a cgroup's branch: /docker of /docker/4f2a.
func anchorOf(cgroup string) (string, error) {
	clean := filepath.Clean(cgroup)
	if !filepath.IsAbs(clean) || clean != strings.TrimRight(cgroup, "/") {
		return "", fault.New("find cgroup", cgroup, "not a path from the root of the hierarchy",
			"run the plugin in the host's cgroup namespace")
	}
	top, _, _ := strings.Cut(clean[1:], "/")
	return "/" + top, nil
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

// anchor attaches the programs to the top of a cgroup's branch, if they are not.
func (g *Guard) anchor(ctx context.Context, cgroup string) error {
	top, err := anchorOf(cgroup)
	if err != nil {
		return err
	}
	path := filepath.Join(g.opts.Cgroups, top)
	id, err := cgroupID(path)
	if err != nil {
		return err
	}
	g.mu.RLock()
	attached := g.anchors[id]
	g.mu.RUnlock()
	if attached {
		return nil
	}
	unlock, err := g.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	return g.attach(path, id)
}

// attach makes every program run in the cgroup. The pins' lock is held.
func (g *Guard) attach(path string, id topology.CgroupID) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	defer dir.Close()
	for _, p := range []*part{g.core, g.unix} {
		if err := g.attachPart(p, dir, id); err != nil {
			return fmt.Errorf("cgroup %s: %w", path, err)
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.anchors[id] = true
	return nil
}

func (g *Guard) attachPart(p *part, dir *os.File, id topology.CgroupID) error {
	if p == nil {
		return nil
	}
	for name, prog := range p.Programs {
		if !g.runs(name) {
			continue
		}
		err := g.ensure(anchorPin(id, name), prog, func() (link.Link, error) {
			return link.AttachRawLink(link.RawLinkOptions{Target: int(dir.Fd()), Program: prog, Attach: p.attachType(name)})
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// hooks reports whether a program of this version hangs on anchors.
func (g *Guard) hooks(program string) bool {
	return g.runs(program) && (g.core.Programs[program] != nil || g.unix != nil && g.unix.Programs[program] != nil)
}

// runs reports whether an anchor's program has anything to do: devices check what
// leaves, where they can.
func (g *Guard) runs(program string) bool { return program != "egress" || g.device == nil }

// takeOver puts this version's programs in place of those that are attached, and
// clears what hangs on nothing any more. The pins' lock is held.
func (g *Guard) takeOver() error {
	alive, err := topCgroups(g.opts.Cgroups)
	if err != nil {
		return err
	}
	names, err := g.pins()
	if err != nil {
		return err
	}
	if err := g.takeOverDevices(names); err != nil {
		return err
	}
	seen := map[topology.CgroupID]bool{}
	for _, name := range names {
		id, program, ok := parseAnchorPin(name)
		if !ok {
			continue
		}
		path, live := alive[id]
		if live && !seen[id] {
			seen[id] = true
			err := g.attach(path, id)
			if err != nil && !isGone(err) {
				return err
			}
		}
		if live && g.hooks(program) {
			continue
		}
		if err := g.unpin(name); err != nil {
			return err
		}
	}
	return nil
}

// topCgroups are the cgroups at the top of the hierarchy, each with its path.
func topCgroups(root string) (map[topology.CgroupID]string, error) {
	entries, err := os.ReadDir(root)
	if err != nil {
		return nil, err
	}
	top := map[topology.CgroupID]string{}
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		path := filepath.Join(root, e.Name())
		id, err := cgroupID(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed meanwhile
		}
		if err != nil {
			return nil, err
		}
		top[id] = path
	}
	return top, nil
}
