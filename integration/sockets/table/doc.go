// Package table does with sockets what programs do, right and wrong, and tells
// what the kernel answered, so that a container in a shared network namespace can
// be compared with one that has a namespace of its own.
//
// # Model
//
// A case is a short run of socket calls. It ends at the first call that fails,
// which is its result; calls whose failure is the point are tried, and their
// answer is noted. The addresses that the kernel shows are noted, too, with the
// words SELF, SELF6, PEER and PEER6 in place of the container's own and of its
// partner's, and EPH in place of a port the kernel chose.
//
// # Invariants
//
//   - Two runs in equal surroundings write equal lines: no line holds a time, a
//     number the kernel chose, or the order of things that race.
//   - No case waits longer than a few times its patience.
//   - Cases share nothing: each has ports of its own and closes what it opened.
package table
