// Package runtimeapi is the conversation between the plugin and the two host
// programs that stand beside it: particle-runtime and the particle command.
//
// One connection on a unix socket carries one request and one reply, each a
// JSON object on a line. It is no HTTP because particle-runtime is executed
// several times in the life of each container, and loading net/http would cost
// it more than all its other work.
//
// The order in a container's life:
//
//	place    runc create: is this container ours, and which namespace is its?
//	claim    runc start: this process in this cgroup now owns that address, or
//	         shares that of another container
//	release  runc delete: the process is gone
//
// Placing is asked for every container of a network that is not one of
// Docker's own, so its answer for a foreign network is part of the contract.
package runtimeapi
