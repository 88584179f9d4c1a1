package rig

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

// MainUntilInterrupted is Main for a program that takes down itself what it has set up,
// when ctx ends: at the first interrupt.
func MainUntilInterrupted(name string, run func(ctx context.Context, args []string) error) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// The second interrupt ends the program at once; the lab's processes end with it.
	context.AfterFunc(ctx, stop)
	err := run(ctx, os.Args[1:])
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, name+":", err)
		os.Exit(1)
	}
}

// Removed is how a run has ended, of which remove takes down what it has set up.
func Removed(ctx context.Context, err error, remove func(context.Context) error) error {
	interrupted := ctx.Err() != nil
	left := remove(ctx)
	if interrupted && left == nil {
		return errors.New("interrupted; everything is removed")
	}
	return errors.Join(err, left)
}
