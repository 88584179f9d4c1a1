// Package enrol makes hosts known to each other: it is the certificate authority
// of a cluster, the token that lets a host in, and the register of those that
// are.
//
// # Model
//
// The first host makes an authority, whose key lies only on hosts that serve the
// store. A token names the authority by the hash of its certificate, so that a
// host that knows the token, and nothing else, knows whom it speaks to:
//
//	particle-1-<SHA-256 of the authority's certificate>-<secret>
//
//	host                                        server, base port
//	 │  TLS 1.3; the server shows a certificate of
//	 │  the authority that the token names
//	 │──── secret, key request, id, name, address ───>│ checks the secret
//	 │<─── certificate for a year, the servers ───────│ notes the host
//
// From then on every connection is authenticated by certificates on both ends:
// renewal of the certificate and the list of servers here, and all traffic with
// the store. A certificate of a server carries the name server.particle; a host
// takes no other for a server, and servers take no other for one of them.
//
// A certificate is renewed in the last third of its life by the server's clock, and not
// twice within an hour. The register keeps all that are good: one whose answer was lost
// cannot be told from one that is used.
//
// # The secret
//
// It is stored nowhere. The register holds a nonce and a time, and the secret is
// a keyed hash of the nonce with the authority's key: any server can show the
// token, nobody else can make one, and a new nonce makes all older ones
// worthless.
//
// # Leaving
//
// A certificate that must not be used any more is in the register's list of
// revoked ones until it would have ended by itself; servers keep the signed list
// beside the store, which looks at it for each new connection. What a server has on its
// list it tells a store that has lost it, for the servers that come after that.
//
// A host that joins again has not left. Its former certificates are revoked when it
// shows the one that it was given, and not before.
package enrol
