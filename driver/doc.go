// Package driver speaks Docker's NetworkDriver protocol: it parses each call,
// makes one call of the domain's, and renders the answer. Strings end here:
// below there are only identifiers, addresses and prefixes.
//
// What the answers mean to Docker, and why they are as they are:
//
//   - Join names no interface, no gateway and no routes. Docker therefore moves
//     and configures nothing; the runtime puts the container's process into the
//     tenant namespace. DisableGatewayService keeps Docker from adding its own
//     bridge as a way out (libnetwork default_gateway.go).
//   - The scope is local: a global one would be refused beside Swarm.
//   - EndpointOperInfo must not fail: Docker up to 28.0.0 fails the start.
//   - Calls that delete succeed on what is not there: Docker ignores their
//     errors and repeats them after crashes.
package driver
