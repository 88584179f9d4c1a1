// Package membership keeps what this host is in a cluster: in none, a member, or
// one that serves the cluster's store as well. It carries out `particle cluster`
// in the plugin, live.
//
// # Files
//
//	/var/lib/particle/node             the host's id, drawn once
//	/var/lib/particle/wireguard.key    its key in an encrypted cluster; another in the next
//	/var/lib/particle/cluster/         exists if, and only if, the host is in a cluster
//	    cluster.json                   what it is there, and who the servers are
//	    ca.pem node.pem node.key       the authority's certificate, this host's and its key
//	    ca.key crl.der etcd/           on servers: the authority's key, the revoked certificates, the data
//	/var/lib/particle/cluster.new/     being prepared; of no meaning
//	/var/lib/particle/cluster.left/    being removed; of no meaning
//
// # Invariants
//
//   - Joining, or making a cluster, prepares the directory beside its place and
//     renames it. Leaving renames it away. A kill at any moment leaves the host
//     on one side or on the other, and what was begun can be repeated.
//   - Leaving first notes that it has begun, when the host has given up its part
//     of the networks. From then on it is carried through, by the next start of
//     the plugin if need be.
//   - Nothing here waits for the store at the plugin's start.
//   - A host that is in a cluster by its disk stays in it whatever External is.
//   - Of External, nothing is kept but files that an administrator has put there.
package membership
