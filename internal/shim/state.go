package shim

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/seccomp/rawjson"
	"github.com/particle-net/particle/topology"
)

// Annotations that `create` leaves in the specification of a container in a
// tenant namespace. runc keeps a specification's annotations in its state, so
// the later commands find there what only `create` could know. Users may set
// annotations too (docker run --annotation), so `create` removes these names
// wherever it does not set them.
const (
	annotationDir     = "net.particle.directory" // the container's directory
	annotationNetwork = "net.particle.network"   // the network's id
	annotationJoin    = "net.particle.join"      // the container whose address it shares; none has its own
	annotationGuard   = "net.particle.guard"     // guardSeccomp if system calls are answered for it
	// annotationNamespace is ownNamespace for a container that is not in the
	// tenant namespace.
	annotationNamespace = "net.particle.namespace"
	annotationReason    = "net.particle.reason" // why it is not
)

// annotationPrefix is what the names of all begin with.
const annotationPrefix = "net.particle."

// saying gives each of the names what is said by it. What is not said is taken out.
func saying(said map[string]string) map[string]string {
	all := map[string]string{}
	for _, name := range []string{annotationDir, annotationNetwork, annotationJoin, annotationGuard, annotationNamespace, annotationReason} {
		all[name] = said[name]
	}
	return all
}

// guardSeccomp is the value of annotationGuard.
const guardSeccomp = "seccomp"

// state is what runc's state.json says of a container of a particle network.
type state struct {
	pid     int
	start   uint64 // in clock ticks since boot, field 22 of /proc/PID/stat
	ownPids bool   // it has a pid namespace of its own
	tenant  bool   // its network namespace is one of ours
	own     bool   // it has one of its own
	reason  string // annotationReason
	guarded bool   // annotationGuard
	dir     string // annotationDir
	network topology.NetworkID
	join    topology.ContainerID // annotationJoin
}

// member reads the state of a container if it is in a tenant namespace, or is
// connected to one, and returns nil if it is not or has no state.
func (h *Host) member(c Call) (*state, error) {
	if c.ID == "" || strings.Contains(c.ID, "/") || c.ID == ".." {
		return nil, nil
	}
	path := filepath.Join(c.Root, c.ID, "state.json")
	raw, err := os.ReadFile(path)
	// Nearly every container on a host may be another's. Finding no mention of
	// our directory or annotation is much cheaper than reading, and the encoder
	// that wrote the file leaves both as they are.
	if errors.Is(err, fs.ErrNotExist) || err == nil && !bytes.Contains(raw, []byte(h.Namespaces+"/")) && !bytes.Contains(raw, []byte(labelOwn)) {
		return nil, nil
	}
	var s *state
	if err == nil {
		s, err = h.readState(raw)
	}
	if err != nil { // one that may be ours and cannot be told must not go on unconfined
		return nil, &fault.Error{Op: "read runtime state", On: path, Err: err}
	}
	s.own = s.own && !s.tenant
	if !s.tenant && !s.own {
		return nil, nil
	}
	return s, nil
}

// labelOwn is the annotation as runc keeps it.
const labelOwn = annotationNamespace + "=" + ownNamespace

func (h *Host) readState(doc []byte) (*state, error) {
	var s state
	top, err := rawjson.Root(doc)
	if err != nil {
		return nil, err
	}
	return &s, rawjson.Members(doc, top, func(key string, value rawjson.Span) error {
		switch key {
		case "init_process_pid":
			pid, err := rawjson.Uint(doc, value)
			s.pid = int(pid)
			return err
		case "init_process_start":
			s.start, err = rawjson.Uint(doc, value)
			return err
		case "config":
			return rawjson.Members(doc, value, func(key string, value rawjson.Span) error {
				switch key {
				case "labels":
					return s.readLabels(doc, value)
				case "namespaces":
					return rawjson.Elements(doc, value, func(entry rawjson.Span) error {
						return s.readNamespace(doc, entry, h.Namespaces)
					})
				}
				return nil
			})
		}
		return nil
	})
}

func (s *state) readLabels(doc []byte, labels rawjson.Span) error {
	all, err := rawjson.Texts(doc, labels)
	for _, label := range all {
		if v, found := strings.CutPrefix(label, annotationDir+"="); found {
			s.dir = v
		}
		if v, found := strings.CutPrefix(label, annotationNetwork+"="); found {
			s.network = topology.NetworkID(v)
		}
		if v, found := strings.CutPrefix(label, annotationJoin+"="); found {
			s.join = topology.ContainerID(v)
		}
		if v, found := strings.CutPrefix(label, annotationReason+"="); found {
			s.reason = v
		}
		s.own = s.own || label == labelOwn
		s.guarded = s.guarded || label == annotationGuard+"="+guardSeccomp
	}
	return err
}

func (s *state) readNamespace(doc []byte, entry rawjson.Span, tenants string) error {
	var kind, path string
	err := rawjson.Members(doc, entry, func(key string, value rawjson.Span) (err error) {
		switch key {
		case "type":
			kind, err = rawjson.Text(doc, value)
		case "path":
			path, err = rawjson.Text(doc, value)
		}
		return err
	})
	s.ownPids = s.ownPids || kind == "NEWPID" && path == ""
	s.tenant = s.tenant || kind == "NEWNET" && filepath.Dir(path) == tenants
	return err
}

// complete is false for a container that `create` of an earlier version put
// into the namespace: it left nothing of one that shares another's address.
func (s *state) complete() bool { return s.dir != "" && s.network != "" }

// gone is true when no process of the container can be left: its first process
// has ended and it had a pid namespace of its own, whose end takes all others.
func (s *state) gone(proc string) bool {
	return s.ownPids && !s.alive(proc)
}

func (s *state) alive(proc string) bool {
	raw, err := os.ReadFile(filepath.Join(proc, strconv.Itoa(s.pid), "stat"))
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
	another := err == nil && start != s.start // the pid was given out again
	return !another && fields[0] != "Z" && fields[0] != "X"
}
