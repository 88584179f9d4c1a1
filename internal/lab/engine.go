package lab

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/particle-net/particle/internal/fault"
)

// The engines a host can run.
const (
	EngineDebian  = "debian"  // the distribution's docker.io: 20.10.24 on Debian 12
	EngineCurrent = "current" // the newest engine, built from its Go modules
)

// standardPath is PATH on the machine and on hosts.
const standardPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Engine is a set of Docker programs.
type Engine struct {
	Name string `json:"name"`
	Bin  string `json:"bin,omitempty"` // the machine's directory of them; "" when they are in standardPath
	CLI  string `json:"cli,omitempty"` // the machine's directory of the docker command (bin, config); same rule
}

// binds maps the engine's directories into a host: they may lie on a file system
// that the root overlay does not cover.
func (e Engine) binds() map[string]string {
	binds := map[string]string{}
	if e.Bin != "" {
		binds["engine"] = e.Bin
	}
	if e.CLI != "" {
		binds["cli"] = e.CLI
	}
	return binds
}

// environ is what a shell inside a host needs to find the engine's own programs
// before those of the machine.
func (e Engine) environ() []string {
	path := standardPath
	var env []string
	if e.CLI != "" {
		path = filepath.Join(toolsInside, "cli", "bin") + ":" + path
		env = append(env, "DOCKER_CONFIG="+filepath.Join(toolsInside, "cli", "config"))
	}
	if e.Bin != "" {
		path = filepath.Join(toolsInside, "engine") + ":" + path
	}
	return append(env, "PATH="+path)
}

// dockerd is the path of the daemon inside a host.
func (e Engine) dockerd() string {
	if e.Bin != "" {
		return filepath.Join(toolsInside, "engine", "dockerd")
	}
	return "/usr/sbin/dockerd"
}

// FindEngine returns an engine by name, installing or building it if the machine
// does not have it yet; lines on that go to progress.
func FindEngine(ctx context.Context, name string, progress io.Writer) (Engine, error) {
	switch name {
	case EngineDebian:
		return Engine{Name: name}, installPackages(ctx, progress, map[string]string{
			"/usr/sbin/dockerd": "docker.io", "/usr/sbin/iptables": "iptables",
		})
	case EngineCurrent:
		return currentEngine(ctx, progress)
	}
	return Engine{}, fault.New("find engine", name, "no such engine", "use "+EngineDebian+" or "+EngineCurrent)
}

// installPackages installs the Debian package of each file that is missing.
func installPackages(ctx context.Context, progress io.Writer, packageOf map[string]string) error {
	var missing []string
	for file, pkg := range packageOf {
		if _, err := os.Stat(file); err != nil {
			missing = append(missing, pkg)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	slices.Sort(missing)
	fmt.Fprintf(progress, "installing %s\n", strings.Join(missing, ", "))
	for _, args := range [][]string{
		{"update", "-q"}, // a fresh machine has no lists of packages
		append([]string{"install", "-y", "-q", "--no-install-recommends"}, missing...),
	} {
		cmd := exec.CommandContext(ctx, "apt-get", args...)
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
		cmd.Stdout, cmd.Stderr = progress, progress
		if err := cmd.Run(); err != nil {
			return &fault.Error{Op: "install packages", On: strings.Join(missing, " "), Err: err, Fix: "install them by hand"}
		}
	}
	return nil
}
