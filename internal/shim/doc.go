// Package shim is particle-runtime: the OCI runtime that dockerd's containerd
// executes for every container, and that becomes runc as soon as it has done
// its part.
//
// The model is a wrapper without a life of its own. Each invocation reads what
// it needs, edits a file or tells the plugin something, and ends in execve of
// the real runtime with the same arguments, environment and descriptors, so
// that exit codes and signals are the runtime's. What it does by command:
//
//	create   puts a container of a particle network into its tenant namespace
//	         by editing the bundle's config.json; leaves it a namespace of its own
//	         if it asks for what cannot be shared; or refuses it
//	start    tells the plugin which process and cgroup own the address, or share
//	         it (--network container:X)
//	exec     takes capabilities that cannot be shared from the process that joins,
//	         in a tenant namespace
//	delete   tells the plugin that the process is gone
//
// In a tenant namespace, create and exec also put a filter of system calls on the
// shim itself (package seccomp/filter), which the container's processes inherit.
//
// All other commands, and whatever is not understood, go to the runtime as they
// came.
//
// Invariants:
//
//   - A container that is not on a particle network sees no difference: its
//     files are not written and its command line is not changed, whether the
//     plugin runs or not. The plugin's own container is one of them.
//   - A container of a particle network starts confined or not at all.
//   - No state is kept between the commands but what the runtime itself keeps:
//     the namespace's path and four annotations, which runc stores in the
//     container's state.json. That a container is ours is read from there.
//   - Every wait is bounded.
//
// It runs several times in each container's life and dockerd waits for it, so
// its import graph is kept small: no HTTP, no logging framework, no Docker
// client. A test holds it to that.
package shim
