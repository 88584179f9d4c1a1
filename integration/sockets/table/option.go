package table

import (
	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/integration/sockets/sock"
)

// optionCases use options that change addresses, or that need rights.
func optionCases() []testCase {
	var out []testCase
	beyond := func(name string, family, level, option int, host string) {
		for kind, value := range []int{unix.SOCK_STREAM, unix.SOCK_DGRAM} {
			out = append(out, testCase{"option/" + name + []string{"-tcp", "-udp"}[kind], func(t *trial) {
				s := t.open(family, value, 0)
				t.try("setsockopt", func() { s.set(level, option, 1) })
				s.bind(t.in(host, t.port)).named()
			}})
		}
	}
	beyond("freebind", unix.AF_INET, unix.SOL_IP, unix.IP_FREEBIND, "192.0.2.1")
	beyond("freebind-self", unix.AF_INET, unix.SOL_IP, unix.IP_FREEBIND, "SELF")
	beyond("freebind6", unix.AF_INET6, unix.SOL_IPV6, unix.IPV6_FREEBIND, "2001:db8::1")
	beyond("transparent", unix.AF_INET, unix.SOL_IP, unix.IP_TRANSPARENT, "192.0.2.1")
	beyond("transparent6", unix.AF_INET6, unix.SOL_IPV6, unix.IPV6_TRANSPARENT, "2001:db8::1")
	right := func(name string, level, option, value int) {
		out = append(out, testCase{"option/" + name, func(t *trial) { t.tcp4().set(level, option, value) }})
	}
	right("mark", unix.SOL_SOCKET, unix.SO_MARK, 1)
	right("priority-6", unix.SOL_SOCKET, unix.SO_PRIORITY, 6)
	right("priority-7", unix.SOL_SOCKET, unix.SO_PRIORITY, 7)
	right("repair", unix.SOL_TCP, unix.TCP_REPAIR, 1)
	right("rcvbufforce", unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4096)
	right("keepalive", unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1)
	right("nodelay", unix.SOL_TCP, unix.TCP_NODELAY, 1)
	for _, link := range []string{"lo", "eth0", "nosuch"} {
		out = append(out, testCase{"option/device-" + link, func(t *trial) { t.udp4().device(link).bind(t.in("0.0.0.0", t.port)).named() }})
	}
	return append(append(out, packetInfoCases()...), []testCase{
		{"option/recverr-loopback", func(t *trial) { t.refusal("127.0.0.1", unix.SOL_IP, unix.IP_RECVERR) }},
		{"option/recverr-loopback6", func(t *trial) { t.refusal("::1", unix.SOL_IPV6, unix.IPV6_RECVERR) }},
		{"option/recverr-self", func(t *trial) { t.refusal("SELF", unix.SOL_IP, unix.IP_RECVERR) }},
		{"option/local-port-range", func(t *trial) {
			low, high := uint16(50000), uint16(50099) // it can only narrow the namespace's range
			s := t.udp4().set(unix.SOL_IP, unix.IP_LOCAL_PORT_RANGE, int(uint32(high)<<16|uint32(low)))
			port := s.bind(t.in("0.0.0.0", 0)).portOf()
			t.saw("inside: %v", port >= low && port <= high)
		}},
		{"option/domain-and-protocol", func(t *trial) {
			s := t.tcp4()
			for _, option := range []int{unix.SO_DOMAIN, unix.SO_TYPE, unix.SO_PROTOCOL, unix.SO_ACCEPTCONN} {
				s.do("getsockopt", func() error {
					v, err := unix.GetsockoptInt(s.fd, unix.SOL_SOCKET, option)
					t.saw("%d", v)
					return err
				})
			}
		}},
	}...)
}

// refusal sends to a port where nobody is, and reads from the error queue where that was.
func (t *trial) refusal(host string, level, option int) {
	s := t.open(familyOf(host), unix.SOCK_DGRAM, 0).set(level, option, 1).send("to nobody", t.in(host, t.port))
	s.do("poll", func() error {
		_, err := unix.Poll([]unix.PollFd{{Fd: int32(s.fd)}}, int(patience.Milliseconds())) // an error is always reported
		return err
	})
	s.do("error queue", func() error {
		_, _, _, to, err := unix.Recvmsg(s.fd, make([]byte, 64), make([]byte, 256), unix.MSG_ERRQUEUE)
		if err == nil {
			t.saw("refused at %s", t.show(to))
		}
		return err
	})
}

// packetInfoCases choose a datagram's source by a control message, and see the
// destination by one.
func packetInfoCases() []testCase {
	var out []testCase
	for _, c := range []struct {
		name, at, to, from string
	}{
		{"self", "0.0.0.0", "SELF", "SELF"},
		{"loopback", "0.0.0.0", "127.0.0.1", "127.0.0.1"},
		{"other", "0.0.0.0", "SELF", "192.0.2.1"},
		{"none", "0.0.0.0", "SELF", "0.0.0.0"},
		{"none-loopback", "0.0.0.0", "127.0.0.1", "0.0.0.0"},
		{"self6", "::", "SELF6", "SELF6"},
		{"loopback6", "::", "::1", "::1"},
		{"other6", "::", "SELF6", "2001:db8::1"},
		{"none6", "::", "SELF6", "::"},
		{"none6-loopback", "::", "::1", "::"},
	} {
		six := familyOf(c.at) == unix.AF_INET6
		level, option := unix.SOL_IP, unix.IP_PKTINFO
		if six {
			level, option = unix.SOL_IPV6, unix.IPV6_RECVPKTINFO
		}
		for _, connected := range []bool{false, true} {
			name := "option/pktinfo-" + c.name
			if connected {
				name += "-connected"
			}
			out = append(out, testCase{name, func(t *trial) {
				server := t.open(familyOf(c.at), unix.SOCK_DGRAM, 0).set(level, option, 1).bind(t.in(c.at, t.port))
				raw, m := t.in(c.from, 0), sock.Message{Data: []byte("ask"), To: t.in(c.to, t.port)}
				if six {
					m.Control = unix.PktInfo6(&unix.Inet6Pktinfo{Addr: [16]byte(raw[8:24])})
				} else {
					m.Control = unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: [4]byte(raw[4:8])})
				}
				client := t.open(familyOf(c.at), unix.SOCK_DGRAM, 0)
				if connected {
					client.connect(m.To)
					m.To = nil
				}
				client.sendMessage(m)
				server.receive()
			}})
		}
	}
	return out
}

// answerCases are servers on the wildcard that answer from the address they were
// asked at, as name servers do.
func answerCases() []testCase {
	var out []testCase
	for _, to := range []string{"SELF", "127.0.0.1", "SELF6", "::1"} {
		six := familyOf(to) == unix.AF_INET6
		any, level, option := "0.0.0.0", unix.SOL_IP, unix.IP_PKTINFO
		if six {
			any, level, option = "::", unix.SOL_IPV6, unix.IPV6_RECVPKTINFO
		}
		for _, connected := range []bool{false, true} {
			name := "answer/pktinfo-" + to
			if connected {
				name += "-connected"
			}
			out = append(out, testCase{name, func(t *trial) {
				server := t.open(familyOf(to), unix.SOCK_DGRAM, 0).set(level, option, 1).bind(t.in(any, t.port))
				client, raw := t.open(familyOf(to), unix.SOCK_DGRAM, 0), t.in(to, t.port)
				if connected {
					client.connect(raw)
					raw = nil
				}
				client.send("ask", raw)
				server.do("answer", func() error { return answerFromThere(t, server.fd, six) })
				client.receive()
			}})
		}
	}
	return out
}

// answerFromThere answers one datagram from its destination.
func answerFromThere(t *trial, fd int, six bool) error {
	control := make([]byte, 256)
	_, n, from, err := t.kernel.Receive(fd, make([]byte, 64), control)
	if err != nil {
		return err
	}
	at, err := sock.PacketDestination(control[:n])
	if err != nil {
		return err
	}
	info := unix.PktInfo6(&unix.Inet6Pktinfo{Addr: at.As16()})
	if !six {
		info = unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: at.As4()})
	}
	return unix.Sendmsg(fd, []byte("answer"), info, from, 0)
}
