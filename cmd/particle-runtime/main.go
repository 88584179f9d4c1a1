// Command particle-runtime is the OCI runtime that Docker runs in place of
// runc; see package shim.
package main

import (
	"os"
	"runtime"

	"github.com/particle-net/particle/internal/shim"
)

// The holder of address guards has threads that end with what they have become; the
// first of a process cannot, and would keep a container's root for good.
func init() { runtime.LockOSThread() }

func main() {
	os.Exit(shim.Main(os.Args, os.Environ()))
}
