// Package holder is the address guard for hosts where eBPF cannot be attached: one
// process of the host that answers, for all containers of networks guarded so, the
// system calls by which a program chooses addresses (seccomp_unotify(2)).
//
// # The model
//
// particle-runtime puts a filter on itself (package seccomp/filter) before it becomes
// runc, for a container's first process and again for each `docker exec`, and hands
// the filter's listener to the holder, which it starts if there is none. When the
// plugin has told the container's addresses, particle-runtime writes them to a file
// beside the holder's socket (Identity). Nothing of the container has run by then.
//
//	bind     a wildcard becomes the own address, 127.0.0.b the own loopback's,
//	         another's is EADDRNOTAVAIL. The holder itself binds the caller's socket,
//	         with a copy of the address: what the caller writes to its memory or does
//	         to its descriptors meanwhile changes nothing.
//	connect  gives an unbound socket the own address for its source and lets the
//	         kernel go on; to 127.0.0.b and ::1 the holder connects the socket itself.
//	sendto   likewise, if it names a destination.
//	listen   gives an unbound socket the own address and lets the kernel go on.
//
// # Invariants
//
//   - It needs no plugin: one that is stopped, killed or replaced changes nothing.
//   - Without the holder the calls fail with ENOSYS, and none passes. A new one
//     serves containers and processes that are started from then on.
//   - One process, one epoll, a goroutine for each call that is being answered. A
//     container can have so many of those and no more, and slows nobody else.
//   - A call that was interrupted by a signal and is made again gives the same answer.
//
// # What it cannot do
//
// See docs/limits.md. It sees no packets, so a source that is named in ancillary data
// or chosen by sendmsg on an unbound socket, and whatever is done between the answer
// and the kernel's going on with connect, sendto and listen, passes. Loopback addresses
// are told as the namespace knows them.
//
// The package is linked into particle-runtime, so it uses the standard library alone.
package holder
