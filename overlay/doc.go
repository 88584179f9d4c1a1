// Package overlay is the data plane of the networks on one host. It makes the
// kernel match values of package topology and reads them back; it decides
// nothing and remembers nothing that the kernel could tell.
//
// # The model
//
// Every network has one network namespace on the host, the tenant namespace,
// bound on a file named after the network. All its containers live in it, but
// for those that must not share one: these have a branch, see branch.go.
//
//	host namespace                          tenant namespace
//	┌───────────────────────┐               ┌──────────────────────────────────┐
//	│ eth0   VTEP           │  UDP socket   │ vx0  VXLAN device, no address    │
//	│ :4789  ───────────────┼───────────────┤ lo   local POOL dev lo (AnyIP)   │
//	│ pu4f2a9c01d3b7 ───────┼── gateway ────┤ up0  default route               │
//	│ table inet particle   │               │ table inet particle              │
//	│ table .. particle-vxlan               │ routes to other hosts by vx0     │
//	└───────────────────────┘               └──────────────────────────────────┘
//
// The way out passes a second namespace, the gateway, where sources are rewritten;
// see gateway.go.
//
// Of a network of several hosts, a host has some pools, and knows of each other
// host a neighbour, an FDB entry and a route for each of that one's prefixes; see
// peer_plan.go. What is nobody's is unreachable. The host's firewall lets in what
// comes from the cluster's members; see members.go. In an encrypted cluster VXLAN
// goes by WireGuard or not at all; see wireguard.go.
//
// # Invariants
//
//   - Nothing grows with containers. A pool is one route in table local, which
//     makes each of its addresses bindable (AnyIP), so a container costs the
//     kernel's network stack nothing. A branch costs a veth pair and a route.
//   - Of other hosts nothing grows with their containers either, and nothing is
//     asked of the network: no ARP, no learning, no multicast.
//   - Other hosts reach a network's containers and nothing else: no uplink, and
//     no other address of the tenant namespace.
//   - A network of one host alone hears no other: its device is down.
//   - The tenant namespace tracks no connections and translates no addresses.
//   - No device ever moves between namespaces: each is created where it belongs
//     (IFLA_NET_NS_FD at creation). A move waits 16-20 ms for RCU while it holds
//     the lock that every other network change on the host needs.
//   - Writes to rtnetlink go one after another: the kernel's RTNL lock is global,
//     and parallel writers are slower than one.
//   - No link carries a container's address with its pool's prefix length:
//     Docker 28 and later would take that link for the container's own after a
//     live-restore and move it away when the container stops.
//   - An uplink carries IPv6 only for a network that has it, and each of its ends
//     knows the other's address for good: neither asks, and the host listens to
//     nothing that a tenant says of addresses, neighbours and routes.
//   - By their uplinks tenants reach the host and other machines, not what else
//     runs on the host behind a bridge. Docker gives bridges any name, so they
//     are told apart by what they connect, and a new one is taken for Docker's.
//   - What a branch sends is not believed, for the container may be root in its
//     namespace: the route to a branch says which source it may use.
//   - 127.0.0.11 cannot be bound in a tenant namespace. Docker's embedded resolver
//     tries at every container start; if it succeeded it would rewrite the
//     namespace's NAT rules for all containers at once.
//   - The VXLAN device is deleted before its namespace is let go: a TCP socket
//     left by a killed process keeps a namespace, its device and its VNI alive
//     for minutes.
//
// Every operation may be repeated. Apply adds before it removes, and removing
// what is gone succeeds. Methods of Host are safe for concurrent use.
package overlay
