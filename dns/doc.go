// Package dns carries DNS queries from a tenant namespace to the host's own
// name servers.
//
// Many hosts run a resolver on their loopback (systemd-resolved on 127.0.0.53,
// dnsmasq and unbound on 127.0.0.1). A container cannot reach it: its own
// namespace has another loopback. A Forwarder reads queries from sockets that
// were opened in the tenant namespace and asks the name servers from sockets of
// the host's namespace. A socket stays in the namespace it was opened in, so
// one process can hold both:
//
//	tenant namespace          |  host namespace
//	                          |
//	container --> pc, l ------+--> Dial --> 127.0.0.53:53
//	         <--  (UDP, TCP)  |         <--
//
// Servers that containers can reach by routing need no Forwarder; Config tells
// the two kinds apart.
//
// A Forwarder changes nothing but the message id: a reply goes to the container
// as the bytes the name server sent, with its EDNS options, DNSSEC records and
// the TC bit. A container that sees TC asks again over TCP, as every resolver
// does, and that query goes to the name server over TCP.
//
// # Invariants
//
//   - A reply is passed on only if it answers the question that was asked (id,
//     name, type and class), and came from the address that was asked.
//   - What one tenant does costs the others nothing: queries and connections of
//     each Serve are bounded, and what exceeds the bound is refused at once.
package dns
