// Package hostsetup is the part of the particle command that works on a Docker
// host itself: it puts files there, edits the daemon's configuration, looks for
// what the kernel lacks, and takes everything away again.
//
// # Model
//
// `particle install` may run far from the host, with nothing but the Docker API
// between them. It therefore starts a container on the host that has the host's
// root directory bound on HostRoot and the host's process ids, and in it the
// same program with one of the hidden subcommands named here. Enter makes that
// directory the program's own root, so every path in this package is a path of
// the host, symbolic links included. Requests are the subcommand's argument and
// results its standard output, both JSON.
//
// # Invariants
//
//   - Every step may be repeated, and may be cut off anywhere: a file is either
//     the old one or the new one, and the record of what was there before is on
//     disk before anything is changed.
//   - The daemon's configuration never names a program that is not there: the
//     runtime is put in place before it is registered and removed after dockerd
//     has let go of it.
//   - dockerd is told to reload (SIGHUP); it is never restarted.
package hostsetup
