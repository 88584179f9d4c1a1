// Package fabric is the domain: which networks exist on this host, which
// addresses are handed out, which container holds each, and what has to happen
// in which order. It knows no JSON of Docker's, no netlink and no database;
// those stand behind the small interfaces in ports.go.
//
// A container's start touches it in this order (R1 is Docker up to 27, R2 is 28
// and later, where the runtime makes the container first):
//
//	R1  RequestAddress  CreateEndpoint  Join  Place  Claim
//	R2  Place  RequestAddress  CreateEndpoint  Join  Claim
//
// and its end in this one:
//
//	Release  Leave  DeleteEndpoint  ReleaseAddress
//
// A container that must not share the network's namespace has one of its own and
// a branch to it; see branch.go.
//
// Invariants:
//
//   - A fact is in a store before the caller is told of it, so a kill at any
//     point leaves either the state before the call or the state after it.
//   - Every call may come twice, or come for something that is gone.
//   - An address is free only when no lease holds it and no live process has
//     claimed it, for its own container or as a guest of it (--network
//     container:X). Docker's word that an endpoint is deleted is not believed
//     while such a process lives.
//   - Of a network that a cluster shares, a container gets an address of this
//     host's blocks, or one claimed for itself; what the cluster takes away serves
//     on while a container has it. Only the network's creation and a claim wait for
//     the cluster's store, see shared.go.
//   - Kernel work is done under a network's own lock, never under Fabric.mu, so
//     that making one network does not hold up the starts on another.
//
// What calls alone cannot keep true (Docker swallows the errors of its delete
// calls, and sends none after some crashes) Reconcile repairs, and what changes in
// the kernel behind our back, Repair.
package fabric
