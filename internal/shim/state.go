package shim

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/topology"
)

// Annotations that `create` leaves in the specification of a container which
// owns an address. runc keeps a specification's annotations in its state, so
// the later commands find there what only `create` could know. Users may set
// annotations too (docker run --annotation), so `create` removes these names
// wherever it does not set them.
const (
	annotationDir     = "net.particle.directory" // the container's directory
	annotationNetwork = "net.particle.network"   // the network's id
)

// state is what runc's state.json says of a container in a tenant namespace.
type state struct {
	Pid    int    `json:"init_process_pid"`
	Start  uint64 `json:"init_process_start"` // in clock ticks since boot, field 22 of /proc/PID/stat
	Config struct {
		Labels     []string `json:"labels"`
		Namespaces []struct {
			Type string `json:"type"`
			Path string `json:"path"`
		} `json:"namespaces"`
	} `json:"config"`
}

// member reads the state of a container if it is in a tenant namespace, and
// returns nil if it is not or has no state.
func (h *Host) member(c Call) (*state, error) {
	if c.ID == "" || strings.Contains(c.ID, "/") || c.ID == ".." {
		return nil, nil
	}
	path := filepath.Join(c.Root, c.ID, "state.json")
	raw, err := os.ReadFile(path)
	// Nearly every container on a host may be another's. Finding no mention of
	// our directory is a hundred times cheaper than decoding, and the encoder
	// that wrote the file leaves paths as they are.
	if err != nil || !bytes.Contains(raw, []byte(h.Namespaces+"/")) {
		return nil, nil
	}
	var s state
	if err := json.Unmarshal(raw, &s); err != nil {
		return nil, &fault.Error{Op: "read runtime state", On: path, Err: err}
	}
	for _, ns := range s.Config.Namespaces {
		if ns.Type == "NEWNET" && filepath.Dir(ns.Path) == h.Namespaces {
			return &s, nil
		}
	}
	return nil, nil
}

// owner returns the directory and network of a container that owns an address;
// ok is false for one that joined another's namespace (--network container:X).
func (s *state) owner() (dir string, network topology.NetworkID, ok bool) {
	for _, label := range s.Config.Labels {
		if v, found := strings.CutPrefix(label, annotationDir+"="); found {
			dir = v
		}
		if v, found := strings.CutPrefix(label, annotationNetwork+"="); found {
			network = topology.NetworkID(v)
		}
	}
	return dir, network, dir != "" && network != ""
}

// gone is true when no process of the container can be left: its first process
// has ended and it had a pid namespace of its own, whose end takes all others.
func (s *state) gone(proc string) bool {
	own := false
	for _, ns := range s.Config.Namespaces {
		own = own || ns.Type == "NEWPID" && ns.Path == ""
	}
	return own && !s.alive(proc)
}

func (s *state) alive(proc string) bool {
	raw, err := os.ReadFile(filepath.Join(proc, strconv.Itoa(s.Pid), "stat"))
	if err != nil {
		return false
	}
	// The name of the program stands in parentheses and may contain some; what
	// follows the last one is fields 3 (state) to 52, see proc_pid_stat(5).
	fields := strings.Fields(string(raw[bytes.LastIndexByte(raw, ')')+1:]))
	if len(fields) < 20 {
		return true
	}
	start, err := strconv.ParseUint(fields[19], 10, 64)
	another := err == nil && start != s.Start // the pid was given out again
	return !another && fields[0] != "Z" && fields[0] != "X"
}
