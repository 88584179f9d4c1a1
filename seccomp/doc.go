// Package seccomp edits OCI runtime specifications so that a container can live
// in a network namespace it shares with others: bytes in, bytes out, no files.
//
// A container in a shared namespace must not be able to change it or listen in
// on it. Inspect says what of a specification matters for that decision, Share
// moves the container into the namespace and takes the means away, and Confine
// takes them away from a process that joins a running container.
//
// Invariants:
//
//   - What an edit does not name is kept byte for byte. The specification is
//     never decoded into Go structs and encoded again, because that would drop
//     the fields a newer Docker writes and round the large integers.
//   - A second edit with the same arguments changes nothing.
//   - Keys are matched without regard to case, and a key that occurs twice is
//     edited twice, because that is how the runtime's decoder reads them: no
//     spelling of a field can pass by the editor and still reach the runtime.
package seccomp
