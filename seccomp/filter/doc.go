// Package filter builds and installs the filters of system calls under which
// containers live that share a network namespace: a pure function makes the
// program, one call installs it.
//
// particle-runtime installs the filter on itself and then becomes the real
// runtime, so that every process of the container inherits it, those of
// `docker exec` too. It stands beside the container's own profile, which the
// runtime installs later, and the kernel takes the stricter answer of the two.
// That is why the container's profile is not edited: what it denies, traps or
// kills it goes on to, whatever rules it is made of, and where there is none
// (seccomp=unconfined, --privileged) this one holds all the same. Nor does it
// matter what the runtime's version knows of seccomp, or whether it was built
// with it.
//
// Hardening keeps families of sockets off that belong to a network namespace and
// ask none of the address guard's hooks (RDS, TIPC, RxRPC, SMC, KCM and the like):
// they fail with EAFNOSUPPORT, as where the kernel lacks them. So does netlink's
// protocol for programs among themselves (NETLINK_USERSOCK, EPROTONOSUPPORT). It
// costs a few instructions in socket(2), and nothing elsewhere.
//
// Supervise adds the guard for hosts where eBPF cannot be attached: the calls that
// choose addresses wait for the answer of package holder, and what would go past
// them (io_uring, protocols with calls of their own) is denied.
//
// A 32-bit program's socketcall(2) keeps its arguments in memory, which a filter
// cannot read, as does io_uring, which some profiles allow: sockets that are opened
// in these ways are not hardened. Docker's own profile has the same gap.
package filter
