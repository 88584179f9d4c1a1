// Package dockerdir reads what Docker has written on disk about a container.
//
// The Docker API cannot be asked while a container starts: dockerd holds the
// container's lock, and during the daemon's own start it serves no API at all.
// The container's directory can. Docker writes config.v2.json and
// hostconfig.json there at `docker create` and at every later checkpoint, each
// in one rename, so that a reader never sees half a file.
//
// What is not on disk at `runc create`: the network's id before the first start
// of the container has succeeded, and anything of the start in progress
// (endpoint, address, sandbox).
//
// The package follows 20.10 to 29. A field that a version does not write reads
// as its zero value.
package dockerdir
