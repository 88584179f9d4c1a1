package attack

import (
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/integration/sockets/sock"
)

// source is a way to choose whom the victim shall see. It prepares the socket
// before it is used, and may add control messages.
type source struct {
	name    string
	prepare func(a *attacker, t transport, fd int) error
	control func(a *attacker, t transport) []byte
}

func fromNobody() source { return source{name: "none"} }

func fromBound(options ...option) source {
	s := source{name: "bind"}
	for _, o := range options {
		s.name += "-" + o.name
	}
	s.prepare = func(a *attacker, t transport, fd int) error {
		for _, o := range options {
			if err := o.set(fd, t); err != nil {
				return err
			}
		}
		return a.Bind(fd, t.at(a.Third, 0))
	}
	return s
}

func fromPacketInfo() source {
	return source{name: "pktinfo", control: func(a *attacker, t transport) []byte { return packetInfo(t, a.Third) }}
}

// fromSticky names the source of all packets of a socket.
func fromSticky() source {
	return source{name: "sticky", prepare: func(a *attacker, t transport, fd int) error {
		info := append(t.pick(a.Third).AsSlice(), 0, 0, 0, 0) // struct in6_pktinfo
		return unix.SetsockoptString(fd, unix.SOL_IPV6, unix.IPV6_PKTINFO, string(info))
	}}
}

// fromUse has a port already when it turns to the victim, by sending elsewhere.
func fromUse() source {
	return source{name: "autobound", prepare: func(a *attacker, t transport, fd int) error {
		_, err := unbound(a, t, fd)
		return err
	}}
}

// packetInfo is the control message that names a packet's source: ip(7), ipv6(7).
func packetInfo(t transport, whose Ends) []byte {
	if t.family == unix.AF_INET {
		return unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: whose.Four.As4()})
	}
	return unix.PktInfo6(&unix.Inet6Pktinfo{Addr: t.pick(whose).As16()})
}

// spoofCases speak to the victim as somebody else, or by accident as the kernel
// chooses: of two local addresses it takes the destination for the source.
func spoofCases() []Case {
	var cases []Case
	add := func(t transport, s source, connected bool) {
		name := "spoof/" + t.name + "-" + s.name
		if connected {
			name += "-connected"
		}
		cases = append(cases, Case{name, func(a *attacker) verdict { return a.pretend(t, s, connected) }})
	}
	for _, t := range []transport{udp4, udp6, udpMapped} {
		for _, s := range []source{fromNobody(), fromBound(), fromBound(freebind), fromBound(transparent), fromPacketInfo(), fromUse()} {
			add(t, s, false)
			add(t, s, true)
		}
	}
	add(udp6, fromSticky(), false)
	add(udp6, fromSticky(), true)
	for _, t := range fastOpeners() {
		cases = append(cases, Case{"spoof/" + t.name + "-fastopen", func(a *attacker) verdict {
			return a.fastOpen(t, t.at(a.Victim, t.anyPort()), a.mistaken())
		}})
	}
	for _, t := range []transport{tcp4, tcp6, tcpMapped, mptcp4} {
		for _, s := range []source{fromNobody(), fromBound(), fromBound(freebind), fromBound(transparent)} {
			add(t, s, false)
		}
	}
	return append(cases,
		// A socket that was somebody by connect, and is let go.
		Case{"spoof/udp4-disconnected", func(a *attacker) verdict {
			fd, err := a.socket(udp4)
			if err == nil {
				err = a.Connect(fd, sock.In(a.Victim.Four, portUDPAny))
			}
			if err == nil {
				err = a.Connect(fd, sock.Unspec())
			}
			if err != nil {
				return failed(err)
			}
			v := a.sayBy(udp4, fd, sock.In(a.Victim.Four, portUDPAny))
			v.judge = a.mistaken()
			return v
		}})
}

// pretend sends the token to a service of the victim from a chosen source.
func (a *attacker) pretend(t transport, s source, connected bool) verdict {
	return a.pretendTo(t, s, t.at(a.Victim, t.anyPort()), connected)
}

// pretendTo is pretend to an address where the victim listens.
func (a *attacker) pretendTo(t transport, s source, to []byte, connected bool) verdict {
	fd, err := a.socket(t)
	if err == nil && s.prepare != nil {
		err = s.prepare(a, t, fd)
	}
	m := sock.Message{Data: []byte(a.token() + "\n"), To: to}
	if s.control != nil {
		m.Control = s.control(a, t)
	}
	if connected || t.stream() {
		m.To = nil
		if err == nil {
			err = a.Connect(fd, to)
		}
	}
	if err == nil {
		_, err = a.Send(fd, m)
	}
	if err != nil {
		return failed(err)
	}
	return verdict{token: a.token(), judge: a.mistaken()}
}

func fastOpeners() []transport { return []transport{tcp4, tcp6, mptcp4, mptcp6} }

// fastOpen connects by sending: tcp(7), TCP_FASTOPEN.
func (a *attacker) fastOpen(t transport, to []byte, judge func(netip.Addr) bool) verdict {
	fd, err := a.socket(t)
	if err == nil {
		_, err = a.Send(fd, sock.Message{Data: []byte(a.token() + "\n"), To: to, Flags: unix.MSG_FASTOPEN})
	}
	if err != nil {
		return failed(err)
	}
	return verdict{token: a.token(), judge: judge}
}

// spoofPingCases ask the victim for an echo as somebody else. The answer, which
// has to be received for success, tells as its destination who asked.
func spoofPingCases() []Case {
	var cases []Case
	for _, t := range []transport{ping4, ping6} {
		for _, s := range []source{fromNobody(), fromBound(), fromPacketInfo()} {
			for _, connected := range []bool{false, true} {
				name := "spoof/" + t.name + "-" + s.name
				if connected {
					name += "-connected"
				}
				cases = append(cases, Case{name, func(a *attacker) verdict { return a.ping(t, s, connected) }})
			}
		}
	}
	return cases
}

// Types of ICMP and ICMPv6 messages (RFC 792, RFC 4443).
const (
	echoRequest4 = 8
	echoRequest6 = 128
)

func (a *attacker) ping(t transport, s source, connected bool) verdict {
	fd, err := a.socket(t)
	if err == nil && s.prepare != nil {
		err = s.prepare(a, t, fd)
	}
	m := sock.Message{Data: []byte{echoRequest4, 0, 0, 0, 0, 0, 0, 1}, To: t.at(a.Victim, 0)}
	level, want := unix.SOL_IP, unix.IP_PKTINFO
	if t.family == unix.AF_INET6 {
		m.Data[0], level, want = echoRequest6, unix.SOL_IPV6, unix.IPV6_RECVPKTINFO
	}
	if s.control != nil {
		m.Control = s.control(a, t)
	}
	if err == nil {
		err = unix.SetsockoptInt(fd, level, want, 1)
	}
	if connected {
		if err == nil {
			err = a.Connect(fd, m.To)
		}
		m.To = nil
	}
	if err == nil {
		_, err = a.Send(fd, m)
	}
	if err != nil {
		return failed(err)
	}
	control := make([]byte, 256)
	_, n, _, err := a.Receive(fd, make([]byte, 256), control)
	if err != nil {
		return failed(err)
	}
	asker, err := sock.PacketDestination(control[:n])
	if err != nil {
		return failed(err)
	}
	return verdict{success: a.mistaken()(asker), detail: "asked as " + asker.String()}
}
