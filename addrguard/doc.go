// Package addrguard keeps containers that share a network namespace apart: each
// sees and uses only its own address and its own loopback, with unmodified
// programs, whatever system call they use. The work is done by eBPF programs in
// the kernel; nothing of it depends on this process after Admit returned.
//
// # The model
//
// A container is a cgroup v2 id, which is the inode of its directory in kernfs.
// A tenant namespace is the cookie the kernel gave it (SO_NETNS_COOKIE). The
// programs hang on anchors, the first cgroups on the way down that are no slices of
// systemd's:
//
//	/docker                     anchor   attached once, for all containers below
//	  /docker/4f2a                       a container costs some map entries
//	/system.slice               gate     the program of socket(2), attached once
//	  …/ssh.service                      in no container's namespace it has no socket
//	  …/docker-4f2a.scope       anchor   the other programs, for each container
//
// Slices hold services of the host beside containers, which must not pay for what they
// do with sockets: at a gate they pay for making one. Outside anchors and gates
// processes pay nothing.
//
//	network ──Protect──> networks    cookie         -> id, devices
//	container ─Admit───> containers  cgroup id      -> cookie, addresses, counters
//	                     steers      cookie, IPv6   -> IPv4 of servers for both
//	                     senders     mark           -> whose datagrams have it
//	socket ──(kernel)──> sockets     socket         -> whose it is
//	                     depths      of containers in the hierarchy of cgroups
//	verdict ─(kernel)──> totals      verdict        -> how often
//
// At socket(2) and at each later call the programs look for the container of the
// running task among the ancestors of its cgroup, 24 levels deep. Sockets for
// datagrams keep the answer for their life, whoever holds them; those for TCP keep no
// more than that the program named the address it bound, which stands for the wildcard
// otherwise. In a namespace that is not protected the programs let everything pass: host
// processes, Docker's other networks, and namespaces that a container makes itself. In a
// protected one a process of nobody's cgroup gets EPERM.
//
// Maps and links are pinned below Options.Pins/layout-1. A new version replaces
// the programs link by link; the maps stay, and a version with other maps takes
// another directory. The links of a container's own anchor end with its cgroup; their
// pins are cleared when it, or the next one, is expelled, or by the next Open. Who
// unmounts the pins takes all programs away; the next call that changes what is
// attached puts them back.
//
// # What a program sees
//
//   - A wildcard bind becomes one to the own address; getsockname still tells the
//     wildcard. [::] for both families is bound to the IPv4 address, and packets
//     to the IPv6 address are handed to it where they come in (tcx on devices).
//     The sk_lookup hook would be the place, but the maps it takes sockets from
//     do not take MPTCP's, which Go listens with (Linux 6.18, "mptcp: Disallow
//     MPTCP subflows from sockmap").
//   - 127.0.0.0/24 is 127.H.L.0/24 in the namespace, where H.L is the container's
//     slot, and ::1 is an address of Prefixes. A server on the wildcard is found
//     at 127.0.0.1 too, by asking whether anything listens on the loopback
//     address itself first. Programs read back the addresses they expect. In a
//     network without IPv4 (IPv6) the loopback address stands for the wildcard of
//     that family.
//   - A multicast group, and the broadcast address, become an address of the own
//     loopback at bind, to which nobody sends; getsockname tells the wildcard.
//     What is sent to a group is dropped where it leaves, and where a socket that
//     was never bound would hear it.
//   - Whatever leaves or comes in under another address is dropped: ports that
//     the kernel chose for all addresses (cgroup_skb/ingress), forged sources.
//     Sockets for ping choose sources without asking a hook; what the hooks chose
//     for others is checked once more. Sockets other than TCP's have a mark
//     (SO_MARK) that tells their container, and their packets carry it over lo:
//     so one program for each packet that lo takes in (tcx) compares sources,
//     sets those of echo requests right, and steers. Other devices, which have a
//     program for the way in only where there is IPv6 to steer, compare on
//     the way out. Behind the uplink sources are rewritten, so all may leave
//     there. Only CAP_NET_ADMIN and CAP_NET_RAW can change a mark. Before Linux
//     6.6 forged sources are dropped at the cgroup (cgroup_skb/egress).
//   - Abstract unix sockets of others refuse connections and datagrams. The hook
//     knows only the name: the program finds the socket in the kernel's table as
//     the kernel does (bpf/unix.c). The security module's hooks would know the
//     socket, but cost every process of the host, and some kernels refuse such
//     programs although bpf is among their modules.
//   - 127.0.0.11 is not translated: nobody may be there, see package overlay.
//
// # What it cannot do
//
//   - A name of an abstract unix socket that one container holds cannot be bound
//     by another (EADDRINUSE), though it cannot be reached either: no hook is
//     asked at bind. The same holds for a port that the kernel chose for a socket
//     that was never bound (listen or sendto alone): it is taken on all addresses.
//   - A socket for ping can be bound to a foreign address, for the same reason;
//     what it sends has the own source, and no answer reaches it.
//   - A connection to a port that a neighbour holds on all addresses, and nobody
//     on the address, times out instead of being refused.
//   - A socket for both families that was bound to the wildcard cannot connect to
//     IPv6 addresses afterwards (EAFNOSUPPORT), nor hear IPv6 answers that come
//     by the uplink unless it is bound for IPv6 alone. A UDP socket that sent
//     before it was connected cannot connect (EADDRNOTAVAIL).
//   - A socket bound to 0.0.0.0 that connects to 127.0.0.1 comes from the own
//     address.
//   - What comes for an IPv6 address in pieces is put together after steer has seen
//     it, so a socket for both families does not hear it.
//   - A port that one container has bound is not chosen for connections of others,
//     and connections that end keep their port from the next who has the address.
//   - Ancillary data (IP_PKTINFO, IP_RECVERR), sockets for ping and /proc/net show
//     addresses as the namespace knows them.
//   - 127.0.0.0/8 beyond 127.0.0.0/24 does not exist.
//   - Families with rules of their own (AF_PACKET, AF_SMC, AF_RDS, AF_TIPC,
//     AF_RXRPC) ask no hook: capabilities and seccomp must keep them off.
//   - A container does not hear its own multicast and broadcasts either: to the
//     kernel a socket that was bound hears what is for the one address alone.
//
// Methods of Guard are safe for concurrent use, also by several processes.
package addrguard
