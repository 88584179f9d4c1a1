package integration

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"github.com/particle-net/particle/internal/hostpath"
	"github.com/particle-net/particle/internal/lab"
	"github.com/particle-net/particle/internal/runtimeapi"
)

// bed is a lab, and how to use one of its hosts.
type bed struct {
	lab  *lab.Lab
	host *lab.Host
	held lab.Held // for the search for leaks
}

// on is the same lab, seen from another host.
func (b *bed) on(name string) (*bed, error) {
	host, err := b.lab.Host(name)
	return &bed{lab: b.lab, host: host, held: b.held}, err
}

// all is the lab, seen from each host.
func (b *bed) all() (all []*bed) {
	for _, host := range b.lab.Hosts() {
		all = append(all, &bed{lab: b.lab, host: host, held: b.held})
	}
	return all
}

// each does something on every host at once.
func (b *bed) each(do func(*bed) error) error {
	var group errgroup.Group
	for _, b := range b.all() {
		group.Go(func() error { return do(b) })
	}
	return group.Wait()
}

var beds atomic.Int64

// patience bounds each wait for something that must happen.
const patience = 3 * time.Minute

// initVar is the variable that says what process 1 of the hosts is: systemd, or, if it
// is not set, the lab's own.
const initVar = "PARTICLE_INIT"

// newBed boots hosts and uses the first; plain leaves the plugin out.
func newBed(ctx context.Context, o lab.Options, plain bool) (b *bed, err error) {
	o.Systemd = o.Systemd || os.Getenv(initVar) == "systemd"
	if !plain {
		if o.Disk, err = installedDisk(ctx, o); err != nil {
			return nil, err
		}
	}
	if b, err = bootBed(ctx, o); err != nil || !plain {
		return b, err
	}
	return b, b.each(func(b *bed) error { return lab.LoadImageWith(ctx, b.host, program("probe")) })
}

// room is for the hosts that run at the same time, as many as two cores bear: three
// clusters, which often wait, and one that has its turn meanwhile.
var room = semaphore.NewWeighted(10)

func bootBed(ctx context.Context, o lab.Options) (*bed, error) {
	o.Name = fmt.Sprintf("t%d-%d", os.Getpid(), beds.Add(1))
	o.Tied = true
	o.Hosts = max(o.Hosts, 1)
	if err := room.Acquire(ctx, int64(o.Hosts)); err != nil {
		return nil, err
	}
	l, err := lab.Up(ctx, o)
	if err != nil {
		room.Release(int64(o.Hosts))
		return nil, err
	}
	b := &bed{lab: l, host: l.Hosts()[0]}
	b.held, err = l.Held()
	return b, err
}

// disks are those of hosts with the plugin and the test image, by what they were
// installed under. To install costs as much as to start thirty containers.
var disks = struct {
	sync.Mutex
	made map[string]func() (string, error)
}{made: map[string]func() (string, error){}}

// installedDisk is the disk of a host on which particle was installed, made once.
func installedDisk(ctx context.Context, o lab.Options) (string, error) {
	under := fmt.Sprintf("%s-systemd-%v", o.Engine, o.Systemd)
	disks.Lock()
	if disks.made[under] == nil {
		disks.made[under] = sync.OnceValues(func() (string, error) {
			dir := filepath.Join(programs.disks, under)
			return dir, saveInstalled(context.WithoutCancel(ctx), lab.Options{Engine: o.Engine, Systemd: o.Systemd}, dir)
		})
	}
	make := disks.made[under]
	disks.Unlock()
	return make()
}

// saveInstalled installs as docs/operations.md says it is done for the image of a machine.
func saveInstalled(ctx context.Context, o lab.Options, dir string) (err error) {
	b, err := bootBed(ctx, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	if err := lab.LoadImageWith(ctx, b.host, program("probe")); err != nil {
		return err
	}
	if _, err := b.particle(ctx, "install"); err != nil {
		return err
	}
	if err := b.host.SaveDisk(ctx, dir); err != nil {
		return err
	}
	return os.Remove(filepath.Join(dir, "upper", hostpath.StateDir, "node"))
}

// close takes the lab down and reports what it left.
func (b *bed) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := b.lab.Down(ctx); err != nil {
		return err
	}
	room.Release(int64(len(b.lab.Hosts())))
	leaks, err := lab.Leaks(b.lab.Name(), b.held)
	if len(leaks) > 0 {
		err = errors.Join(err, fmt.Errorf("the lab left behind: %s", strings.Join(leaks, ", ")))
	}
	return err
}

// environ is the environment of commands that use the host from outside.
func (b *bed) environ() []string {
	return []string{
		"DOCKER_HOST=" + b.host.DockerHost(),
		"DOCKER_CONFIG=" + programs.cli.Config,
		"PATH=" + filepath.Dir(programs.cli.Path) + ":" + programs.bin + ":" + os.Getenv("PATH"),
		"COMPOSE_PROGRESS=quiet",
	}
}

func (b *bed) docker(ctx context.Context, args ...string) (string, error) {
	return b.command(ctx, programs.cli.Path, args...)
}

func (b *bed) particle(ctx context.Context, args ...string) (string, error) {
	return b.command(ctx, program("particle"), args...)
}

// prepare is a command that uses the host from outside.
func (b *bed) prepare(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), b.environ()...)
	return cmd
}

func (b *bed) command(ctx context.Context, name string, args ...string) (string, error) {
	cmd := b.prepare(ctx, name, args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s %s: %w: %s%s", filepath.Base(name), strings.Join(args, " "), err, out.String(), errs.String())
	}
	return strings.TrimSpace(out.String()), nil
}

// status asks the plugin, without the particle command in between.
func (b *bed) status(ctx context.Context) (runtimeapi.Status, error) {
	reply, err := runtimeapi.Call(ctx, b.host.Root()+hostpath.Socket, runtimeapi.Request{Status: &runtimeapi.Query{}})
	if err != nil {
		return runtimeapi.Status{}, err
	}
	return *reply.Status, nil
}

// pluginPid finds the plugin's process on the host.
func (b *bed) pluginPid() (int, error) {
	return b.pid(func(line string) bool { return strings.HasPrefix(line, "/bin/particle-docker-plugin") })
}

// hasWord finds processes by a word of their command lines.
func hasWord(word string) func(string) bool {
	return func(line string) bool { return strings.Contains(line, word) }
}

// pid finds a process on the machine by its command line, through its host's root.
func (b *bed) pid(is func(line string) bool) (int, error) {
	entries, err := os.ReadDir(b.host.Root() + "/proc")
	if err != nil {
		return 0, err
	}
	for _, entry := range entries {
		inside, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		line, err := os.ReadFile(fmt.Sprintf("%s/proc/%d/cmdline", b.host.Root(), inside))
		if err == nil && is(string(line)) {
			return inside, nil
		}
	}
	return 0, errors.New("no such process on " + b.host.Name())
}

// signalPlugin sends the plugin a signal, from inside its host.
func (b *bed) signalPlugin(ctx context.Context, s syscall.Signal) error {
	pid, err := b.pluginPid()
	if err != nil {
		return err
	}
	_, err = b.host.Exec(ctx, "kill", fmt.Sprintf("-%d", s), strconv.Itoa(pid))
	return err
}

// until repeats try until it succeeds, and returns its last error if it never
// does.
func until(ctx context.Context, try func() error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		began := time.Now()
		err := try()
		if err == nil {
			return nil
		}
		// A question that is dear is asked less often: what it waits for needs the machine.
		pause := time.NewTimer(max(100*time.Millisecond, 2*time.Since(began)))
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
			return fmt.Errorf("still after %s: %w", patience, err)
		}
	}
}

// clean says what is left of containers on the host while none is there.
func (b *bed) clean(ctx context.Context) error {
	var left []string
	status, err := b.status(ctx)
	if err != nil {
		return err
	}
	bound := 0
	for _, n := range status.Networks {
		bound++
		if n.Uplink != "" { // and has a gateway
			bound++
		}
		if len(n.Endpoints) > 0 {
			left = append(left, fmt.Sprintf("%d endpoints on network %s", len(n.Endpoints), n.Name))
		}
		for _, p := range n.Pools {
			if p.ID != "" && p.Used > 1 { // the gateway's
				left = append(left, fmt.Sprintf("%d addresses held in %s of network %s", p.Used, p.Subnet, n.Name))
			}
		}
	}
	mounts, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", b.host.Pid()))
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(mounts)) {
		// "default" is the host's own namespace, for containers in host mode.
		if key := strings.Fields(line)[4]; strings.HasPrefix(key, "/run/docker/netns/") && !strings.HasSuffix(key, "/default") {
			left = append(left, "sandbox key "+key)
		}
	}
	if n := strings.Count(string(mounts), hostpath.NamespaceDir+"/"); n != bound {
		left = append(left, fmt.Sprintf("%d namespaces bound, of networks and gateways, want %d", n, bound))
	}
	entries, err := os.ReadDir(b.host.Root() + hostpath.ResolvDir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	for _, entry := range entries {
		left = append(left, hostpath.ResolvDir+"/"+entry.Name())
	}
	if entries, err = os.ReadDir(b.host.Root() + hostpath.HolderDir); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	for _, entry := range entries {
		if name := entry.Name(); name != "sock" && name != "lock" {
			left = append(left, hostpath.HolderDir+"/"+name)
		}
	}
	if len(left) > 0 {
		return errors.New("left behind: " + strings.Join(left, "; "))
	}
	return nil
}
