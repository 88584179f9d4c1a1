package table

import (
	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/integration/sockets/sock"
)

// echo sends a datagram to a server and lets it answer.
func echo(t *trial, server, client socket, to []byte) {
	client.send("ask", to).named()
	server.do("answer", func() error {
		data := make([]byte, 64)
		n, _, from, err := t.kernel.Receive(server.fd, data, nil)
		if err != nil {
			return err
		}
		t.saw("asked %s by %s", data[:n], t.show(from))
		return unix.Sendto(server.fd, []byte("answer"), 0, from)
	})
	client.receive()
}

// datagramCases exchange datagrams by each address, with sockets that are
// connected and that are not.
func datagramCases() []testCase {
	var out []testCase
	add := func(at, to string) {
		open := func(t *trial) (server, client socket) {
			server = t.open(familyOf(at), unix.SOCK_DGRAM, 0).bind(t.in(at, t.port))
			return server, t.open(familyOf(to), unix.SOCK_DGRAM, 0)
		}
		out = append(out, testCase{"datagram/" + at + "-by-" + to, func(t *trial) {
			server, client := open(t)
			echo(t, server, client, t.in(to, t.port))
		}}, testCase{"datagram/" + at + "-by-" + to + "-connected", func(t *trial) {
			server, client := open(t)
			client.connect(t.in(to, t.port)).named().peered()
			echo(t, server, client, nil)
		}})
	}
	for _, to := range []string{"SELF", "127.0.0.1", "127.1.2.3", "0.0.0.0", "::ffff:SELF", "::ffff:127.0.0.1"} {
		add("0.0.0.0", to)
		add("::", to)
	}
	for _, to := range []string{"SELF6", "::1", "::"} {
		add("::", to)
	}
	add("SELF", "SELF")
	add("SELF", "127.0.0.1")
	add("127.0.0.1", "127.0.0.1")
	add("127.0.0.1", "0.0.0.0")
	add("SELF6", "SELF6")
	add("::1", "::1")
	return out
}

// oddDatagramCases are what programs seldom do, and may.
func oddDatagramCases() []testCase {
	return []testCase{
		{"datagram/refused", func(t *trial) {
			client := t.udp4().connect(t.in("SELF", t.port)).send("x", nil)
			t.try("receive", func() { client.receive() })
		}},
		{"datagram/refused-loopback", func(t *trial) {
			client := t.udp4().connect(t.in("127.0.0.1", t.port)).send("x", nil)
			t.try("receive", func() { client.receive() })
		}},
		{"datagram/disconnect-reconnect", func(t *trial) {
			server := t.udp4().bind(t.in("0.0.0.0", t.port))
			client := t.udp4().connect(t.in("127.0.0.1", t.port)).named().connect(sock.Unspec()).named()
			client.connect(t.in("SELF", t.port)).named()
			echo(t, server, client, nil)
		}},
		{"datagram/reconnect-loopback-to-self", func(t *trial) {
			server := t.udp4().bind(t.in("0.0.0.0", t.port))
			client := t.udp4().connect(t.in("127.0.0.1", t.port)).named().connect(t.in("SELF", t.port)).named()
			echo(t, server, client, nil)
		}},
		{"datagram/reconnect-self-to-loopback", func(t *trial) {
			server := t.udp4().bind(t.in("0.0.0.0", t.port))
			client := t.udp4().connect(t.in("SELF", t.port)).named().connect(t.in("127.0.0.1", t.port)).named()
			echo(t, server, client, nil)
		}},
		{"datagram/disconnect-bound", func(t *trial) {
			t.udp4().bind(t.in("0.0.0.0", t.port)).connect(t.in("SELF", t.port+1)).named().connect(sock.Unspec()).named()
		}},
		{"datagram/connected-sends-elsewhere", func(t *trial) {
			server := t.udp4().bind(t.in("0.0.0.0", t.port))
			client := t.udp4().connect(t.in("SELF", t.port+1)).send("elsewhere", t.in("SELF", t.port))
			server.receive()
			client.send("by loopback", t.in("127.0.0.1", t.port))
			server.receive()
		}},
		{"datagram/autobind", func(t *trial) {
			server := t.udp4().bind(t.in("0.0.0.0", t.port))
			client := t.udp4().send("ask", t.in("SELF", t.port)).named()
			server.receive()
			t.udp4().send("to the autobound", t.in("SELF", client.portOf()))
			client.receive()
		}},
		{"datagram/autobind6", func(t *trial) {
			server := t.udp6().bind(t.in("::", t.port))
			client := t.udp6().send("ask", t.in("SELF6", t.port)).named()
			server.receive()
			t.udp6().send("to the autobound", t.in("SELF6", client.portOf()))
			client.receive()
		}},
		{"datagram/to-itself", func(t *trial) {
			t.udp4().bind(t.in("0.0.0.0", t.port)).send("me", t.in("SELF", t.port)).receive().send("me", t.in("127.0.0.1", t.port)).receive()
		}},
		{"datagram/inet-name-on-inet6", func(t *trial) {
			server := t.udp4().bind(t.in("0.0.0.0", t.port))
			t.udp6().v6only(false).send("ask", t.in("SELF", t.port)).named()
			server.receive()
		}},
		{"datagram/unspec-name", func(t *trial) {
			server := t.udp4().bind(t.in("0.0.0.0", t.port))
			t.udp4().send("ask", sock.As(t.in("SELF", t.port), unix.AF_UNSPEC))
			server.receive()
		}},
		{"datagram/bound-to-loopback-sends-to-self", func(t *trial) {
			server := t.udp4().bind(t.in("0.0.0.0", t.port))
			t.udp4().bind(t.in("127.0.0.1", 0)).send("ask", t.in("SELF", t.port))
			server.receive()
		}},
		{"datagram/empty", func(t *trial) {
			server := t.udp4().bind(t.in("0.0.0.0", t.port))
			t.udp4().send("", t.in("SELF", t.port))
			server.receive()
		}},
	}
}
