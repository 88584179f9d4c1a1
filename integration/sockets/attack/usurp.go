package attack

import (
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/integration/sockets/sock"
)

// option is a socket option that widens what may be bound.
type option struct {
	name                string
	level, option, six6 int // six6 is the option of SOL_IPV6
}

var (
	freebind    = option{"freebind", unix.SOL_IP, unix.IP_FREEBIND, unix.IPV6_FREEBIND}
	transparent = option{"transparent", unix.SOL_IP, unix.IP_TRANSPARENT, unix.IPV6_TRANSPARENT}
)

func (o option) set(fd int, t transport) error {
	if t.family == unix.AF_INET6 {
		return unix.SetsockoptInt(fd, unix.SOL_IPV6, o.six6, 1)
	}
	return unix.SetsockoptInt(fd, o.level, o.option, 1)
}

// bindCases try to bind the victim's address, and one that is nobody's.
func bindCases() []Case {
	bind := func(a *attacker, t transport, whose Ends, options ...option) verdict {
		fd, err := a.socket(t)
		for _, o := range options {
			if err == nil {
				err = o.set(fd, t)
			}
		}
		if err == nil {
			err = a.Bind(fd, t.at(whose, 0))
		}
		return outcome(err)
	}
	var cases []Case
	// The last ones mostly do not exist; where they do, their bind is their own.
	for _, t := range []transport{tcp4, udp4, tcp6, udp6, tcpMapped, udpMapped, mptcp4, mptcp6,
		{"udplite4", unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_UDPLITE, false},
		{"udplite6", unix.AF_INET6, unix.SOCK_DGRAM, unix.IPPROTO_UDPLITE, false},
		{"sctp4", unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_SCTP, false},
		{"sctp4-seqpacket", unix.AF_INET, unix.SOCK_SEQPACKET, unix.IPPROTO_SCTP, false},
		{"dccp4", unix.AF_INET, unix.SOCK_DCCP, unix.IPPROTO_DCCP, false},
		{"l2tp4", unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_L2TP, false}} {
		cases = append(cases,
			Case{"bind/" + t.name, func(a *attacker) verdict { return bind(a, t, a.Victim) }},
			Case{"bind/" + t.name + "-third", func(a *attacker) verdict { return bind(a, t, a.Third) }})
	}
	for _, o := range []option{freebind, transparent} {
		for _, t := range []transport{tcp4, udp4, tcp6, udp6, tcpMapped, udpMapped} {
			cases = append(cases, Case{"bind/" + t.name + "-" + o.name, func(a *attacker) verdict { return bind(a, t, a.Victim, o) }})
		}
	}
	for _, f := range []struct {
		name   string
		family int
		kind   int
	}{{"smc4", unix.AF_SMC, unix.SOCK_STREAM}, {"rds", unix.AF_RDS, unix.SOCK_SEQPACKET}, {"tipc", unix.AF_TIPC, unix.SOCK_RDM}} {
		cases = append(cases, Case{"bind/" + f.name, func(a *attacker) verdict {
			fd, err := a.Socket(f.family, f.kind, 0)
			if err == nil && f.family != unix.AF_TIPC { // whose names have no addresses
				err = a.Bind(fd, sock.In(a.Victim.Four, portFree))
			}
			return outcome(err)
		}})
	}
	return append(cases,
		Case{"bind/udp4-unspec", func(a *attacker) verdict {
			fd, err := a.socket(udp4)
			if err == nil {
				err = a.Bind(fd, sock.As(sock.In(a.Victim.Four, 0), unix.AF_UNSPEC))
			}
			return outcome(err)
		}},
		// First an address that is the attacker's own, then the one that is not.
		Case{"bind/udp4-rebind", func(a *attacker) verdict {
			fd, err := a.socket(udp4)
			if err == nil {
				err = a.Connect(fd, sock.In(a.Victim.Four, portUDPAny))
			}
			if err == nil {
				err = a.Connect(fd, sock.Unspec())
			}
			if err == nil {
				err = a.Bind(fd, sock.In(a.Victim.Four, 0))
			}
			return outcome(err)
		}},
		Case{"bind/udp4-loopback-of-others", func(a *attacker) verdict { return bindLoopbacks(a) }})
}

// bindLoopbacks tries to bind a port on the addresses 127.H.L.1 that containers
// get first. The container's own one goes by the name of 127.0.0.1.
func bindLoopbacks(a *attacker) verdict {
	var last error
	for slot := 1; slot <= 1024; slot++ {
		fd, err := a.socket(udp4)
		if err == nil {
			err = a.Bind(fd, sock.In(netip.AddrFrom4([4]byte{127, byte(slot >> 8), byte(slot), 1}), portUDPLo))
		}
		var name unix.Sockaddr
		if err == nil {
			name, err = unix.Getsockname(fd)
		}
		if at := sock.AddrPort(name).Addr(); err == nil && at != loopback().Four {
			return verdict{success: true, detail: at.String()}
		}
		last = err
		a.Reset()
	}
	return failed(last)
}
