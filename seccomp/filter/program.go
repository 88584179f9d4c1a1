package filter

import "syscall"

// Kind says what a filter is for.
type Kind int

const (
	// Harden denies families of sockets that the address guard does not know, and
	// netlink between programs.
	Harden Kind = iota
	// Supervise does, and lets the holder answer the calls that choose addresses.
	Supervise
)

// Families that containers may use. AF_PACKET is left to the kernel, which says
// EPERM to those without CAP_NET_RAW; AF_ALG and AF_VSOCK do not belong to network
// namespaces, so they are for the container's own profile to judge.
const (
	afUnix    = 1
	afInet    = 2
	afInet6   = 10
	afNetlink = 16
	afPacket  = 17
	afAlg     = 38
	afVsock   = 40
)

// What an answer of a filter is made of (linux/seccomp.h).
const (
	retAllow  = 0x7fff0000
	retErrno  = 0x00050000
	retNotify = 0x7fc00000
)

// Calls of socketcall(2) (linux/net.h).
const (
	callBind    = 2
	callConnect = 3
	callListen  = 4
	callSendto  = 11
)

// netlinkAddress is the size of a netlink socket's address. An Internet socket's is
// longer, and the kernel refuses shorter ones (inet_bind, tcp_v4_connect), so that
// calls with this one need no answer.
const netlinkAddress = 12

// table has one architecture's numbers of system calls.
type table struct {
	audit      uint32 // AUDIT_ARCH_*
	mask       uint32 // bits of a number that count
	socket     uint32
	socketpair uint32
	bind       uint32
	connect    uint32
	listen     uint32
	sendto     uint32
	socketcall uint32 // 0 if there is none
	ring       uint32 // io_uring_setup
}

// Program builds a filter for all the architectures whose programs the kernel of
// this one runs. Others cannot make system calls at all under it.
func Program(kind Kind) []syscall.SockFilter {
	a := &assembler{labels: map[string]int{}}
	a.load(offsetArch)
	for i, t := range tables {
		a.jumpIf(t.audit, name("arch", i))
	}
	a.ret(retErrno | uint32(syscall.ENOSYS))
	for i, t := range tables {
		a.label(name("arch", i))
		a.calls(t, kind)
	}
	a.answers(kind)
	return a.finish()
}

func name(what string, i int) string { return what + string(rune('0'+i)) }

// calls sends each system call to what is said of it.
func (a *assembler) calls(t table, kind Kind) {
	a.load(offsetNumber)
	if t.mask != 0 {
		a.and(t.mask)
	}
	a.jumpIf(t.socket, "socket")
	a.jumpIf(t.socketpair, "pair")
	if kind == Supervise {
		a.jumpIf(t.bind, "addressed")
		a.jumpIf(t.connect, "addressed")
		a.jumpIf(t.listen, "notify")
		a.jumpIf(t.sendto, "sendto")
		a.jumpIf(t.ring, "ring")
		if t.socketcall != 0 {
			a.jumpIf(t.socketcall, "socketcall")
		}
	}
	a.ret(retAllow)
}

// answers says what becomes of the calls that Program cares for.
func (a *assembler) answers(kind Kind) {
	a.label("pair")
	a.load(argument(0))
	a.families("allow", "allow") // netlink makes no pairs
	a.label("socket")
	a.load(argument(0))
	if kind == Harden {
		a.families("allow", "netlink")
		a.netlink()
		a.label("allow")
		a.ret(retAllow)
		return
	}
	a.families("inet", "netlink")
	a.netlink()
	a.label("inet")
	a.protocols()
	a.label("addressed")
	a.load(argument(2))
	a.jumpIf(netlinkAddress, "allow")
	a.ret(retNotify)
	a.label("sendto")
	a.load(argument(4))
	a.jumpIf(0, "sendtoHigh")
	a.ret(retNotify)
	a.label("sendtoHigh")
	a.load(argument(4) + 4)
	a.jumpIf(0, "allow")
	a.ret(retNotify)
	a.label("socketcall")
	a.load(argument(0))
	for _, call := range []uint32{callBind, callConnect, callListen, callSendto} {
		a.jumpIf(call, "notify")
	}
	a.ret(retAllow)
	a.label("ring")
	a.ret(retErrno | uint32(syscall.EPERM))
	a.label("notify")
	a.ret(retNotify)
	a.label("allow")
	a.ret(retAllow)
}

// families jumps with the known ones and denies all others.
func (a *assembler) families(inet, netlink string) {
	a.jumpIf(afInet, inet)
	a.jumpIf(afInet6, inet)
	a.jumpIf(afNetlink, netlink)
	for _, family := range []uint32{afUnix, afPacket, afAlg, afVsock} {
		a.jumpIf(family, "allow")
	}
	a.ret(retErrno | uint32(syscall.EAFNOSUPPORT))
}

// netlink denies the protocol that is for programs to talk to each other, which
// would be those of neighbours. By all others programs talk to the kernel alone,
// which says EPERM to messages from one program to another (netlink_sendmsg, which
// asks for NL_CFG_F_NONROOT_SEND or CAP_NET_ADMIN).
func (a *assembler) netlink() {
	a.label("netlink")
	a.load(argument(2))
	a.jumpIf(syscall.NETLINK_USERSOCK, "usersock")
	a.ret(retAllow)
	a.label("usersock")
	a.ret(retErrno | uint32(syscall.EPROTONOSUPPORT))
}

// protocols allows the ones whose addresses are chosen by bind, connect and sendto
// alone: TCP, UDP, UDP-Lite, MPTCP and ICMP's. SCTP has socket options for it, SMC
// and L2TP sockets of their own behind. Raw sockets are left to the kernel, which
// says EPERM to those without CAP_NET_RAW.
func (a *assembler) protocols() {
	a.load(argument(1))
	a.and(0xf) // SOCK_TYPE_MASK
	a.jumpIf(syscall.SOCK_RAW, "allow")
	a.jumpIf(syscall.SOCK_STREAM, "protocol")
	a.jumpIf(syscall.SOCK_DGRAM, "protocol")
	a.ret(retErrno | uint32(syscall.ESOCKTNOSUPPORT))
	a.label("protocol")
	a.load(argument(2))
	const mptcp = 262
	for _, protocol := range []uint32{0, syscall.IPPROTO_TCP, syscall.IPPROTO_UDP, syscall.IPPROTO_UDPLITE, mptcp, syscall.IPPROTO_ICMP, syscall.IPPROTO_ICMPV6} {
		a.jumpIf(protocol, "allow")
	}
	a.ret(retErrno | uint32(syscall.EPROTONOSUPPORT))
}
