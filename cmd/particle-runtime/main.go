// Command particle-runtime is the OCI runtime that Docker runs in place of
// runc; see package shim.
package main

// Since Go 1.25 a program reads its cgroup and the whole mount table at its
// start, to size its threads; here that would cost half a millisecond in each
// execution, and more with every container on the host.
//
//go:debug containermaxprocs=0
//go:debug updatemaxprocs=0

import (
	"os"

	"github.com/particle-net/particle/internal/shim"
)

func main() {
	os.Exit(shim.Main(os.Args, os.Environ()))
}
