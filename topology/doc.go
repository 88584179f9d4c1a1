// Package topology holds the value types that every other package speaks:
// identifiers, the virtual network identifier, and the Segment, which is one
// network's whole data plane on one host.
//
// It imports only the standard library, so that no layer pulls another in by
// using a name. Strings from outside (Docker's JSON, command lines, files)
// become these types at the edge and stay so below it.
package topology
