package lab

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/internal/fault"
)

// StateDir holds one directory per lab. It must be on a disk file system: an
// overlay cannot have its upper directory on another overlay.
const StateDir = "/var/lib/particle-lab"

const stateFile = "state.json"

// internetNode is the name of the node that is the underlay and the internet.
const internetNode = "internet"

// state is what Down and Open need to know of a lab. It is written before what it
// names exists.
type state struct {
	Name    string      `json:"name"`
	Created time.Time   `json:"created"`
	Ready   bool        `json:"ready"` // Up went through
	Engine  Engine      `json:"engine"`
	Cgroups []hierarchy `json:"cgroups"`
	Nodes   []nodeState `json:"nodes"` // the internet first
}

// nodeState is one node's part of it.
type nodeState struct {
	Name  string `json:"name"`
	Index int    `json:"index"` // last byte of the addresses; 254 for the internet
	Init  procID `json:"init"`  // zero until started
}

// namePattern keeps socket paths short and cgroup and link names valid.
var namePattern = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,31}$`)

func labDir(name string) string { return filepath.Join(StateDir, name) }

func (s *state) save() error {
	if err := writeJSON(filepath.Join(labDir(s.Name), stateFile), s); err != nil {
		return &fault.Error{Op: "record lab", On: s.Name, Err: err, Fix: "run as root and check free space in " + StateDir}
	}
	return nil
}

func loadState(name string) (*state, error) {
	raw, err := os.ReadFile(filepath.Join(labDir(name), stateFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &fault.Error{Op: "open lab", On: name, Err: fs.ErrNotExist, Fix: "bring it up with particle-lab up --name " + name}
	}
	s := &state{}
	if err == nil {
		err = json.Unmarshal(raw, s)
	}
	if err != nil {
		return nil, &fault.Error{Op: "open lab", On: name, Err: err, Fix: "run particle-lab down --name " + name}
	}
	return s, nil
}

// running tells whether the lab came up and all its inits still live.
func (s *state) running() bool {
	if !s.Ready {
		return false
	}
	for _, n := range s.Nodes {
		if !n.Init.alive() {
			return false
		}
	}
	return true
}

// lockLab takes the lab's directory for one operation (up, down, reboot) and
// returns the release. The lock is on the directory itself, so that it leaves no
// file; whoever waited for a directory that Down removed meanwhile starts over.
func lockLab(ctx context.Context, name string, create bool) (release func(), err error) {
	dir := labDir(name)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		if create {
			// The last lab that goes takes StateDir with it, possibly in between.
			if err := os.MkdirAll(dir, 0o755); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return nil, &fault.Error{Op: "make lab", On: name, Err: err, Fix: "run as root"}
			}
		}
		f, err := os.Open(dir)
		if create && errors.Is(err, fs.ErrNotExist) {
			continue // another lab's down was faster
		}
		if err != nil {
			return nil, &fault.Error{Op: "open lab", On: name, Err: err, Fix: "bring it up with particle-lab up --name " + name}
		}
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil && sameFile(f, dir) {
			return func() { f.Close() }, nil
		}
		f.Close()
		if err != nil && !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, &fault.Error{Op: "lock lab", On: name, Err: err}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, &fault.Error{Op: "lock lab", On: name, Err: ctx.Err(), Fix: "another particle-lab is at work on it; wait for it"}
		}
	}
}

func sameFile(f *os.File, path string) bool {
	a, errA := f.Stat()
	b, errB := os.Stat(path)
	return errA == nil && errB == nil && os.SameFile(a, b)
}
