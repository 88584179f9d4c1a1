// Package install puts the project on a Docker engine, takes it off again, and
// asks it how it is, all through the engine's API alone: the engine may be on
// another machine.
//
// # Model
//
// What an installation consists of, in the order in which it is made:
//
//	image      particle-net:VERSION; the plugin's root file system, and what the
//	           helper containers run in (package hostsetup is what they do)
//	files      particle-runtime, particle and their configuration on the host
//	runtime    "particle" in the daemon's configuration, loaded by SIGHUP
//	plugin     the managed plugin, enabled
//
// # Invariants
//
//   - There is never a plugin without the runtime: a network made in between
//     would give its containers no address. The runtime without the plugin is
//     harmless, since it passes containers of other networks through. So the
//     runtime comes first and goes last.
//   - Installing again converges from whatever an interrupted installation has
//     left, and is also the upgrade: the plugin is replaced under its name, and
//     running containers go on in their namespaces meanwhile.
//   - One command at a time changes an engine: it holds the name of a container
//     that is never started.
//   - Helper containers name runc as their runtime, because the default one may
//     be half installed.
//   - A failed installation takes its steps back, the latest first.
package install
