// Package control is what the hosts of a cluster agree on: its records, and the
// three roles that keep them. It knows no store; subpackages do.
//
//	Allocator    who owns which VNI, name, block and single address. A claim is
//	             a transaction: of any number of hosts that ask for the same
//	             thing one gets it.
//	Directory    tells which hosts and networks there are.
//	Distributor  tells the other hosts of a network which host answers for which
//	             addresses.
//
// A store such as etcd plays all three. Distribution is apart, because a fabric
// that speaks BGP EVPN can distribute but cannot allocate.
//
// # Rules
//
// Losing the store, a leader, a lease or a host never takes a route from a live
// container:
//
//	L  Liveness is advice. A host whose lease has run out is shown as suspect, and
//	   nothing else.
//	W  A route that is added or moves to another host is programmed at once. One
//	   that is withdrawn is held for 30 s of healthy time, and until then a new
//	   announcement cancels the withdrawal.
//	F  Without a healthy watch everything stays as it is, and time stands still.
//	M  If a whole list is empty, comes from another instance of the store or from
//	   an older revision, or lacks more than half of what was known, all is kept,
//	   each host claims again what it had, and what nobody has claimed within
//	   10 minutes of healthy time goes. Until then no host claims what it has not
//	   had: it may be another's, who has not come yet. For those who have not come
//	   the others vouch, with what they remember, and rule G goes for that too.
//	   What was withdrawn before goes by rule W, if it is known to be from before.
//	G  Claims have no lease. They end when their owner releases them, when an
//	   operator removes the owner, or after the owner has been away for 24 h. A
//	   host that could not verify its claims for 12 h gives out no new addresses
//	   from them, so an owner that comes back never meets its successor.
package control
