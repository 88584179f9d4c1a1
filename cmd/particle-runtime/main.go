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
