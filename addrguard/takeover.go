package addrguard

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/topology"
)

// takeOver puts this version's programs in place of those that are attached, attaches
// what is missing for containers that an earlier process has admitted, and clears what
// hangs on nothing any more. The pins' lock is held.
func (g *Guard) takeOver() error {
	names, err := g.pins()
	if err != nil {
		return err
	}
	if err := g.takeOverDevices(names); err != nil {
		return err
	}
	pinned := map[topology.CgroupID]bool{}
	for _, name := range names {
		if id, _, ok := parseAnchorPin(name); ok {
			pinned[id] = true
		}
	}
	places, err := g.places(pinned)
	if err != nil {
		return err
	}
	for id, p := range places {
		if err := g.attach(p, id); err != nil && !isGone(err) {
			return err
		}
	}
	for _, name := range names {
		id, program, ok := parseAnchorPin(name)
		if p, live := places[id]; !ok || live && p.holds(program) && g.hooks(program) {
			continue
		}
		if err := g.unpin(name); err != nil {
			return err
		}
	}
	return nil
}

// places are where programs must hang, by the cgroups' ids: for each container that
// was admitted, and where some hang already.
func (g *Guard) places(pinned map[topology.CgroupID]bool) (map[topology.CgroupID]place, error) {
	admitted, err := g.Admitted()
	if err != nil {
		return nil, err
	}
	found := map[topology.CgroupID]place{}
	err = g.eachCgroup(func(path string, id topology.CgroupID) error {
		below := path
		if identity, ok := admitted[id]; !ok || identity.Exempt {
			if !pinned[id] {
				return nil
			}
			below = filepath.Join(path, "container")
		}
		places, err := placesOf(below)
		if err != nil {
			return err
		}
		for _, p := range places {
			if below != path && p.path != path {
				continue // somebody's place, not this one's
			}
			id, err := cgroupID(filepath.Join(g.opts.Cgroups, p.path))
			if err == nil {
				found[id] = p
			} else if !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		return nil
	})
	return found, err
}

// eachCgroup visits the cgroups below the root; some may end meanwhile.
func (g *Guard) eachCgroup(visit func(path string, id topology.CgroupID) error) error {
	return filepath.WalkDir(g.opts.Cgroups, func(path string, entry fs.DirEntry, err error) error {
		if path == g.opts.Cgroups || err == nil && !entry.IsDir() {
			return err
		}
		var info fs.FileInfo
		if err == nil {
			info, err = entry.Info()
		}
		if isGone(err) || errors.Is(err, unix.ENODEV) { // the latter of one that is open
			return nil
		}
		if err != nil {
			return err
		}
		below, err := filepath.Rel(g.opts.Cgroups, path)
		if err != nil {
			return err
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok {
			return fmt.Errorf("no inode of %s", path)
		}
		return visit("/"+below, topology.CgroupID(st.Ino))
	})
}

// leave clears what hung on containers' own cgroups that are gone. Expelled is the next
// to go, which it may do some time later only: until then its programs stay, for the
// sockets that its processes have.
func (g *Guard) leave(expelled topology.CgroupID) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if p, ok := g.anchors[expelled]; ok && p.gated {
		g.leaving[expelled] = true
	}
	var errs []error
	for id := range g.leaving {
		now, err := cgroupID(filepath.Join(g.opts.Cgroups, g.anchors[id].path))
		if err == nil && now == id {
			continue
		}
		errs = append(errs, g.unpinAnchor(id))
		delete(g.leaving, id)
		delete(g.anchors, id)
	}
	return errors.Join(errs...)
}

func (g *Guard) unpinAnchor(id topology.CgroupID) error {
	var errs []error
	for _, p := range []*part{g.core, g.unix} {
		if p == nil {
			continue
		}
		for name := range p.Programs {
			if name != gatekeeper && g.runs(name) {
				errs = append(errs, g.unpin(anchorPin(id, name)))
			}
		}
	}
	return errors.Join(errs...)
}
