package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/particle-net/particle/internal/fault"
)

// DefaultName is the lab's name when none is given.
const DefaultName = "lab"

// Options say what lab to bring up. The zero value is one host with Debian's engine.
type Options struct {
	Name        string    // lower case letters, digits and dashes, up to 32; "" is DefaultName
	Hosts       int       // 1 to 250; 0 is 1. They are named h1, h2, ...
	Engine      string    // EngineDebian or EngineCurrent; "" is EngineDebian
	DaemonJSON  []byte    // every host's /etc/docker/daemon.json; nil is {}
	LiveRestore bool      // adds "live-restore": true to it
	Disk        string    // what [Host.SaveDisk] made: each host begins with a copy of it; "" is an empty disk
	Systemd     bool      // process 1 of every host is systemd, which makes the engine's cgroups; of version 2 alone
	Replace     bool      // take a running lab of that name down first
	Tied        bool      // all of it ends when the calling process ends, for tests
	Progress    io.Writer // gets a line per step; nil for none
}

// Lab is a running lab. Its methods may be called by several goroutines at once.
type Lab struct {
	name     string
	internet *Node
	hosts    []*Host
	tied     bool // nodes end with this process; whoever merely opened the lab ties none to itself

	mu    sync.Mutex // guards state
	state *state
}

// Up brings a lab up and returns when every host's engine answers. What is left of
// an earlier lab of the name is removed first; one that runs is an error unless
// Options.Replace is set. On failure nothing is left behind.
func Up(ctx context.Context, o Options) (*Lab, error) {
	o, err := checkOptions(o)
	if err != nil {
		return nil, err
	}
	engine, err := FindEngine(ctx, o.Engine, o.Progress)
	if err != nil {
		return nil, err
	}
	if o.Systemd {
		if err := installPackages(ctx, o.Progress, map[string]string{systemdProgram: "systemd"}); err != nil {
			return nil, err
		}
	}
	unlock, err := clearPlace(ctx, o)
	if err != nil {
		return nil, err
	}
	l, err := bringUp(ctx, o, engine)
	if err == nil {
		unlock()
		return l, nil
	}
	// The caller's time may be over, and still nothing shall be left.
	after, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	err = errors.Join(err, remove(after, o.Name))
	unlock()
	return nil, err
}

// checkOptions fills in defaults and refuses what cannot work.
func checkOptions(o Options) (Options, error) {
	const op = "bring up lab"
	if err := checkHook(op); err != nil {
		return o, err
	}
	if o.Name == "" {
		o.Name = DefaultName
	}
	if o.Hosts == 0 {
		o.Hosts = 1
	}
	if o.Engine == "" {
		o.Engine = EngineDebian
	}
	if o.Progress == nil {
		o.Progress = io.Discard
	}
	switch {
	case !namePattern.MatchString(o.Name):
		return o, fault.New(op, o.Name, "not a usable name", "use up to 32 lower case letters, digits and dashes")
	case o.Hosts < 0 || o.Hosts > maxHosts:
		return o, fault.New(op, o.Name, fmt.Sprintf("%d hosts", o.Hosts), fmt.Sprintf("ask for 1 to %d", maxHosts))
	case os.Geteuid() != 0:
		return o, fault.New(op, o.Name, "namespaces, mounts and cgroups need root", "run it with sudo")
	}
	_, err := daemonConfig(o)
	return o, err
}

// daemonConfig is the host's /etc/docker/daemon.json. An empty one is {}.
func daemonConfig(o Options) (string, error) {
	config := map[string]any{}
	if len(o.DaemonJSON) > 0 {
		if err := json.Unmarshal(o.DaemonJSON, &config); err != nil {
			return "", &fault.Error{Op: "read daemon.json", Err: err, Fix: "give a JSON object"}
		}
	}
	if o.LiveRestore {
		config["live-restore"] = true
	}
	raw, err := json.MarshalIndent(config, "", "  ")
	return string(raw) + "\n", err
}

// clearPlace takes the name and makes sure that nothing of it exists.
func clearPlace(ctx context.Context, o Options) (unlock func(), err error) {
	unlock, err = lockLab(ctx, o.Name, true)
	if err != nil {
		return nil, err
	}
	old, err := loadState(o.Name)
	if err == nil && old.running() && !o.Replace {
		unlock()
		return nil, fault.New("bring up lab", o.Name, "it is running", "take it down first with particle-lab down --name "+o.Name)
	}
	fresh := errors.Is(err, fs.ErrNotExist)
	if !fresh {
		fmt.Fprintf(o.Progress, "removing what is left of lab %s\n", o.Name)
	}
	if err := remove(ctx, o.Name); err != nil {
		unlock()
		return nil, err
	}
	// remove took the directory, and the lock with it.
	unlock()
	return lockLab(ctx, o.Name, true)
}

// bringUp makes the lab in its empty directory.
func bringUp(ctx context.Context, o Options, engine Engine) (*Lab, error) {
	hs, err := hierarchies()
	if err != nil {
		return nil, err
	}
	s := &state{Name: o.Name, Created: time.Now(), Engine: engine, Cgroups: hs,
		Nodes: []nodeState{{Name: internetNode, Index: gatewayIndex}}}
	for i := 1; i <= o.Hosts; i++ {
		s.Nodes = append(s.Nodes, nodeState{Name: fmt.Sprintf("h%d", i), Index: i})
	}
	if err := s.save(); err != nil {
		return nil, err
	}
	l := newLab(s)
	l.tied = o.Tied
	fmt.Fprintf(o.Progress, "booting %d host(s) with the %s engine\n", o.Hosts, engine.Name)
	if err := l.bootInternet(ctx); err != nil {
		return nil, err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(4) // dockerd's start is bound by CPU: more at once only make all slower
	for _, h := range l.hosts {
		g.Go(func() error {
			begun := time.Now()
			if err := h.firstBoot(ctx, o, engine); err != nil {
				return err
			}
			fmt.Fprintf(o.Progress, "%s is up (%.1f s)\n", h.name, time.Since(begun).Seconds())
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	s.Ready = true
	return l, s.save()
}

func (l *Lab) bootInternet(ctx context.Context) error {
	if err := os.MkdirAll(filepath.Join(l.internet.dir(), dirShare), 0o711); err != nil {
		return &fault.Error{Op: "make directory", On: internetNode, Err: err}
	}
	if err := l.internet.boot(ctx, bootSpec{Hostname: internetNode}); err != nil {
		return err
	}
	return makeUnderlay(l.internet)
}

func (h *Host) firstBoot(ctx context.Context, o Options, engine Engine) error {
	files, err := h.identity(o)
	if err != nil {
		return err
	}
	if o.Disk != "" {
		if err := h.takeDisk(ctx, o); err != nil {
			return err
		}
	}
	return h.powerOn(ctx, bootSpec{
		Hostname: h.name, Isolated: true, Systemd: o.Systemd, FirstBoot: true, Disk: o.Disk != "", Files: files, Binds: engine.binds(),
		Cgroups: h.lab.cgroups(), Addresses: []string{h.Addr4().String(), h.Addr6().String()},
	}, nil)
}

// newLab builds the handles for a recorded lab.
func newLab(s *state) *Lab {
	l := &Lab{name: s.Name, state: s}
	for _, n := range s.Nodes {
		node := &Node{lab: l, name: n.Name, index: n.Index}
		if n.Name == internetNode {
			l.internet = node
			continue
		}
		node.isolated = true
		node.engine = s.Engine
		l.hosts = append(l.hosts, &Host{Node: node})
	}
	return l
}

// Open returns a running lab that Up made, in this process or another.
func Open(name string) (*Lab, error) {
	if err := checkHook("open lab"); err != nil {
		return nil, err
	}
	s, err := loadState(name)
	if err != nil {
		return nil, err
	}
	if !s.running() {
		return nil, fault.New("open lab", name, "it is not running", "bring it up again with particle-lab up --name "+name)
	}
	return newLab(s), nil
}

// Name is the lab's name.
func (l *Lab) Name() string { return l.name }

// Hosts lists the hosts in order: h1, h2, ...
func (l *Lab) Hosts() []*Host { return slices.Clone(l.hosts) }

// Host returns the host of that name.
func (l *Lab) Host(name string) (*Host, error) {
	names := make([]string, 0, len(l.hosts))
	for _, h := range l.hosts {
		if h.name == name {
			return h, nil
		}
		names = append(names, h.name)
	}
	return nil, fault.New("find host", name, "lab "+l.name+" has no such host", "name one of "+strings.Join(names, ", "))
}

// Internet is the namespace on the other side of every host's default gateway,
// for servers that stand for the rest of the world. It sees the machine's files.
func (l *Lab) Internet() *Node { return l.internet }

// Down takes the lab down. See [Down].
func (l *Lab) Down(ctx context.Context) error { return Down(ctx, l.name) }

func (l *Lab) nodeState(name string) nodeState {
	l.mu.Lock()
	defer l.mu.Unlock()
	i := slices.IndexFunc(l.state.Nodes, func(n nodeState) bool { return n.Name == name })
	return l.state.Nodes[i]
}

// record notes a node's init.
func (l *Lab) record(name string, init procID) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	i := slices.IndexFunc(l.state.Nodes, func(n nodeState) bool { return n.Name == name })
	l.state.Nodes[i].Init = init
	return l.state.save()
}

// These parts of the state never change once the lab exists.
func (l *Lab) cgroups() []hierarchy { return l.state.Cgroups }
func (l *Lab) engine() Engine       { return l.state.Engine }
func (l *Lab) created() time.Time   { return l.state.Created }
