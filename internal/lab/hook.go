package lab

import (
	"fmt"
	"os"

	"github.com/particle-net/particle/internal/fault"
)

// The lab runs the calling program again under these names (argv[0]).
const (
	hookInit  = "particle-lab-init"  // process 1 of a node, waiting for its creator
	hookBoot  = "particle-lab-boot"  // the same process, in its own cgroup namespace
	hookServe = "particle-lab-serve" // a process beside systemd
	hookEnter = "particle-lab-enter" // a command on its way into a node
)

// MaybeInit turns the process into a lab's init or command runner when the lab
// started it as one, and then never returns. In every other process it does
// nothing. Call it before anything else in main or TestMain of a program that
// uses this package: flags would otherwise be parsed twice.
func MaybeInit() {
	if len(os.Args) == 0 {
		return
	}
	var err error
	switch os.Args[0] {
	case hookInit:
		err = runInit(os.Args[1:])
	case hookBoot:
		err = runBoot(os.Args[1:])
	case hookServe:
		err = runServe(os.Args[1:])
	case hookEnter:
		var code int
		if code, err = runEnter(os.Args[1:]); err == nil {
			os.Exit(code)
		}
	default:
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "particle-lab:", err)
		os.Exit(125)
	}
	os.Exit(0)
}

// checkHook refuses to work in a process that MaybeInit should have taken over:
// without this, a program that forgot the call would start itself without end.
func checkHook(op string) error {
	switch os.Args[0] {
	case hookInit, hookBoot, hookServe, hookEnter:
		return fault.New(op, "", "this process was started as a node's init but runs as a program", "call lab.MaybeInit first in main or TestMain")
	}
	return nil
}
