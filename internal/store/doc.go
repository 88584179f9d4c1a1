// Package store keeps records across restarts of the plugin, in bbolt.
//
// There are two files, because two kinds of record die at different times:
//
//	/var/lib/particle/particle.db  networks and pools: until they are removed.
//	                               Written through to the disk before a reply.
//	/run/particle/live.db          endpoints and leases: until the next boot,
//	                               which no container survives. On a tmpfs and
//	                               never flushed, so that a container's start
//	                               waits for no disk. A kill of the process at
//	                               any point leaves the last whole write: bbolt
//	                               writes data pages before the meta page, and
//	                               the kernel keeps what was written.
package store
