package lab

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/internal/fault"
)

// Down takes a lab down, whatever state it is in, and leaves nothing of it: no
// process, mount, namespace, link, cgroup or file. It may be repeated after a
// failure; a lab that does not exist is no error.
func Down(ctx context.Context, name string) error {
	if !namePattern.MatchString(name) {
		return fault.New("take down lab", name, "not a lab's name", "list labs with particle-lab ls")
	}
	unlock, err := lockLab(ctx, name, false)
	switch {
	case err == nil:
		defer unlock()
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	return remove(ctx, name)
}

// remove is Down for whoever holds the lab. It relies on the name and on what the
// machine shows rather than on the state file, which may be missing or stale.
func remove(ctx context.Context, name string) error {
	dir := labDir(name)
	inits, err := initsOf(dir)
	if err != nil {
		return err
	}
	if s, err := loadState(name); err == nil {
		for _, n := range s.Nodes {
			if !slices.Contains(inits, n.Init) {
				inits = append(inits, n.Init)
			}
		}
	}
	for _, p := range inits {
		if err := p.kill(ctx); err != nil {
			return err
		}
	}
	hs, err := hierarchies()
	if err != nil {
		return err
	}
	if err := removeCgroups(ctx, hs, name); err != nil {
		return err
	}
	if err := unmountBelow(dir); err != nil {
		return err
	}
	if err := removeDir(ctx, dir); err != nil {
		return err
	}
	// The parent goes with the last lab, unless somebody has mounted it.
	may := []error{unix.ENOTEMPTY, unix.EEXIST, unix.ENOENT, unix.EBUSY}
	if err := unix.Rmdir(StateDir); err != nil && !slices.ContainsFunc(may, func(e error) bool { return errors.Is(err, e) }) {
		return &fault.Error{Op: "remove", On: StateDir, Err: err}
	}
	return nil
}

// unmountBelow unmounts what somebody mounted below the lab's directory in this
// mount namespace. The lab itself mounts nothing here.
func unmountBelow(dir string) error {
	mounts, err := readMounts("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	slices.Reverse(mounts)
	for _, m := range mounts {
		if !strings.HasPrefix(m.Point, dir+"/") {
			continue
		}
		if err := unix.Unmount(m.Point, unix.MNT_DETACH); err != nil {
			return &fault.Error{Op: "unmount", On: m.Point, Err: err}
		}
	}
	return nil
}

// removeDir removes the state directory. The last mount namespace goes a moment
// after its last process, and until then directories under its mounts are busy.
func removeDir(ctx context.Context, dir string) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := os.RemoveAll(dir)
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.ENOTEMPTY) {
			return &fault.Error{Op: "remove", On: dir, Err: err}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return &fault.Error{Op: "remove", On: dir, Err: err, Fix: "run down again"}
		}
	}
}

// Summary describes a lab for a listing.
type Summary struct {
	Name    string
	Engine  string
	Hosts   int
	Running bool
	Created time.Time
}

// List describes all labs of the machine, by name.
func List() ([]Summary, error) {
	entries, err := os.ReadDir(StateDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, &fault.Error{Op: "list labs", Err: err, Fix: "run as root"}
	}
	var all []Summary
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		one := Summary{Name: e.Name()}
		if s, err := loadState(e.Name()); err == nil { // without a state file it is a remainder
			one.Engine, one.Hosts, one.Running, one.Created = s.Engine.Name, len(s.Nodes)-1, s.running(), s.Created
		}
		all = append(all, one)
	}
	return all, nil
}
