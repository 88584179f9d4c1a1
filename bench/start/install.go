package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/particle-net/particle/internal/fault"
)

// installParticle builds the programs and runs `particle install` against the
// engine, as a user would.
func installParticle(ctx context.Context, dockerHost string, out io.Writer) error {
	dir, err := os.MkdirTemp("", "particle-start-")
	if err != nil {
		return &fault.Error{Op: "make directory for the programs", Err: err}
	}
	defer os.RemoveAll(dir)
	fmt.Fprintln(out, "building particle")
	for _, name := range []string{"particle", "particle-docker-plugin", "particle-runtime"} {
		if err := build(ctx, name, dir); err != nil {
			return err
		}
	}
	fmt.Fprintln(out, "installing particle")
	cmd := exec.CommandContext(ctx, filepath.Join(dir, "particle"), "install", "--yes")
	// An interrupt reaches the whole foreground group; the command then takes its
	// steps back, for which it needs the time.
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.Env = append(os.Environ(), "DOCKER_HOST="+dockerHost)
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Run(); err != nil {
		return &fault.Error{Op: "install particle", On: dockerHost, Err: err, Fix: "see what it said above"}
	}
	return nil
}

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
