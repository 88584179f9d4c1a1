// Package lab boots real Docker hosts on one Linux machine, inside namespaces,
// so that multi-host networking can be tried, tested and measured on a laptop.
//
// # Model
//
// A lab has a name and consists of nodes. A node is a set of namespaces held by
// a small init process (process 1 of its pid namespace):
//
//	machine ──┬── internet   mount pid net uts ipc         bridge "underlay", 198.51.100.254/24,
//	          │                                            2001:db8:51::fe/64; lo: 203.0.113.10/32,
//	          │                                            2001:db8:203::10/128
//	          ├── h1         mount pid net uts ipc cgroup  eth0 198.51.100.1/24, 2001:db8:51::1/64
//	          └── h2 ...                                   eth0 198.51.100.2/24, 2001:db8:51::2/64
//
// A host's root is an overlay over the machine's root, so everything the machine
// has is there and everything the host changes is its own. Its /run is a fresh
// tmpfs at every boot, its mounts are shared as on a systemd machine, and
// /var/lib/docker is a plain directory (the overlay2 driver cannot stand on
// overlayfs). Its cgroup namespace makes one subtree per hierarchy the host's
// root, so that whatever dockerd, its plugins or eBPF programs create there
// belongs to the host and can be removed with it.
//
// With Options.Systemd the host's process 1 becomes systemd, as on most machines with
// Docker: dockerd is a scope of its own in /system.slice, containers are scopes beside
// it, and cgroups are of version 2 alone, which on a machine that has version 1 as well
// are without the controllers that are there. It boots a target that asks for nothing.
// What the init does else, a process of the node does.
//
// # Invariants
//
//   - Nothing is made in the machine's own network or mount namespace.
//   - Every resource follows from the lab's name and a recorded process, and is
//     recorded before it exists: Down needs no memory of how far Up came.
//   - An init waits for its creator to record it before it does anything, and
//     ends when the creator dies first.
//   - When an init ends, the kernel ends every process of its pid namespace, and
//     with them the mounts, links and namespaces of the node. Only the state
//     directory and the cgroup directories remain, and Down removes those.
//   - Down ends no process but the recorded inits (by pid and start time) and
//     inits whose command line names the lab's own directory.
//
// # Use from a program or a test
//
// The inits are the calling program, run again: call [MaybeInit] first in main
// or TestMain. [Up] needs root.
package lab
