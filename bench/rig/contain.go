package rig

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
)

// contained marks the process that runs in its own namespaces.
const contained = "BENCH_CONTAINED"

// RunDir is where networks and sandbox keys are bound: in memory, as on a Docker
// host.
const RunDir = "/run"

// Main runs a program of that name and ends as it does.
func Main(name string, run func(args []string) error) {
	err := run(os.Args[1:])
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		os.Exit(exit.ExitCode())
	case err != nil:
		fmt.Fprintln(os.Stderr, name+":", err)
		os.Exit(1)
	}
}

// Contain runs the program again, with the same arguments, in mount and network
// namespaces that end with it; there, it calls measure.
func Contain(args []string, measure func() error) error {
	if os.Getenv(contained) == "" {
		return again(args)
	}
	if err := syscall.Mount("tmpfs", RunDir, "tmpfs", 0, ""); err != nil {
		return fmt.Errorf("mount %s: %w", RunDir, err)
	}
	return measure()
}

func again(args []string) error {
	self := exec.Command("/proc/self/exe", args...)
	self.Env = append(os.Environ(), contained+"=1")
	self.Stdin, self.Stdout, self.Stderr = os.Stdin, os.Stdout, os.Stderr
	self.SysProcAttr = &syscall.SysProcAttr{
		Unshareflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET, // os/exec makes mounts private then
		Pdeathsig:    syscall.SIGKILL,
	}
	err := self.Run()
	if errors.Is(err, syscall.EPERM) {
		return fmt.Errorf("make namespaces: %w; run as root", err)
	}
	return err
}

// OnThread runs fn on a thread that ends with it.
func OnThread(fn func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked
		result <- fn()
	}()
	return <-result
}
