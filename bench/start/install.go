package main

import (
	"context"
	"fmt"
	"io"

	"github.com/particle-net/particle/bench/rig"
	"github.com/particle-net/particle/internal/fault"
)

// installParticle builds the programs and runs `particle install` against the
// engine, as a user would.
func installParticle(ctx context.Context, dockerHost string, out io.Writer) error {
	fmt.Fprintln(out, "building particle")
	p, err := rig.BuildParticle(ctx)
	if err != nil {
		return err
	}
	defer p.Remove()
	fmt.Fprintln(out, "installing particle")
	cmd := p.Command(ctx, dockerHost, "install", "--yes")
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Run(); err != nil {
		return &fault.Error{Op: "install particle", On: dockerHost, Err: err, Fix: "see what it said above"}
	}
	return nil
}
