// particle-vm runs a program under a stock kernel of Debian's, in a virtual
// machine on this machine's files (package internal/vm):
//
//	particle-vm -kernel 6.1 uname -r
//	go test -exec 'bin/particle-vm -kernel 6.12' ./overlay
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/particle-net/particle/internal/vm"
)

func main() {
	vm.MaybeInit()
	o := vm.Options{Stdout: os.Stdout, Stderr: os.Stderr}
	flag.StringVar(&o.Kernel, "kernel", "6.1", "series of Debian's kernel")
	flag.StringVar(&o.Accel, "accel", "", "kvm or tcg (default: the faster one that works)")
	flag.IntVar(&o.Memory, "memory", 2048, "in MiB")
	flag.IntVar(&o.CPUs, "cpus", 2, "processors")
	flag.DurationVar(&o.Timeout, "timeout", 10*time.Minute, "for the boot and the program")
	flag.Func("scratch", "a directory that is to be in memory, and empty (may be repeated)", func(dir string) error {
		o.Scratch = append(o.Scratch, dir)
		return nil
	})
	flag.Usage = func() {
		fmt.Fprintln(flag.CommandLine.Output(), "usage: particle-vm [flags] PROGRAM [ARGUMENTS]")
		flag.PrintDefaults()
	}
	flag.Parse()
	if o.Argv = flag.Args(); len(o.Argv) == 0 {
		flag.Usage()
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	status, err := vm.Run(ctx, o)
	if err != nil {
		fmt.Fprintln(os.Stderr, "particle-vm:", err)
		os.Exit(1)
	}
	os.Exit(status)
}
