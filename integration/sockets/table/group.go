package table

import (
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/integration/sockets/sock"
)

// groupCases send to many, and receive as one of them.
func groupCases() []testCase {
	group := [4]byte{239, 1, 2, 3}
	join := func(s socket) socket {
		return s.do("join", func() error {
			return unix.SetsockoptIPMreqn(s.fd, unix.SOL_IP, unix.IP_ADD_MEMBERSHIP, &unix.IPMreqn{Multiaddr: group})
		})
	}
	joinBy := func(s socket, by string) socket {
		return s.do("join", func() error {
			var m unix.IPMreq
			m.Multiaddr = group
			copy(m.Interface[:], s.in(by, 0)[4:8])
			return unix.SetsockoptIPMreq(s.fd, unix.SOL_IP, unix.IP_ADD_MEMBERSHIP, &m)
		})
	}
	return []testCase{
		{"group/join", func(t *trial) { join(t.udp4()) }},
		{"group/join-by-own-address", func(t *trial) { joinBy(t.udp4(), "SELF") }},
		{"group/interface-by-own-address", func(t *trial) {
			s := t.udp4()
			s.do("setsockopt", func() error {
				return unix.SetsockoptInet4Addr(s.fd, unix.SOL_IP, unix.IP_MULTICAST_IF, [4]byte(t.in("SELF", 0)[4:8]))
			})
		}},
		{"group/receive-bound-to-group", func(t *trial) {
			s := join(t.udp4().bind(t.in("239.1.2.3", t.port)))
			t.udp4().send("all", t.in("239.1.2.3", t.port))
			s.receive()
		}},
		{"group/receive-bound-to-any", func(t *trial) {
			s := join(t.udp4().bind(t.in("0.0.0.0", t.port)))
			t.udp4().send("all", t.in("239.1.2.3", t.port))
			s.receive()
		}},
		{"group/bound", func(t *trial) { t.udp4().bind(t.in("239.1.2.3", t.port)).named().connect(t.in("PEER", 7)) }},
		{"group/bound6", func(t *trial) { t.udp6().bind(t.in("ff15::1", t.port)).named().connect(t.in("PEER6", 7)) }},
		{"group/bound-sends", func(t *trial) { t.udp4().bind(t.in("239.1.2.3", t.port)).send("hello", t.in("PEER", 7)) }},
		{"group/bound-tcp", func(t *trial) { t.tcp4().bind(t.in("239.1.2.3", t.port)) }},
		{"group/join6", func(t *trial) {
			s := t.udp6()
			s.do("join", func() error {
				m := &unix.IPv6Mreq{Multiaddr: netip.MustParseAddr("ff15::1").As16()}
				return unix.SetsockoptIPv6Mreq(s.fd, unix.SOL_IPV6, unix.IPV6_ADD_MEMBERSHIP, m)
			})
		}},
		{"group/broadcast-forbidden", func(t *trial) { t.udp4().send("all", t.in("255.255.255.255", t.port)) }},
		{"group/broadcast", func(t *trial) {
			s := t.udp4().bind(t.in("0.0.0.0", t.port))
			t.udp4().set(unix.SOL_SOCKET, unix.SO_BROADCAST, 1).send("all", t.in("255.255.255.255", t.port))
			s.receive()
		}},
		{"group/connect-broadcast", func(t *trial) { t.udp4().connect(t.in("255.255.255.255", t.port)) }},
	}
}

// pingCases ask for echoes by sockets that need no rights (icmp(7)).
func pingCases() []testCase {
	var out []testCase
	ping := func(name, to string, prepare func(t *trial, s socket), connected bool) {
		out = append(out, testCase{"ping/" + name, func(t *trial) {
			protocol, request := unix.IPPROTO_ICMP, byte(8)
			level, option := unix.SOL_IP, unix.IP_PKTINFO
			if familyOf(to) == unix.AF_INET6 {
				protocol, request = unix.IPPROTO_ICMPV6, 128
				level, option = unix.SOL_IPV6, unix.IPV6_RECVPKTINFO
			}
			s := t.open(familyOf(to), unix.SOCK_DGRAM, protocol).set(level, option, 1)
			prepare(t, s)
			m := sock.Message{Data: []byte{request, 0, 0, 0, 0, 0, 0, 1}, To: t.in(to, 0)}
			if connected {
				s.connect(m.To)
				m.To = nil
				s.do("getsockname", func() error { // its port is an identifier, of any size
					name, err := unix.Getsockname(s.fd)
					t.saw("sockname %s", t.name(sock.AddrPort(name).Addr()))
					return err
				})
			}
			s.sendMessage(m).do("receive", func() error {
				data, control := make([]byte, 64), make([]byte, 256)
				n, controlled, from, err := t.kernel.Receive(s.fd, data, control)
				if err != nil {
					return err
				}
				asker, err := sock.PacketDestination(control[:controlled])
				t.saw("type %d of %d bytes from %s to %s", data[0], n, t.show(from), t.name(asker))
				return err
			})
		}})
	}
	nothing := func(*trial, socket) {}
	for _, to := range []string{"SELF", "127.0.0.1", "SELF6", "::1", "PEER", "PEER6"} {
		ping(to, to, nothing, false)
		ping(to+"-connected", to, nothing, true)
	}
	ping("bound", "PEER", func(t *trial, s socket) { s.bind(t.in("SELF", 0)) }, false)
	ping("bound-any", "PEER", func(t *trial, s socket) { s.bind(t.in("0.0.0.0", 0)) }, false)
	ping("bound-other", "PEER", func(t *trial, s socket) { s.bind(t.in("192.0.2.1", 0)) }, false)
	ping("bound6", "PEER6", func(t *trial, s socket) { s.bind(t.in("SELF6", 0)) }, false)
	return append(out,
		testCase{"ping/wrong-type", func(t *trial) {
			t.open(unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_ICMP).send("\x00\x00\x00\x00\x00\x00\x00\x01", t.in("SELF", 0))
		}},
		testCase{"ping/sockname", func(t *trial) { t.open(unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_ICMP).named() }})
}
