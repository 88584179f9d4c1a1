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
	"github.com/particle-net/particle/internal/netnstest"
	"github.com/particle-net/particle/internal/runtimeapi"
	"github.com/particle-net/particle/topology"
)

// engineLimit bounds each engine's tests: a host, its image and some thirty
// containers.
const engineLimit = 5 * time.Minute

// engine is a real Docker host with the shim for its default runtime. Its
// network "jobs" is a bridge network that the test's plugin claims, so that
// what Docker does around the shim is real and needs no driver of ours.
type engine struct {
	ctx    context.Context
	host   *lab.Host
	jobs   string // the network's id
	plugin chan runtimeapi.Request
}

// Both regimes of Docker: 20.10 prepares the network before `runc create`, the
// current engine after it.
func TestDocker(t *testing.T) {
	netnstest.Require(t, os.Geteuid() == 0, "root")
	for _, name := range []string{lab.EngineDebian, lab.EngineCurrent} {
		t.Run(name, func(t *testing.T) {
			e := newEngine(t, name)
			t.Run("others without the plugin", e.testOthers)
			t.Run("member without the plugin", e.testNoPlugin)
			e.servePlugin(t)
			t.Run("others", e.testOthers)
			t.Run("member", e.testMember)
			t.Run("joiner", e.testJoiner)
			t.Run("refusals", e.testRefusals)
			t.Run("failed create", e.testFailedCreate)
			t.Run("failed claim", e.testFailedClaim)
		})
	}
}

func newEngine(t *testing.T, name string) *engine {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), engineLimit)
	t.Cleanup(cancel)
	l, err := lab.Up(ctx, lab.Options{Name: "shim-" + name, Engine: name, Replace: true, Tied: true, Progress: os.Stderr})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Down(context.WithoutCancel(ctx)); err != nil {
			t.Error(err)
		}
	})
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
		place = runtimeapi.Placement{Member: true, Network: topology.NetworkID(e.jobs), NetworkName: "jobs", Namespace: "/run/particle/netns/" + e.jobs}
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

func (e *engine) testOthers(t *testing.T) {
	for _, network := range []string{"bridge", "plain", "none", "host"} {
		run := []string{"run", "--rm", "--network", network, lab.TestImage}
		if status := e.docker(t, append(run, "cat", "/proc/self/status")...); !netCaps(t, status) {
			t.Errorf("network %s: Docker's default capabilities were taken", network)
		}
		if code, said := e.fails(t, append(run, "sh", "-c", "exit 7")...); code != 7 || said != "" {
			t.Errorf("network %s: exit code %d, %q", network, code, said)
		}
		if code, _ := e.fails(t, append(run, "/nonexistent")...); code != 127 {
			t.Errorf("network %s: exit code %d of a missing program", network, code)
		}
	}
	id := e.docker(t, "run", "-d", "--init", "--network", "plain", lab.TestImage, "sleep", "600")
	if out := e.docker(t, "exec", id, "sh", "-c", "cat /proc/self/status; echo $0"); !netCaps(t, out) {
		t.Error("exec: Docker's default capabilities were taken")
	}
	if code, _ := e.fails(t, "exec", id, "sh", "-c", "exit 9"); code != 9 {
		t.Errorf("exec: exit code %d", code)
	}
	for _, command := range []string{"pause", "unpause", "stop", "start", "restart", "kill", "rm"} {
		e.docker(t, command, id)
	}
}

func (e *engine) testNoPlugin(t *testing.T) {
	const want = "network jobs is a particle network, and the particle plugin does not answer: "
	// A first start has no network id on disk, a network the index knows.
	e.in(t, "sh", "-c", "echo "+e.jobs+" jobs >/run/particle/networks")
	if _, said := e.fails(t, "run", "--rm", "--network", "jobs", lab.TestImage, "true"); !strings.Contains(said, want) {
		t.Errorf("docker run said %q", said)
	}
}

func (e *engine) testMember(t *testing.T) {
	id := e.docker(t, "run", "-d", "--init", "--network", "jobs", "--name", "member", "--hostname", "own", "--add-host", "zz:10.77.0.99", lab.TestImage, "sleep", "600")
	claim := await(t, e, claimOf(id)).Claim
	address := e.docker(t, "inspect", "-f", "{{.NetworkSettings.Networks.jobs.IPAddress}}", id)
	found := slices.ContainsFunc(claim.Hosts, func(l runtimeapi.HostLine) bool {
		return l.Addr.String() == address && slices.Contains(l.Names, "own")
	})
	if !found || claim.Hostname != "own" || claim.Name != "member" || string(claim.Network) != e.jobs {
		t.Errorf("claim %+v does not have %s for own", claim, address)
	}
	if got := e.docker(t, "inspect", "-f", "{{.State.Pid}}", id); got != strconv.Itoa(claim.Pid) {
		t.Errorf("claim for pid %d, Docker says %s", claim.Pid, got)
	}
	if !strings.HasSuffix(claim.Cgroup, id) {
		t.Errorf("claim for cgroup %q", claim.Cgroup)
	}
	for _, exec := range [][]string{{"exec", id}, {"exec", "--privileged", id}, {"exec", "-u", "nobody", id}} {
		if exec[1] == "--privileged" && e.fullCaps(t) == "" {
			continue
		}
		out := e.docker(t, append(exec, "sh", "-c", "readlink /proc/self/ns/net; cat /proc/self/status")...)
		netns, status, _ := strings.Cut(out, "\n")
		if netns != e.netns(t) || netCaps(t, status) {
			t.Errorf("docker %v: in %s with %s", exec, netns, status)
		}
	}
	if status := e.docker(t, "exec", id, "cat", "/proc/1/status"); netCaps(t, status) {
		t.Errorf("the container's first process has %s", status)
	}
	if conf := e.docker(t, "exec", id, "cat", "/etc/resolv.conf"); strings.Contains(conf, "127.0.0.11") || !strings.Contains(conf, "nameserver") {
		t.Errorf("resolv.conf: %q", conf)
	}
	e.docker(t, "stop", "-t", "1", id)
	await(t, e, releaseOf(id))
	e.noResolvConf(t, id)
	e.docker(t, "start", id)
	await(t, e, claimOf(id))
	e.docker(t, "rm", "-f", id)
	await(t, e, releaseOf(id))
	e.noResolvConf(t, id)
}

// fullCaps is empty where `docker exec --privileged` itself is impossible: the
// runtime must be able to give all capabilities the engine knows.
func (e *engine) fullCaps(t *testing.T) string {
	t.Helper()
	out, err := e.host.Exec(e.ctx, "docker", "run", "--rm", "--privileged", lab.TestImage, "echo", "yes")
	if err != nil {
		t.Logf("this machine starts no privileged container: %v", err)
		return ""
	}
	return out
}

func (e *engine) noResolvConf(t *testing.T, id string) {
	t.Helper()
	if _, err := os.Stat(e.host.Root() + "/run/particle/resolv/" + id); err == nil {
		t.Errorf("resolv.conf of %s is left", id)
	}
}

func (e *engine) testJoiner(t *testing.T) {
	id := e.docker(t, "run", "-d", "--init", "--network", "jobs", lab.TestImage, "sleep", "600")
	first := e.docker(t, "run", "-d", "--init", "--network", "container:"+id, lab.TestImage, "sleep", "600")
	for _, target := range []string{id, first} {
		out := e.docker(t, "run", "--rm", "--network", "container:"+target, lab.TestImage, "sh", "-c", "readlink /proc/self/ns/net; cat /proc/self/status")
		netns, status, _ := strings.Cut(out, "\n")
		if netns != e.netns(t) || netCaps(t, status) {
			t.Errorf("joined: in %s with %s", netns, status)
		}
		conf := e.docker(t, "run", "--rm", "--network", "container:"+target, lab.TestImage, "cat", "/etc/resolv.conf")
		if want := e.docker(t, "exec", id, "cat", "/etc/resolv.conf"); conf != want {
			t.Errorf("resolv.conf of the joiner is %q, of the other %q", conf, want)
		}
	}
	if status := e.docker(t, "exec", first, "cat", "/proc/self/status"); netCaps(t, status) {
		t.Errorf("exec in a joiner: %s", status)
	}
	_, said := e.fails(t, "run", "--rm", "--cap-add", "NET_ADMIN", "--network", "container:"+id, lab.TestImage, "true")
	if want := "--cap-add NET_ADMIN would let it change or listen in on the network of the container it joins"; !strings.Contains(said, want) {
		t.Errorf("docker run said %q", said)
	}
	e.docker(t, "rm", "-f", first, id)
	await(t, e, releaseOf(id))
	// A joiner of a stranger keeps what it has.
	id = e.docker(t, "run", "-d", "--init", "--network", "plain", lab.TestImage, "sleep", "600")
	if status := e.docker(t, "run", "--rm", "--network", "container:"+id, lab.TestImage, "cat", "/proc/self/status"); !netCaps(t, status) {
		t.Error("a joiner of another network's container was confined")
	}
	e.docker(t, "rm", "-f", id)
}

func (e *engine) testRefusals(t *testing.T) {
	for flags, want := range map[string]string{
		"--privileged":                    "start container NAME: --privileged would let it change network jobs for all containers there; remove --privileged",
		"--cap-add NET_RAW":               "would let it change or listen in on network jobs, which it shares with other containers; remove it",
		"--cap-add ALL":                   "--cap-add ALL would let it change or listen in on network jobs, which it shares with other containers; add --cap-drop NET_ADMIN --cap-drop NET_RAW",
		"--sysctl net.core.somaxconn=100": "start container NAME: --sysctl net.core.somaxconn would hold for all containers on network jobs; remove it",
		"-p 8080:80":                      "start container NAME: publishing ports (80/tcp) is not possible on network jobs; remove -p",
		"-P":                              "start container NAME: publishing ports is not possible on network jobs; remove -P",
	} {
		args := append(append([]string{"run", "--rm", "--name", "refused", "--network", "jobs"}, strings.Fields(flags)...), lab.TestImage, "true")
		code, said := e.fails(t, args...)
		if want := strings.Replace(want, "NAME", "refused", 1); !strings.Contains(said, want) {
			t.Errorf("docker run %s: exit code %d, said\n%s\nwant\n%s", flags, code, said, want)
		}
		t.Logf("docker run %s: exit code %d\n%s", flags, code, said)
	}
	id := e.docker(t, "create", "--network", "jobs", "--name", "refused", lab.TestImage, "true")
	e.docker(t, "network", "connect", "plain", id)
	if _, said := e.fails(t, "start", id); !strings.Contains(said, "it is connected to jobs, plain; disconnect it from all but one with `docker network disconnect`") {
		t.Errorf("docker start said %q", said)
	}
	e.docker(t, "network", "disconnect", "plain", id)
	e.docker(t, "start", id)
	await(t, e, releaseOf(id))
	e.docker(t, "rm", "-f", id)
}

// When the runtime fails after the shim has done its part, nothing is left.
func (e *engine) testFailedCreate(t *testing.T) {
	id := e.docker(t, "create", "--network", "jobs", lab.TestImage, "/nonexistent")
	code, said := e.fails(t, "start", "-a", id)
	if !strings.Contains(said, "/nonexistent") {
		t.Errorf("exit code %d, said %q", code, said)
	}
	await(t, e, releaseOf(id))
	e.noResolvConf(t, id)
	e.docker(t, "rm", id)
}

func (e *engine) testFailedClaim(t *testing.T) {
	id := e.docker(t, "create", "--network", "jobs", "--name", "unlucky", lab.TestImage, "true")
	code, said := e.fails(t, "start", "-a", id)
	if want := "start container unlucky: address 10.77.0.9: held by another container; remove that"; !strings.Contains(said, want) {
		t.Errorf("exit code %d, said %q", code, said)
	}
	t.Logf("exit code %d\n%s", code, said)
	pid := await(t, e, claimOf(id)).Claim.Pid
	e.eventually(t, "the container's process ends", func() bool {
		_, err := os.Stat(filepath.Join(e.host.Root(), "proc", strconv.Itoa(pid)))
		return err != nil
	})
	e.noResolvConf(t, id)
	e.docker(t, "rename", id, "lucky")
	e.docker(t, "start", "-a", id)
	await(t, e, releaseOf(id))
	e.docker(t, "rm", id)
}
