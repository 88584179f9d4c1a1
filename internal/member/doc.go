// Package member keeps one host in step with its cluster: its Docker has the
// networks that the cluster has, its fabric knows its own claims and the other
// hosts' routes, and the cluster knows what a user did here.
//
//	cluster's store ──watch──> networks ──> Docker's API: create, remove
//	                           routes ──rules W, F, M──> fabric: peers, claims
//	                           hosts ──> overlay: whose packets are let in
//	fabric ──Share, Low, ...──> claims ──────> cluster's store
//	Docker ──names──────────> NameNetwork ──> cluster's store
//
// # A network's life
//
//	user creates it on A     Share registers it, without a name: Docker does not
//	                         tell the driver. Docker then lists it, NameNetwork
//	                         tells the cluster, the other hosts make it.
//	two at once, one name    the first that the store named wins. The other's, if
//	                         new, unused and wished for alike, is replaced; else it
//	                         stays on its host, shown as a conflict, until it goes.
//	user removes it on B     Unshare notes it on disk, RemoveNetwork tells the
//	                         cluster, the other hosts remove it once no container
//	                         lives on it, and each leaves it then: LeaveNetwork.
//	store loses it           each host that has it restores it, name and claims.
//	host leaves the cluster  it goes from there, once no container lives on it; until
//	                         then it is marked as left, gives out no addresses, and no
//	                         other cluster hears of it. One that has it makes it the
//	                         host's again.
//
// # Invariants
//
// Everything needed without the store is on disk: at a start with a dead store
// the peers are as they were. Docker may be away at any time; what could not be
// done is tried again. What the store says is never taken for complete while its
// watch is down (rule F), and a list that lacks too much is answered by claiming
// again what this host has (rule M).
package member
