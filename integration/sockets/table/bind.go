package table

import (
	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/integration/sockets/sock"
)

// bindCases bind to every kind of address and look at what they got.
func bindCases() []testCase {
	hosts4 := []string{"0.0.0.0", "SELF", "127.0.0.1", "127.0.0.2", "127.1.2.3", "192.0.2.1", "255.255.255.255", "239.1.2.3"}
	hosts6 := []string{"::", "SELF6", "::1", "2001:db8::1", "ff15::1", "fe80::1"}
	mapped := []string{"::ffff:0.0.0.0", "::ffff:SELF", "::ffff:127.0.0.1", "::ffff:192.0.2.1"}
	var out []testCase
	for _, kind := range []struct {
		name string
		open func(t *trial, family int) socket
	}{
		{"tcp", func(t *trial, family int) socket { return t.open(family, unix.SOCK_STREAM, 0) }},
		{"udp", func(t *trial, family int) socket { return t.open(family, unix.SOCK_DGRAM, 0) }},
	} {
		add := func(name string, family int, host string, prepare func(s socket)) {
			out = append(out, testCase{"bind/" + kind.name + "-" + name + host, func(t *trial) {
				s := kind.open(t, family)
				prepare(s)
				s.bind(t.in(host, t.port)).named()
			}})
		}
		nothing := func(socket) {}
		for _, host := range hosts4 {
			add("", unix.AF_INET, host, nothing)
		}
		for _, host := range hosts6 {
			add("v6only-", unix.AF_INET6, host, func(s socket) { s.v6only(true) })
			add("dual-", unix.AF_INET6, host, func(s socket) { s.v6only(false) })
		}
		for _, host := range mapped {
			add("dual-", unix.AF_INET6, host, func(s socket) { s.v6only(false) })
		}
		add("v6only-", unix.AF_INET6, "::ffff:127.0.0.1", func(s socket) { s.v6only(true) })
		out = append(out, testCase{"bind/" + kind.name + "-privileged-port", func(t *trial) {
			kind.open(t, unix.AF_INET).bind(t.in("0.0.0.0", 81)).named()
		}}, testCase{"bind/" + kind.name + "-port-0", func(t *trial) {
			kind.open(t, unix.AF_INET).bind(t.in("0.0.0.0", 0)).named()
		}}, testCase{"bind/" + kind.name + "-port-0-v6", func(t *trial) {
			kind.open(t, unix.AF_INET6).bind(t.in("::", 0)).named()
		}})
	}
	return out
}

// conflictCases bind twice to what overlaps, and what does not.
func conflictCases() []testCase {
	type side struct {
		host    string
		prepare func(s socket)
	}
	plain := func(host string) side { return side{host, func(socket) {}} }
	with := func(host string, option int) side {
		return side{host, func(s socket) { s.set(unix.SOL_SOCKET, option, 1) }}
	}
	only6 := func(host string) side { return side{host, func(s socket) { s.v6only(true) }} }
	family := func(host string) int {
		if host == "SELF6" || host[0] == ':' {
			return unix.AF_INET6
		}
		return unix.AF_INET
	}
	var out []testCase
	add := func(name string, kind int, listening bool, first, second side) {
		out = append(out, testCase{"conflict/" + name, func(t *trial) {
			for i, side := range []side{first, second} {
				t.try([]string{"first", "second"}[i], func() {
					s := t.open(family(side.host), kind, 0)
					side.prepare(s)
					s.bind(t.in(side.host, t.port))
					if listening {
						s.listen()
					}
				})
			}
		}})
	}
	for i, kind := range []int{unix.SOCK_STREAM, unix.SOCK_DGRAM} {
		prefix := []string{"tcp", "udp"}[i]
		add(prefix+"-any-any", kind, false, plain("0.0.0.0"), plain("0.0.0.0"))
		add(prefix+"-any-self", kind, false, plain("0.0.0.0"), plain("SELF"))
		add(prefix+"-self-any", kind, false, plain("SELF"), plain("0.0.0.0"))
		add(prefix+"-self-loopback", kind, false, plain("SELF"), plain("127.0.0.1"))
		add(prefix+"-any-loopback", kind, false, plain("0.0.0.0"), plain("127.0.0.1"))
		add(prefix+"-loopback-any", kind, false, plain("127.0.0.1"), plain("0.0.0.0"))
		add(prefix+"-dual-any4", kind, false, plain("::"), plain("0.0.0.0"))
		add(prefix+"-any4-dual", kind, false, plain("0.0.0.0"), plain("::"))
		add(prefix+"-any4-v6only", kind, false, plain("0.0.0.0"), only6("::"))
		add(prefix+"-v6only-any4", kind, false, only6("::"), plain("0.0.0.0"))
		add(prefix+"-dual-self", kind, false, plain("::"), plain("SELF"))
		add(prefix+"-dual-self6", kind, false, plain("::"), plain("SELF6"))
		add(prefix+"-v6only-loopback6", kind, false, only6("::"), plain("::1"))
		add(prefix+"-reuseaddr", kind, false, with("0.0.0.0", unix.SO_REUSEADDR), with("0.0.0.0", unix.SO_REUSEADDR))
		add(prefix+"-reuseport", kind, false, with("0.0.0.0", unix.SO_REUSEPORT), with("0.0.0.0", unix.SO_REUSEPORT))
		add(prefix+"-reuseport-self", kind, false, with("0.0.0.0", unix.SO_REUSEPORT), with("SELF", unix.SO_REUSEPORT))
		add(prefix+"-reuseport-one", kind, false, with("0.0.0.0", unix.SO_REUSEPORT), plain("0.0.0.0"))
	}
	add("tcp-reuseaddr-listening", unix.SOCK_STREAM, true, with("0.0.0.0", unix.SO_REUSEADDR), with("0.0.0.0", unix.SO_REUSEADDR))
	add("tcp-reuseport-listening", unix.SOCK_STREAM, true, with("0.0.0.0", unix.SO_REUSEPORT), with("0.0.0.0", unix.SO_REUSEPORT))
	add("tcp-self-loopback-listening", unix.SOCK_STREAM, true, plain("SELF"), plain("127.0.0.1"))
	return out
}

// mistakeCases call with wrong arguments, and in the wrong order.
func mistakeCases() []testCase {
	length := func(family int, host string, size int) func(t *trial) {
		return func(t *trial) {
			raw := append(t.in(host, t.port), make([]byte, 128)...)
			s := t.open(family, unix.SOCK_STREAM, 0)
			s.do("bind", func() error { return t.kernel.BindLength(s.fd, raw, size) }).named()
		}
	}
	as := func(open func(t *trial) socket, host string, family uint16) func(t *trial) {
		return func(t *trial) { open(t).bind(sock.As(t.in(host, t.port), family)).named() }
	}
	tcp4, udp4, tcp6 := (*trial).tcp4, (*trial).udp4, (*trial).tcp6
	return []testCase{
		{"mistake/bind-length-0", length(unix.AF_INET, "0.0.0.0", 0)},
		{"mistake/bind-length-2", length(unix.AF_INET, "0.0.0.0", 2)},
		{"mistake/bind-length-15", length(unix.AF_INET, "0.0.0.0", 15)},
		{"mistake/bind-length-128", length(unix.AF_INET, "0.0.0.0", 128)},
		{"mistake/bind-length-129", length(unix.AF_INET, "0.0.0.0", 129)},
		{"mistake/bind-length-negative", length(unix.AF_INET, "0.0.0.0", -1)},
		{"mistake/bind6-length-16", length(unix.AF_INET6, "::", 16)},
		{"mistake/bind6-length-23", length(unix.AF_INET6, "::", 23)},
		{"mistake/bind6-length-24", length(unix.AF_INET6, "::", 24)},
		{"mistake/bind-unspec-any", as(tcp4, "0.0.0.0", unix.AF_UNSPEC)},
		{"mistake/bind-unspec-any-udp", as(udp4, "0.0.0.0", unix.AF_UNSPEC)},
		{"mistake/bind-unspec-self", as(tcp4, "SELF", unix.AF_UNSPEC)},
		{"mistake/bind-inet6-on-inet", as(tcp4, "0.0.0.0", unix.AF_INET6)},
		{"mistake/bind-inet-on-inet6", as(tcp6, "::", unix.AF_INET)},
		{"mistake/bind-unix-on-inet", as(tcp4, "0.0.0.0", unix.AF_UNIX)},
		{"mistake/bind-twice", func(t *trial) {
			s := t.tcp4().bind(t.in("0.0.0.0", t.port))
			s.bind(t.in("0.0.0.0", t.port+1))
		}},
		{"mistake/bind-twice-udp", func(t *trial) {
			s := t.udp4().bind(t.in("0.0.0.0", t.port))
			s.bind(t.in("0.0.0.0", t.port+1))
		}},
		{"mistake/bind-closed", func(t *trial) {
			s := t.tcp4()
			s.close()
			s.bind(t.in("0.0.0.0", t.port))
		}},
		{"mistake/bind-after-connect", func(t *trial) {
			t.udp4().connect(t.in("SELF", t.port)).bind(t.in("0.0.0.0", t.port+1))
		}},
		{"mistake/bind-after-listen", func(t *trial) { t.tcp4().listen().bind(t.in("0.0.0.0", t.port)) }},
		{"mistake/listen-udp", func(t *trial) { t.udp4().listen() }},
		{"mistake/accept-without-listen", func(t *trial) { t.tcp4().bind(t.in("0.0.0.0", t.port)).accept() }},
		{"mistake/peername-unconnected", func(t *trial) { t.tcp4().peered() }},
		{"mistake/sockname-unbound", func(t *trial) { t.tcp4().named() }},
		{"mistake/sockname-unbound-udp6", func(t *trial) { t.udp6().named() }},
		{"mistake/send-without-address", func(t *trial) { t.udp4().send("x", nil) }},
		{"mistake/send-port-0", func(t *trial) { t.udp4().send("x", t.in("SELF", 0)) }},
		{"mistake/send-length-3", func(t *trial) { t.udp4().send("x", t.in("SELF", t.port)[:3]) }},
		{"mistake/send-unconnected-tcp", func(t *trial) { t.tcp4().send("x", nil) }},
		{"mistake/connect-length-3", func(t *trial) { t.tcp4().connect(t.in("SELF", t.port)[:3]) }},
		{"mistake/connect-inet-on-inet6", func(t *trial) { t.tcp6().connect(t.in("127.0.0.1", t.port)) }},
		{"mistake/connect-inet6-on-inet", func(t *trial) { t.tcp4().connect(t.in("::1", t.port)) }},
		{"mistake/shutdown-unconnected", func(t *trial) { t.tcp4().shutdown(unix.SHUT_RDWR) }},
		{"mistake/connect-mapped-v6only", func(t *trial) { t.tcp6().v6only(true).connect(t.in("::ffff:127.0.0.1", t.port)) }},
		{"mistake/send-mapped-v6only", func(t *trial) { t.udp6().v6only(true).send("x", t.in("::ffff:127.0.0.1", t.port)) }},
	}
}
