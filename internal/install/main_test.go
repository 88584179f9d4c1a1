package install_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/client"
	"github.com/google/go-cmp/cmp"

	"github.com/particle-net/particle/internal/install"
	"github.com/particle-net/particle/internal/lab"
	"github.com/particle-net/particle/internal/netnstest"
)

// programs is the directory of the three programs, built for the tests.
var programs string

func TestMain(m *testing.M) {
	lab.MaybeInit()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "programs-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	programs = dir
	if os.Geteuid() == 0 {
		if err := build(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	return m.Run()
}

// build puts the three programs into a directory, as the flags of go build make them.
func build(dir string, flags ...string) error {
	const from = "github.com/particle-net/particle/cmd/"
	args := append([]string{"build", "-trimpath", "-ldflags", "-s -w", "-o", dir + "/"}, flags...)
	cmd := exec.Command("go", append(args, from+"particle", from+"particle-docker-plugin", from+"particle-runtime")...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w\n%s", err, out)
	}
	return nil
}

// host is one Docker host of a lab.
type host struct {
	*lab.Host
	api *client.Client
}

// boot brings a host up whose daemon.json is the given text, to the byte, for a test
// that goes on beside others.
func boot(t *testing.T, name, engine, config string) host {
	t.Helper()
	t.Parallel()
	return bootAlone(t, name, engine, config)
}

// bootAlone is boot for a test that changes the environment.
func bootAlone(t *testing.T, name, engine, config string) host {
	t.Helper()
	netnstest.Require(t, os.Geteuid() == 0, "root, to boot Docker hosts")
	l, err := lab.Up(t.Context(), lab.Options{Name: "t-" + name, Engine: engine, Replace: true, Tied: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Down(context.Background()); err != nil {
			t.Error(err)
		}
	})
	h := host{Host: l.Hosts()[0]}
	h.write(t, "/etc/docker/daemon.json", config)
	if h.api, err = client.NewClientWithOpts(client.WithHost(h.DockerHost()), client.WithAPIVersionNegotiation()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = h.api.Close() })
	return h
}

func (h host) write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(h.Root()+path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func (h host) read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(h.Root() + path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// sh runs a script on the host and gives what it writes.
func (h host) sh(t *testing.T, script string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute) // a hang is to be told as such
	defer cancel()
	out, err := h.Exec(ctx, "sh", "-c", script)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// snapshot is everything on a host that an installation touches. What dockerd
// makes at the first container on the host's network, and keeps, is left out.
const snapshot = `
echo "# files"; for d in /etc/docker /etc/particle /usr/local/bin /var/lib/particle /run/particle /run/docker/plugins; do
	[ ! -e $d ] || find $d -printf '%p %y %m %U:%G\n'
done | sort
echo "# configuration"; sha256sum /etc/docker/daemon.json 2>&1
echo "# mounts"; cut -d' ' -f5 /proc/self/mountinfo | grep '^/run' | grep -vx /run/docker/netns/default | sort
echo "# links"; ip -o link | sed 's/^[0-9]*: \([^:]*\):.*/\1/' | sort
echo "# rules"; nft list tables | sort; iptables -S
echo "# docker"; docker image ls -aq --no-trunc; docker ps -aq; docker plugin ls -q; docker network ls --format '{{.Name}}' | sort; docker volume ls -q
docker info --format '{{.DefaultRuntime}} {{index .Runtimes "particle"}}' 2>/dev/null
`

// unchanged compares snapshots before and after.
func unchanged(t *testing.T, before, after string) {
	t.Helper()
	if diff := cmp.Diff(strings.Split(before, "\n"), strings.Split(after, "\n")); diff != "" {
		t.Errorf("the host is not as it was before (-before +after):\n%s", diff)
	}
}

// progress logs the steps.
func progress(t *testing.T) install.Progress {
	return func(s install.Step) { t.Logf("%s: %s %v (taken back: %v)", s.Name, s.Detail, s.Err, s.Undone) }
}

// command is one of this machine's, for the host's engine.
func (h host) command(program string, args ...string) *exec.Cmd {
	cmd := exec.Command(program, args...)
	cmd.Env = append(os.Environ(), "DOCKER_HOST="+h.DockerHost())
	return cmd
}

func (h host) install(t *testing.T, opts install.Options) {
	t.Helper()
	if opts.From == "" {
		opts.From = programs
	}
	if err := install.Run(t.Context(), h.api, opts, progress(t)); err != nil {
		t.Fatal(err)
	}
}

func (h host) uninstall(t *testing.T) {
	t.Helper()
	if err := install.Remove(t.Context(), h.api, install.RemoveOptions{}, progress(t)); err != nil {
		t.Fatal(err)
	}
}

// eventually waits for a condition, as long as the test may run.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !condition() {
		select {
		case <-tick.C:
		case <-t.Context().Done():
			t.Fatalf("waited in vain until %s", what)
		}
	}
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

func join(elem ...string) string { return filepath.Join(elem...) }
