package lab

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/internal/fault"
)

const (
	cgroupRoot = "/sys/fs/cgroup"
	// cgroupTop holds one directory per lab and in it one per host, in every hierarchy.
	cgroupTop = "particle-lab"
	// cgroupLeaf holds the host's own processes. In cgroup v2 a cgroup that hands
	// controllers to children may have no processes itself, and the host's root
	// cgroup has to hand them on to dockerd's cgroups.
	cgroupLeaf = "init"
)

// hierarchy is one mounted cgroup hierarchy of the machine.
type hierarchy struct {
	Mount   string `json:"mount"`             // mount point, below or at /sys/fs/cgroup
	V2      bool   `json:"v2,omitempty"`      // cgroup2
	Options string `json:"options,omitempty"` // v1: its controllers, or name=
}

// hierarchies lists what is mounted at and below /sys/fs/cgroup.
func hierarchies() ([]hierarchy, error) {
	mounts, err := readMounts("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var found []hierarchy
	for _, m := range mounts {
		if m.Point != cgroupRoot && !strings.HasPrefix(m.Point, cgroupRoot+"/") {
			continue
		}
		switch m.Type {
		case "cgroup2":
			found = append(found, hierarchy{Mount: m.Point, V2: true})
		case "cgroup":
			found = append(found, hierarchy{Mount: m.Point, Options: hierarchyOptions(m.Super)})
		}
	}
	if len(found) == 0 {
		return nil, fault.New("find cgroups", cgroupRoot, "no cgroup file system is mounted there", "mount cgroup2 there")
	}
	return found, nil
}

// hierarchyOptions keeps the options that say which hierarchy is meant, and drops
// those that only the first mount of it may give.
func hierarchyOptions(super string) string {
	kept := slices.DeleteFunc(strings.Split(super, ","), func(o string) bool {
		return o == "rw" || o == "ro" || o == "xattr" || o == "clone_children" || o == "noprefix" ||
			strings.HasPrefix(o, "release_agent=") || strings.HasPrefix(o, "cpuset_v2_mode")
	})
	return strings.Join(kept, ",")
}

// makeCgroups creates the host's cgroup and its leaf in every hierarchy. The last
// lab that goes takes the common top with it, so the top may vanish under a lab
// that comes: then its path is made once more.
func makeCgroups(hs []hierarchy, lab, host string) error {
	for _, h := range hs {
		err := fs.ErrNotExist
		for tries := 0; tries < 10 && errors.Is(err, fs.ErrNotExist); tries++ {
			err = makeCgroupPath(h, cgroupTop, lab, host, cgroupLeaf)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func makeCgroupPath(h hierarchy, parts ...string) error {
	dir := h.Mount
	for _, part := range parts {
		parent := dir
		dir = filepath.Join(dir, part)
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return &fault.Error{Op: "make cgroup", On: dir, Err: err, Fix: "run as root where the cgroup file systems are writable"}
		}
		if err := inheritCgroup(h, parent, dir); err != nil {
			return err
		}
	}
	return nil
}

// inheritCgroup gives a new cgroup what its parent has: a v1 cpuset starts empty
// and admits no process until filled, and v2 controllers are handed down by name.
func inheritCgroup(h hierarchy, parent, dir string) error {
	if h.V2 {
		if filepath.Base(dir) == cgroupLeaf {
			return nil // the host's own root hands on what dockerd asks for
		}
		return handDownControllers(parent)
	}
	if !slices.Contains(strings.Split(h.Options, ","), "cpuset") {
		return nil
	}
	for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
		value, err := os.ReadFile(filepath.Join(parent, file))
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, file), value, 0o644)
		}
		if err != nil {
			return &fault.Error{Op: "fill cpuset", On: dir, Err: err}
		}
	}
	return nil
}

// handDownControllers enables each v2 controller of a cgroup for its children. One
// that cannot be enabled (a real-time process under cpu, say) is left out: the host
// then lacks that controller as it would inside a container.
func handDownControllers(dir string) error {
	raw, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return &fault.Error{Op: "read controllers", On: dir, Err: err}
	}
	for _, c := range strings.Fields(string(raw)) {
		_ = os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+c), 0o644)
	}
	return nil
}

// joinCgroups moves a process into the host's cgroup (leaf "") or a child of it.
func joinCgroups(hs []hierarchy, lab, host, leaf string, pid int) error {
	for _, h := range hs {
		file := filepath.Join(h.Mount, cgroupTop, lab, host, leaf, "cgroup.procs")
		if err := os.WriteFile(file, []byte(strconv.Itoa(pid)), 0o644); err != nil {
			return &fault.Error{Op: "join cgroup", On: file, Err: err}
		}
	}
	return nil
}

// removeCgroups removes everything below part (a lab, or lab/host) in every
// hierarchy, waiting for cgroups the kernel still empties.
func removeCgroups(ctx context.Context, hs []hierarchy, part string) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		var busy error
		for _, h := range hs {
			if err := removeCgroupTree(filepath.Join(h.Mount, cgroupTop, part)); err != nil {
				busy = err
			}
			// The shared top goes with the last lab.
			_ = unix.Rmdir(filepath.Join(h.Mount, cgroupTop))
		}
		if busy == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return &fault.Error{Op: "remove cgroup", On: part, Err: busy, Fix: "end the processes listed in its cgroup.procs and run down again"}
		}
	}
}

// removeCgroupTree removes a cgroup and its descendants, deepest first. Only
// directories can be removed in a cgroup file system, the files go with them.
func removeCgroupTree(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		if err := removeCgroupTree(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	if err := unix.Rmdir(dir); err != nil && !errors.Is(err, unix.ENOENT) {
		return &fs.PathError{Op: "rmdir", Path: dir, Err: err}
	}
	return nil
}
