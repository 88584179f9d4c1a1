package shim

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/particle-net/particle/internal/lab"
	"github.com/particle-net/particle/internal/runtimeapi"
	"github.com/particle-net/particle/topology"
)

// engineLimit bounds each engine's tests: an image and some thirty containers. The
// host comes before: its engine may have to be built.
const engineLimit = 15 * time.Minute

// engine is a real Docker host with the shim for its default runtime. Its
// network "jobs" is a bridge network that the test's plugin claims, so that
// what Docker does around the shim is real and needs no driver of ours.
type engine struct {
	ctx    context.Context
	host   *lab.Host
	jobs   string // the network's id
	plugin chan runtimeapi.Request
}

func newEngine(t *testing.T, name string) *engine {
	t.Helper()
	l, err := lab.Up(t.Context(), lab.Options{Name: "shim-" + name, Engine: name, Replace: true, Tied: true, Progress: os.Stderr})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Down(context.Background()); err != nil {
			t.Error(err)
		}
	})
	ctx, cancel := context.WithTimeout(context.Background(), engineLimit)
	t.Cleanup(cancel)
	e := &engine{ctx: ctx, host: l.Hosts()[0], plugin: make(chan runtimeapi.Request, 1000)}
	e.install(t)
	if err := lab.LoadImage(ctx, e.host); err != nil {
		t.Fatal(err)
	}
	e.jobs = e.docker(t, "network", "create", "jobs")
	e.docker(t, "network", "create", "plain")
	e.in(t, "mkdir", "-p", "/run/particle/netns")
	e.in(t, "touch", "/run/particle/netns/"+e.jobs)
	e.in(t, "unshare", "--net=/run/particle/netns/"+e.jobs, "true")
	return e
}

// install makes the shim the default runtime. There is no runtime.json: runc is
// the engine's own, found in PATH.
func (e *engine) install(t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	build := exec.CommandContext(e.ctx, "go", "build", "-o", filepath.Join(dir, "particle-runtime"), "github.com/particle-net/particle/cmd/particle-runtime")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	config := []byte(`{"default-runtime":"particle","runtimes":{"particle":{"path":"/usr/local/bin/particle-runtime"}}}`)
	for _, err := range []error{
		os.WriteFile(filepath.Join(dir, "daemon.json"), config, 0o644),
		e.host.CopyIn(filepath.Join(dir, "particle-runtime"), "/usr/local/bin/particle-runtime"),
		e.host.CopyIn(filepath.Join(dir, "daemon.json"), "/etc/docker/daemon.json"),
		e.host.StopDockerd(e.ctx),
		e.host.StartDockerd(e.ctx),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
}

// servePlugin answers on the host's plugin socket that "jobs" is ours.
func (e *engine) servePlugin(t *testing.T) {
	t.Helper()
	l, err := runtimeapi.Listen(e.host.Root() + "/run/particle/particle.sock")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(e.ctx)
	done := make(chan error, 1)
	go func() { done <- runtimeapi.Serve(ctx, l, e, time.Minute) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func (e *engine) Handle(_ context.Context, req runtimeapi.Request) (runtimeapi.Reply, error) {
	e.plugin <- req
	if req.Claim != nil && req.Claim.Name == "unlucky" {
		return runtimeapi.Reply{}, errors.New("address 10.77.0.9: held by another container; remove that")
	}
	place := runtimeapi.Placement{}
	if req.Place != nil && slices.ContainsFunc(req.Place.Networks, func(n runtimeapi.NetworkRef) bool { return n.Name == "jobs" }) {
		place = runtimeapi.Placement{Member: true, Network: topology.NetworkID(e.jobs), NetworkName: "jobs", Namespace: "/run/particle/netns/" + e.jobs,
			Own: req.Place.Own}
	}
	return runtimeapi.Reply{Place: &place}, nil
}

// await returns the next request that is wanted and drops those before it.
func await(t *testing.T, e *engine, want func(runtimeapi.Request) bool) runtimeapi.Request {
	t.Helper()
	for {
		select {
		case req := <-e.plugin:
			if want(req) {
				return req
			}
		case <-e.ctx.Done():
			t.Fatal("the plugin was never asked")
		}
	}
}

// eventually asks until the answer is yes.
func (e *engine) eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for !is() {
		select {
		case <-ticker.C:
		case <-e.ctx.Done():
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

func releaseOf(id string) func(runtimeapi.Request) bool {
	return func(r runtimeapi.Request) bool { return r.Release != nil && string(r.Release.Container) == id }
}

func claimOf(id string) func(runtimeapi.Request) bool {
	return func(r runtimeapi.Request) bool { return r.Claim != nil && string(r.Claim.Container) == id }
}

func (e *engine) in(t *testing.T, argv ...string) string {
	t.Helper()
	out, err := e.host.Exec(e.ctx, argv...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func (e *engine) docker(t *testing.T, args ...string) string {
	t.Helper()
	return e.in(t, append([]string{"docker"}, args...)...)
}

// fails runs a docker command that must fail and returns its code and what it
// says.
func (e *engine) fails(t *testing.T, args ...string) (int, string) {
	t.Helper()
	cmd := e.host.Command(e.ctx, append([]string{"docker"}, args...)...)
	var said bytes.Buffer
	cmd.Stderr = &said
	var exit *exec.ExitError
	if err := cmd.Run(); !errors.As(err, &exit) {
		t.Fatalf("docker %s: %v, want a failure", strings.Join(args, " "), err)
	}
	return exit.ExitCode(), said.String()
}

// netns is the inode of the tenant namespace as a process in it sees it.
func (e *engine) netns(t *testing.T) string {
	t.Helper()
	return fmt.Sprintf("net:[%s]", e.in(t, "stat", "-L", "-c", "%i", "/run/particle/netns/"+e.jobs))
}

// netCaps says whether the text of /proc/PID/status has CAP_NET_ADMIN (12) or
// CAP_NET_RAW (13) in any set.
func netCaps(t *testing.T, status string) bool {
	t.Helper()
	sets := 0
	held := false
	for line := range strings.Lines(status) {
		name, value, _ := strings.Cut(line, ":")
		if !strings.HasPrefix(name, "Cap") {
			continue
		}
		bits, err := strconv.ParseUint(strings.TrimSpace(value), 16, 64)
		if err != nil {
			t.Fatal(err)
		}
		sets++
		held = held || bits&(1<<12|1<<13) != 0
	}
	if sets != 5 {
		t.Fatalf("%d capability sets in %q", sets, status)
	}
	return held
}
