package table

import (
	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/integration/sockets/sock"
)

// Ports of the victim of package attack, which is the partner here.
const (
	peerTCP  = 7001
	peerTCP6 = 7002
	peerDual = 7003 // both families by one socket
	peerUDP  = 7011
	peerUDP6 = 7012
	dualUDP  = 7013
	peerLo   = 7021
	peerOwn  = 7004
	peerNone = 7099
)

// peerCases speak with another container of the network.
func peerCases() []testCase {
	tcp := func(host string, port uint16, prepare func(t *trial, s socket)) func(t *trial) {
		return func(t *trial) {
			s := t.open(familyOf(host), unix.SOCK_STREAM, 0)
			prepare(t, s)
			s.connect(t.in(host, port)).named().peered().greeted()
		}
	}
	udp := func(host string, port uint16, connected bool, prepare func(t *trial, s socket)) func(t *trial) {
		return func(t *trial) {
			s, to := t.open(familyOf(host), unix.SOCK_DGRAM, 0), t.in(host, port)
			prepare(t, s)
			if connected {
				s.connect(to).named().peered()
				to = nil
			}
			s.send("table", to).greeted()
		}
	}
	nothing := func(*trial, socket) {}
	from := func(host string) func(t *trial, s socket) {
		return func(t *trial, s socket) { s.bind(t.in(host, 0)).named() }
	}
	return []testCase{
		{"peer/tcp", tcp("PEER", peerTCP, nothing)},
		{"peer/tcp-own", tcp("PEER", peerOwn, nothing)},
		{"peer/tcp6", tcp("PEER6", peerTCP6, nothing)},
		{"peer/tcp-mapped", tcp("::ffff:PEER", peerTCP, nothing)},
		{"peer/tcp-from-any", tcp("PEER", peerTCP, from("0.0.0.0"))},
		{"peer/tcp-from-self", tcp("PEER", peerTCP, from("SELF"))},
		{"peer/tcp-from-self6", tcp("PEER6", peerTCP6, from("SELF6"))},
		{"peer/tcp-closed", tcp("PEER", peerNone, nothing)},
		{"peer/tcp-loopback-service", tcp("PEER", peerLo, nothing)},
		{"peer/tcp-own-loopback", tcp("127.0.0.1", peerTCP, nothing)},
		{"peer/tcp-own-loopback6", tcp("::1", peerTCP6, nothing)},
		{"peer/mptcp", func(t *trial) {
			t.open(unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_MPTCP).connect(t.in("PEER", peerTCP)).named().peered().greeted()
		}},
		{"peer/fastopen", func(t *trial) {
			t.tcp4().sendMessage(sock.Message{Data: []byte("early\n"), To: t.in("PEER", peerTCP), Flags: unix.MSG_FASTOPEN}).named().peered().greeted()
		}},
		{"peer/udp", udp("PEER", peerUDP, false, nothing)},
		{"peer/udp-connected", udp("PEER", peerUDP, true, nothing)},
		{"peer/udp6", udp("PEER6", peerUDP6, false, nothing)},
		{"peer/udp6-connected", udp("PEER6", peerUDP6, true, nothing)},
		{"peer/udp-mapped", udp("::ffff:PEER", peerUDP, false, nothing)},
		{"peer/udp-from-self", udp("PEER", peerUDP, false, from("SELF"))},
		{"peer/udp-from-any", udp("PEER", peerUDP, false, from("0.0.0.0"))},
		{"peer/udp-from-loopback", udp("PEER", peerUDP, false, from("127.0.0.1"))},
		{"peer/udp-autobound-connected", udp("PEER", peerUDP, true, func(t *trial, s socket) { s.send("x", t.in("SELF", t.port)) })},
		{"peer/udp6-autobound-connected", udp("PEER6", peerUDP6, true, func(t *trial, s socket) { s.send("x", t.in("SELF6", t.port)) })},
		{"peer/udp-reconnected", udp("PEER", peerUDP, true, func(t *trial, s socket) {
			s.bind(t.in("0.0.0.0", t.port)).connect(t.in("PEER", peerNone)).connect(sock.Unspec()).named()
		})},
		{"peer/udp-disconnected", udp("PEER", peerUDP, false, func(t *trial, s socket) {
			s.bind(t.in("0.0.0.0", t.port)).connect(t.in("PEER", peerNone)).connect(sock.Unspec()).named()
		})},
		{"peer/tcp-reconnected", tcp("PEER", peerTCP, func(t *trial, s socket) {
			s.connect(t.in("PEER", peerOwn)).connect(sock.Unspec()).named()
		})},
		{"peer/tcp6-dual", tcp("PEER6", peerDual, nothing)},
		{"peer/udp6-dual", udp("PEER6", dualUDP, false, nothing)},
		{"peer/udp6-dual-connected", udp("PEER6", dualUDP, true, nothing)},
		{"peer/udp6-from-dual", udp("PEER6", peerUDP6, false, func(t *trial, s socket) { s.v6only(false).bind(t.in("::", 0)).named() })},
		{"peer/tcp6-from-dual", tcp("PEER6", peerTCP6, func(t *trial, s socket) { s.v6only(false).bind(t.in("::", 0)).named() })},
		{"peer/udp-connected-tos", withControl("PEER", peerUDP, unix.SOL_IP, unix.IP_TOS)},
		{"peer/udp6-connected-class", withControl("PEER6", peerUDP6, unix.SOL_IPV6, unix.IPV6_TCLASS)},
		{"peer/udp-connected-pktinfo", func(t *trial) {
			t.udp4().connect(t.in("PEER", peerUDP)).sendMessage(sock.Message{Data: []byte("table"), Control: unix.PktInfo4(&unix.Inet4Pktinfo{})}).greeted()
		}},
		{"peer/udp6-connected-pktinfo", func(t *trial) {
			t.udp6().connect(t.in("PEER6", peerUDP6)).sendMessage(sock.Message{Data: []byte("table"), Control: unix.PktInfo6(&unix.Inet6Pktinfo{})}).greeted()
		}},
		{"peer/udp-refused", func(t *trial) {
			s := t.udp4().connect(t.in("PEER", peerNone)).send("x", nil)
			t.try("receive", func() { s.receive() })
		}},
	}
}

// withControl sends from a connected socket with a control message that is about
// something else than addresses.
func withControl(host string, port uint16, level, kind int) func(t *trial) {
	return func(t *trial) {
		s := t.open(familyOf(host), unix.SOCK_DGRAM, 0).connect(t.in(host, port))
		s.sendMessage(sock.Message{Data: []byte("table"), Control: sock.ControlInt(level, kind, 0)}).greeted()
	}
}
