package lab

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/particle-net/particle"
	"github.com/particle-net/particle/internal/fault"
)

// sourceDir finds the checkout of the module, which holds the probe and the engine's pins:
// around the working directory, as for tests, or around the program itself.
func sourceDir() (string, error) {
	var starts []string
	if dir, err := os.Getwd(); err == nil {
		starts = append(starts, dir)
	}
	if self, err := os.Executable(); err == nil {
		starts = append(starts, filepath.Dir(self))
	}
	for _, dir := range starts {
		for {
			raw, err := os.ReadFile(filepath.Join(dir, "go.mod"))
			if err == nil && strings.HasPrefix(string(raw), "module "+particle.Module+"\n") {
				return dir, nil
			}
			if dir == filepath.Dir(dir) {
				break
			}
			dir = filepath.Dir(dir)
		}
	}
	return "", fault.New("find source", particle.Module, "the working directory is in no checkout of it", "run it inside a checkout")
}

// goCommand runs the go command in a module's directory, with additions to its
// environment, and returns what it printed.
func goCommand(ctx context.Context, dir string, env []string, args ...string) (string, error) {
	tool, err := exec.LookPath("go")
	if err != nil {
		tool = "/usr/local/go/bin/go" // where it is installed by hand; sudo drops it from PATH
	}
	cmd := exec.CommandContext(ctx, tool, args...)
	cmd.Dir = dir
	// A workspace or flags of the caller must not change what is built.
	cmd.Env = append(os.Environ(), "GOWORK=off", "GOFLAGS=-buildvcs=false")
	cmd.Env = append(cmd.Env, env...)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		return "", &fault.Error{Op: "go " + args[0], On: filepath.Base(dir), Err: fmt.Errorf("%w: %s", err, bytes.TrimSpace(errs.Bytes())),
			Fix: "install Go and check that the module proxy can be reached"}
	}
	return strings.TrimSpace(string(out)), nil
}
