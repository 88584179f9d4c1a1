package lab

import (
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/particle-net/particle/internal/fault"
)

// DockerCLI is a docker command of the machine with the compose plugin, new enough
// for every engine of the lab.
type DockerCLI struct {
	Path   string // the docker binary
	Config string // DOCKER_CONFIG: a directory whose cli-plugins holds docker-compose
}

// CLI returns the docker command, building it the first time (about two minutes).
func CLI(ctx context.Context, progress io.Writer) (DockerCLI, error) {
	if progress == nil {
		progress = io.Discard
	}
	dir, err := cliBundle().ensure(ctx, progress)
	return DockerCLI{Path: filepath.Join(dir, "bin", "docker"), Config: filepath.Join(dir, "config")}, err
}

// finishCLI moves compose to where docker looks for plugins.
func finishCLI(dir string) error {
	plugins := filepath.Join(dir, "config", "cli-plugins")
	if err := os.MkdirAll(plugins, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "config", "config.json"), []byte("{}\n"), 0o644); err != nil {
		return err
	}
	return os.Rename(filepath.Join(dir, "bin", "docker-compose"), filepath.Join(plugins, "docker-compose"))
}

// Command prepares "docker args..." against a host, run on the machine. When ctx
// ends, the command is killed.
func (c DockerCLI) Command(ctx context.Context, h *Host, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, c.Path, args...)
	cmd.Env = append(os.Environ(), "DOCKER_HOST="+h.DockerHost(), "DOCKER_CONFIG="+c.Config, "DOCKER_CONTEXT=", "DOCKER_CLI_HINTS=false")
	return cmd
}

// currentEngine builds the current engine, or finds it built.
func currentEngine(ctx context.Context, progress io.Writer) (Engine, error) {
	if err := installPackages(ctx, progress, map[string]string{"/usr/sbin/iptables": "iptables"}); err != nil {
		return Engine{}, err
	}
	dir, err := engineBundle().ensure(ctx, progress)
	if err != nil {
		return Engine{}, err
	}
	cli, err := CLI(ctx, progress)
	if err != nil {
		return Engine{}, err
	}
	return Engine{Name: EngineCurrent, Bin: filepath.Join(dir, "bin"), CLI: filepath.Dir(cli.Config)}, nil
}

// tiniFile is a complete init for containers; dockerd calls it docker-init.
const tiniFile = "/usr/bin/tini-static"

func finishEngine(dir string) error {
	raw, err := os.ReadFile(tiniFile)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "bin", "docker-init"), raw, 0o755)
	}
	if err != nil {
		return &fault.Error{Op: "copy", On: tiniFile, Err: err, Fix: "install Debian's tini"}
	}
	return nil
}
