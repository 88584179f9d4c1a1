// Package memory is a cluster in one process, for tests of what uses one. It
// keeps all promises of the control package, and can break down on demand: a
// host that is cut off, answers that are lost or do not come, a store that is wiped or older
// than it was.
//
// As with etcd a claim is an announcement. What is announced without a claim is
// delivered as well, so that two hosts can announce the same prefix, as hosts of
// a fabric that cannot allocate do.
package memory
