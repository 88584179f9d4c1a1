// Since Go 1.25 a program reads its cgroup and the whole mount table at its
// start, to size its threads. This one runs several times in a container's life
// and would pay half a millisecond each time, and more with every container.
//
//go:debug containermaxprocs=0
//go:debug updatemaxprocs=0

// Command particle-runtime is the OCI runtime that Docker runs in place of
// runc; see package shim.
package main

import (
	"os"

	"github.com/particle-net/particle/internal/shim"
)

func main() {
	os.Exit(shim.Main(os.Args, os.Environ()))
}
