// Package addrguard keeps containers that share a network namespace apart: each
// sees and uses only its own address and its own loopback, with unmodified
// programs, whatever system call they use. The work is done by eBPF programs in
// the kernel; nothing of it depends on this process after Admit returned.
//
// # The model
//
// A container is a cgroup v2 id, which is the inode of its directory in kernfs.
// A tenant namespace is the cookie the kernel gave it. The programs hang on
// anchors, the cgroups at the top of the hierarchy (/docker, /system.slice): once
// for each anchor, when its first container is admitted. So a container costs one
// map entry, and processes outside anchors cost nothing.
//
//	network ──Protect──> networks    cookie     -> id, devices
//	container ─Admit───> containers  cgroup id  -> cookie, addresses, counters
//	socket ──(kernel)──> sockets     socket     -> whose it is, from socket(2) on
//
// At socket(2) the programs look for the container of the running task among the
// ancestors of its cgroup, 24 levels deep, and note it at the socket. A socket
// keeps that identity, as do the connections it accepts, whoever holds it later.
// In a namespace that is not protected they let everything pass: host processes,
// Docker's other networks, and namespaces that a container makes itself.
// In a protected one a process of nobody's cgroup gets EPERM.
//
// # What a program sees
//
//   - A wildcard bind becomes one to the own address; getsockname still tells the
//     wildcard. [::] for both families is bound to the IPv4 address, and packets
//     to the IPv6 address are steered to it where they come in.
//   - 127.0.0.0/24 is 127.H.L.0/24 in the namespace, where H.L is the container's
//     slot, and ::1 is an address of Prefixes. A server on the wildcard is found
//     at 127.0.0.1 too, by asking whether anything listens on the loopback
//     address itself first. Programs read back the addresses they expect.
//   - Whatever leaves or comes in under another address is dropped: ports that
//     the kernel chose for all addresses, forged sources.
//   - 127.0.0.11 is not translated: nobody may be there, see package overlay.
//
// # What it cannot do
//
//   - A name of an abstract unix socket that one container holds cannot be bound
//     by another (EADDRINUSE), though it cannot be reached either. The kernel has
//     no hook between bind and that answer. The same holds for a port that the
//     kernel chose for a socket that was never bound (listen or sendto alone):
//     it is taken on all addresses.
//   - A socket for both families that was bound to the wildcard cannot connect to
//     IPv6 addresses afterwards (EAFNOSUPPORT), and a UDP socket that sent before
//     it was connected cannot connect (EADDRNOTAVAIL).
//   - Ancillary data (IP_PKTINFO, IP_RECVERR) and /proc/net show addresses as the
//     namespace knows them.
//   - 127.0.0.0/8 beyond 127.0.0.0/24 does not exist.
//
// Methods of Guard are safe for concurrent use, also by several processes.
package addrguard
