package table

import (
	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/integration/sockets/sock"
)

// meet lets a client connect to a listener and looks at both ends.
func meet(t *trial, server, client socket, bound, to []byte) {
	server.bind(bound).listen()
	client.connect(to).named().peered()
	server.accept().named().peered()
}

// connectCases connect to what listens, by each address that leads there.
func connectCases() []testCase {
	var out []testCase
	add := func(at, to string, only6 bool) {
		name := "connect/" + at
		if only6 {
			name += "-v6only"
		}
		out = append(out, testCase{name + "-by-" + to, func(t *trial) {
			server, client := t.open(familyOf(at), unix.SOCK_STREAM, 0), t.open(familyOf(to), unix.SOCK_STREAM, 0)
			if only6 {
				server.v6only(true)
			}
			meet(t, server, client, t.in(at, t.port), t.in(to, t.port))
		}})
	}
	for _, to := range []string{"SELF", "127.0.0.1", "127.0.0.2", "127.1.2.3", "0.0.0.0", "::ffff:SELF", "::ffff:127.0.0.1"} {
		add("0.0.0.0", to, false)
		add("::", to, false)
	}
	for _, to := range []string{"SELF", "127.0.0.1", "0.0.0.0"} {
		add("SELF", to, false)
		add("127.0.0.1", to, false)
	}
	add("127.0.0.2", "127.0.0.2", false)
	for _, to := range []string{"SELF6", "::1", "::"} {
		add("::", to, false)
		add("::", to, true)
		add("SELF6", to, false)
		add("::1", to, false)
	}
	add("::", "127.0.0.1", true)
	add("0.0.0.0", "::1", false)
	add("::ffff:127.0.0.1", "127.0.0.1", false)
	add("::ffff:SELF", "SELF", false)
	for _, to := range []string{"SELF", "127.0.0.1", "SELF6", "::1", "0.0.0.0", "::ffff:127.0.0.1", "255.255.255.255", "239.1.2.3"} {
		out = append(out, testCase{"connect/nobody-" + to, func(t *trial) {
			t.open(familyOf(to), unix.SOCK_STREAM, 0).connect(t.in(to, t.port))
		}})
	}
	return out
}

// familyOf is the family of sockets that use an address of trial.in.
func familyOf(host string) int {
	if host == "SELF6" || host == "PEER6" || host[0] == ':' {
		return unix.AF_INET6
	}
	return unix.AF_INET
}

// groupOfListeners lets two listeners share a port, and counts the connections that
// reach either: which of them is the kernel's choice.
func groupOfListeners(at, to string, only6 bool) func(t *trial) {
	return func(t *trial) {
		const count = 8
		var listeners []socket
		for range 2 {
			s := t.open(familyOf(at), unix.SOCK_STREAM, 0).set(unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
			if only6 {
				s.v6only(true)
			}
			listeners = append(listeners, s.bind(t.in(at, t.port)).listen())
		}
		for range count {
			t.open(familyOf(to), unix.SOCK_STREAM, 0).connect(t.in(to, t.port))
		}
		accepted := 0
		for _, l := range listeners {
			for !t.broken && t.kernel.Await(l.fd, 0) == nil {
				if _, _, err := t.kernel.Accept(l.fd); err != nil {
					t.fail("accept", err)
				}
				accepted++
			}
		}
		t.saw("%d of %d", accepted, count)
	}
}

// streamCases are connections out of the ordinary.
func streamCases() []testCase {
	// from lets a client bind before it connects.
	from := func(source, to string, options ...int) func(t *trial) {
		return func(t *trial) {
			client := t.open(familyOf(source), unix.SOCK_STREAM, 0)
			for _, o := range options {
				client.set(unix.SOL_IP, o, 1)
			}
			client.bind(t.in(source, 0))
			meet(t, t.open(familyOf(to), unix.SOCK_STREAM, 0), client, t.in(map[int]string{unix.AF_INET: "0.0.0.0", unix.AF_INET6: "::"}[familyOf(to)], t.port), t.in(to, t.port))
		}
	}
	mptcp := func(family int, at, to string) func(t *trial) {
		return func(t *trial) {
			meet(t, t.open(family, unix.SOCK_STREAM, unix.IPPROTO_MPTCP), t.open(family, unix.SOCK_STREAM, unix.IPPROTO_MPTCP), t.in(at, t.port), t.in(to, t.port))
		}
	}
	return []testCase{
		{"stream/from-any-to-self", from("0.0.0.0", "SELF")},
		{"stream/from-any-to-loopback", from("0.0.0.0", "127.0.0.1")},
		{"stream/from-self-to-self", from("SELF", "SELF")},
		{"stream/from-self-to-loopback", from("SELF", "127.0.0.1")},
		{"stream/from-loopback-to-self", from("127.0.0.1", "SELF")},
		{"stream/from-loopback-to-loopback", from("127.0.0.1", "127.0.0.1")},
		{"stream/from-any6-to-self6", from("::", "SELF6")},
		{"stream/from-any6-to-loopback6", from("::", "::1")},
		{"stream/from-self6-to-loopback6", from("SELF6", "::1")},
		{"stream/from-no-port", from("SELF", "SELF", unix.IP_BIND_ADDRESS_NO_PORT)},
		{"stream/from-any-no-port", from("0.0.0.0", "SELF", unix.IP_BIND_ADDRESS_NO_PORT)},
		{"stream/to-itself", func(t *trial) {
			t.tcp4().set(unix.SOL_SOCKET, unix.SO_REUSEADDR, 1).bind(t.in("SELF", t.port)).connect(t.in("SELF", t.port)).named().peered()
		}},
		{"stream/mptcp", mptcp(unix.AF_INET, "0.0.0.0", "SELF")},
		{"stream/mptcp-loopback", mptcp(unix.AF_INET, "0.0.0.0", "127.0.0.1")},
		{"stream/mptcp6", mptcp(unix.AF_INET6, "::", "SELF6")},
		{"stream/mptcp6-loopback", mptcp(unix.AF_INET6, "::", "::1")},
		{"stream/fastopen-send", func(t *trial) {
			server := t.tcp4().set(unix.SOL_TCP, unix.TCP_FASTOPEN, 8).bind(t.in("0.0.0.0", t.port)).listen()
			t.tcp4().sendMessage(sock.Message{Data: []byte("early"), To: t.in("SELF", t.port), Flags: unix.MSG_FASTOPEN}).named().peered()
			server.accept().receive().named()
		}},
		{"stream/fastopen-connect", func(t *trial) {
			server := t.tcp4().bind(t.in("0.0.0.0", t.port)).listen()
			t.tcp4().set(unix.SOL_TCP, unix.TCP_FASTOPEN_CONNECT, 1).connect(t.in("127.0.0.1", t.port)).send("early", nil).named().peered()
			server.accept().receive().named()
		}},
		{"stream/device-loopback", func(t *trial) {
			server := t.tcp4().device("lo").bind(t.in("0.0.0.0", t.port)).listen()
			t.tcp4().connect(t.in("127.0.0.1", t.port)).named()
			server.accept().named()
		}},
		{"stream/v4-and-v6-on-one-port", func(t *trial) {
			four := t.tcp4().bind(t.in("0.0.0.0", t.port)).listen()
			six := t.tcp6().v6only(true).bind(t.in("::", t.port)).listen()
			t.tcp4().connect(t.in("127.0.0.1", t.port))
			four.accept()
			t.tcp6().connect(t.in("::1", t.port))
			six.accept()
		}},
		{"stream/self-and-loopback-on-one-port", func(t *trial) {
			own := t.tcp4().bind(t.in("SELF", t.port)).listen()
			private := t.tcp4().bind(t.in("127.0.0.1", t.port)).listen()
			t.tcp4().connect(t.in("127.0.0.1", t.port))
			private.accept().named()
			t.tcp4().connect(t.in("SELF", t.port))
			own.accept().named()
		}},
	}
}

// oddStreamCases are connections that programs seldom make.
func oddStreamCases() []testCase {
	return []testCase{
		{"stream/listen-unbound", func(t *trial) {
			server := t.tcp4().listen().named()
			t.tcp4().connect(t.in("SELF", server.portOf())).named()
			server.accept().named()
		}},
		{"stream/listen-unbound-by-loopback", func(t *trial) {
			server := t.tcp4().listen()
			t.tcp4().connect(t.in("127.0.0.1", server.portOf())).named()
			server.accept().named()
		}},
		{"stream/listen-unbound6", func(t *trial) {
			server := t.tcp6().listen().named()
			t.tcp6().connect(t.in("SELF6", server.portOf())).named()
			server.accept().named()
		}},
		{"stream/connect-twice", func(t *trial) {
			t.tcp4().bind(t.in("SELF", t.port)).listen()
			t.tcp4().connect(t.in("SELF", t.port)).connect(t.in("SELF", t.port))
		}},
		{"stream/connect-listener", func(t *trial) {
			t.tcp4().bind(t.in("SELF", t.port)).listen().connect(t.in("SELF", t.port))
		}},
		{"stream/disconnect-reconnect", func(t *trial) {
			t.tcp4().bind(t.in("0.0.0.0", t.port)).listen()
			client := t.tcp4().connect(t.in("SELF", t.port)).named().connect(sock.Unspec()).named()
			client.connect(t.in("127.0.0.1", t.port)).named().peered()
		}},
		{"stream/disconnect-bound", func(t *trial) {
			t.tcp4().bind(t.in("0.0.0.0", t.port)).listen()
			t.tcp4().bind(t.in("SELF", 0)).connect(t.in("SELF", t.port)).connect(sock.Unspec()).named()
		}},
		{"stream/shutdown", func(t *trial) {
			server := t.tcp4().bind(t.in("0.0.0.0", t.port)).listen()
			client := t.tcp4().connect(t.in("SELF", t.port)).send("last words", nil).shutdown(unix.SHUT_WR)
			conn := server.accept().receive().receive()
			conn.send("answer", nil)
			client.receive()
			t.try("send after shutdown", func() { client.send("more", nil) })
		}},
		{"stream/shutdown-listener", func(t *trial) {
			t.tcp4().bind(t.in("0.0.0.0", t.port)).listen().shutdown(unix.SHUT_RD)
			t.tcp4().connect(t.in("SELF", t.port))
		}},
		{"stream/group", groupOfListeners("0.0.0.0", "SELF", false)},
		{"stream/group-by-loopback", groupOfListeners("0.0.0.0", "127.0.0.1", false)},
		{"stream/group-dual", groupOfListeners("::", "SELF", false)},
		{"stream/group-dual-by-own6", groupOfListeners("::", "SELF6", false)},
		{"stream/group-dual-by-loopback6", groupOfListeners("::", "::1", false)},
		{"stream/group-v6only", groupOfListeners("::", "SELF6", true)},
	}
}
