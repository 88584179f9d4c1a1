package rig

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/particle-net/particle/internal/fault"
)

// Particle is this repository's programs, to be used on hosts as anybody would.
type Particle struct{ dir string }

// BuildParticle compiles them. The caller removes them.
func BuildParticle(ctx context.Context) (p Particle, err error) {
	if p.dir, err = os.MkdirTemp("", "particle-bench-"); err != nil {
		return p, &fault.Error{Op: "make directory for the programs", Err: err}
	}
	for _, name := range []string{"particle", "particle-docker-plugin", "particle-runtime"} {
		if err := build(ctx, name, p.dir); err != nil {
			p.Remove()
			return p, err
		}
	}
	return p, nil
}

// Remove removes the programs.
func (p Particle) Remove() { _ = os.RemoveAll(p.dir) }

// build compiles one program static: the plugin's root file system has no C library.
func build(ctx context.Context, name, dir string) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", filepath.Join(dir, name),
		"github.com/particle-net/particle/cmd/"+name)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if said, err := cmd.CombinedOutput(); err != nil {
		return &fault.Error{Op: "build", On: name, Err: fmt.Errorf("%w: %s", err, bytes.TrimSpace(said)),
			Fix: "run this inside a checkout, with go in PATH"}
	}
	return nil
}

// Command prepares the particle command for an engine.
func (p Particle) Command(ctx context.Context, dockerHost string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(p.dir, "particle"), args...)
	// An interrupt reaches the whole foreground group; the command then takes its
	// steps back, for which it needs the time.
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.Env = append(os.Environ(), "DOCKER_HOST="+dockerHost)
	return cmd
}
