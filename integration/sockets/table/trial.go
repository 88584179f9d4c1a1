package table

import (
	"fmt"
	"net/netip"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/integration/sockets/attack"
	"github.com/particle-net/particle/integration/sockets/sock"
)

// Party are the addresses of a container.
type Party struct{ Four, Six netip.Addr }

// Line is the outcome of a case.
type Line struct {
	Name   string   `json:"name"`
	Result string   `json:"result"`          // ok, or the call that failed
	Errno  string   `json:"errno,omitempty"` // its errno
	Seen   []string `json:"seen,omitempty"`  // what the kernel told, in order
}

// trial runs one case. After a failure its calls do nothing, so that cases need
// not look at errors.
type trial struct {
	kernel *sock.Kernel
	self   Party
	peer   Party
	line   Line
	port   uint16 // of this case alone; the three after it, too
	broken bool
}

// fail ends the case.
func (t *trial) fail(call string, err error) {
	if err != nil && !t.broken {
		t.broken, t.line.Result, t.line.Errno = true, call, sock.Errno(err)
	}
}

// saw notes something the kernel told.
func (t *trial) saw(format string, args ...any) {
	if !t.broken {
		t.line.Seen = append(t.line.Seen, fmt.Sprintf(format, args...))
	}
}

// try notes the answer to a call that may fail, and goes on.
func (t *trial) try(what string, call func()) bool {
	if t.broken {
		return false
	}
	call()
	failed := t.broken
	answer := "ok"
	if failed {
		answer = t.line.Errno
		t.broken, t.line.Result, t.line.Errno = false, "", ""
	}
	t.saw("%s: %s", what, answer)
	return !failed
}

// show renders an address without what differs from run to run.
func (t *trial) show(sa unix.Sockaddr) string {
	if ap := sock.AddrPort(sa); ap.IsValid() {
		return t.showPort(ap)
	}
	return sock.Text(sa)
}

func (t *trial) showPort(ap netip.AddrPort) string {
	port := fmt.Sprint(ap.Port())
	switch p := ap.Port(); {
	case p >= t.port && p < t.port+portsPerCase:
		port = fmt.Sprintf("P%d", p-t.port)
	case p > 1023 && (p < partnerPorts || p >= firstPort):
		port = "EPH"
	}
	return t.name(ap.Addr()) + ":" + port
}

func (t *trial) name(addr netip.Addr) string {
	prefix := ""
	if addr.Is4In6() {
		prefix, addr = "::ffff:", addr.Unmap()
	}
	switch addr.WithZone("") {
	case t.self.Four:
		return prefix + "SELF"
	case t.self.Six:
		return "[SELF6]"
	case t.peer.Four:
		return prefix + "PEER"
	case t.peer.Six:
		return "[PEER6]"
	}
	if prefix == "" && addr.Is6() {
		return "[" + addr.String() + "]"
	}
	return prefix + addr.String()
}

// socket is one of a trial.
type socket struct {
	*trial
	fd int
}

func (t *trial) open(family, kind, protocol int) socket {
	s := socket{t, -1}
	if t.broken {
		return s
	}
	fd, err := t.kernel.Socket(family, kind, protocol)
	t.fail("socket", err)
	s.fd = fd
	return s
}

func (t *trial) tcp4() socket { return t.open(unix.AF_INET, unix.SOCK_STREAM, 0) }
func (t *trial) udp4() socket { return t.open(unix.AF_INET, unix.SOCK_DGRAM, 0) }
func (t *trial) tcp6() socket { return t.open(unix.AF_INET6, unix.SOCK_STREAM, 0) }
func (t *trial) udp6() socket { return t.open(unix.AF_INET6, unix.SOCK_DGRAM, 0) }

// do makes a call unless one has failed before.
func (s socket) do(call string, fn func() error) socket {
	if !s.broken {
		s.fail(call, fn())
	}
	return s
}

func (s socket) set(level, option, value int) socket {
	return s.do("setsockopt", func() error { return unix.SetsockoptInt(s.fd, level, option, value) })
}

func (s socket) v6only(on bool) socket {
	return s.set(unix.SOL_IPV6, unix.IPV6_V6ONLY, map[bool]int{true: 1}[on])
}

func (s socket) device(name string) socket {
	return s.do("bindtodevice", func() error { return unix.SetsockoptString(s.fd, unix.SOL_SOCKET, unix.SO_BINDTODEVICE, name) })
}

func (s socket) bind(to []byte) socket {
	return s.do("bind", func() error { return s.kernel.Bind(s.fd, to) })
}

func (s socket) connect(to []byte) socket {
	return s.do("connect", func() error { return s.kernel.Connect(s.fd, to) })
}

func (s socket) listen() socket {
	return s.do("listen", func() error { return s.kernel.Listen(s.fd) })
}

func (s socket) send(text string, to []byte) socket {
	return s.sendMessage(sock.Message{Data: []byte(text), To: to})
}

func (s socket) sendMessage(m sock.Message) socket {
	return s.do("send", func() error { _, err := s.kernel.Send(s.fd, m); return err })
}

func (s socket) shutdown(how int) socket {
	return s.do("shutdown", func() error { return unix.Shutdown(s.fd, how) })
}

// accept notes the address that comes with the connection.
func (s socket) accept() socket {
	conn := socket{s.trial, -1}
	s.do("accept", func() error {
		fd, peer, err := s.kernel.Accept(s.fd)
		conn.fd = fd
		if err == nil {
			s.saw("accept %s", s.show(peer))
		}
		return err
	})
	return conn
}

// receive notes text, sender, and with control the destination.
func (s socket) receive() socket {
	return s.do("receive", func() error {
		data, control := make([]byte, 2048), make([]byte, 256)
		n, controlled, from, err := s.kernel.Receive(s.fd, data, control)
		if err != nil {
			return err
		}
		what := "received " + string(data[:n])
		if from != nil {
			what += " from " + s.show(from)
		}
		if to, err := sock.PacketDestination(control[:controlled]); err == nil {
			what += " to " + s.name(to)
		}
		s.saw("%s", what)
		return nil
	})
}

// names notes getsockname.
func (s socket) named() socket {
	return s.do("getsockname", func() error {
		name, err := unix.Getsockname(s.fd)
		if err == nil {
			s.saw("sockname %s", s.show(name))
		}
		return err
	})
}

// peered notes getpeername.
func (s socket) peered() socket {
	return s.do("getpeername", func() error {
		name, err := unix.Getpeername(s.fd)
		if err == nil {
			s.saw("peername %s", s.show(name))
		}
		return err
	})
}

// portOf is the port that a socket has got.
func (s socket) portOf() uint16 {
	name, err := unix.Getsockname(s.fd)
	s.fail("getsockname", err)
	return sock.AddrPort(name).Port()
}

// greeted notes how a victim sees this container.
func (s socket) greeted() socket {
	return s.do("receive", func() error {
		data := make([]byte, 2048)
		n, _, from, err := s.kernel.Receive(s.fd, data, nil)
		if err != nil {
			return err
		}
		if from != nil {
			s.saw("answer from %s", s.show(from))
		}
		as, err := netip.ParseAddrPort(strings.TrimPrefix(string(data[:n]), attack.Greeting))
		s.saw("known as %s", s.showPort(as))
		return err
	})
}

func (s socket) close() { s.do("close", func() error { return unix.Close(s.fd) }) }

// in is an address of this trial: "SELF" and "SELF6" are the own ones, and an
// address behind "::ffff:" is mapped.
func (t *trial) in(host string, port uint16) []byte {
	switch host {
	case "SELF":
		return sock.In(t.self.Four, port)
	case "SELF6":
		return sock.In(t.self.Six, port)
	case "::ffff:SELF":
		return sock.In(netip.AddrFrom16(t.self.Four.As16()), port)
	case "PEER":
		return sock.In(t.peer.Four, port)
	case "PEER6":
		return sock.In(t.peer.Six, port)
	case "::ffff:PEER":
		return sock.In(netip.AddrFrom16(t.peer.Four.As16()), port)
	}
	return sock.At(host, port)
}
