// Package server runs the cluster's store, an etcd server, on a host that serves
// it, and looks after its members.
//
// # Model
//
// The server is a process of its own, the same program executed once more: what
// etcd cannot go on after (a full disk, a damaged file) it ends its process for,
// and the plugin, which containers' starts depend on, must outlive that. The
// parent writes the configuration to the child's standard input and keeps it
// open; the child ends when it closes, so no parent's death leaves one behind.
//
//	parent   Start ── configuration ──> child   Main
//	           │ <──── "ready" ──────────  │    etcd
//	           │ <──── log lines ────────  │
//	           └── input closes ─────────> ends at once; etcd is safe against that
//
// A child that ends is started again, after 1 s at first and 30 s at most.
//
// # Members
//
// A further server joins as a learner, which has no vote, and is promoted by
// itself when it has caught up. So a join that is interrupted costs no quorum.
package server
