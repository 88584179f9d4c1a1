package attack

import (
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/integration/sockets/sock"
)

// prepare makes a socket receive on a port. It returns the port.
type prepare func(a *attacker, t transport, fd int) (uint16, error)

// bindTo binds to an address that programs use, and listens.
func bindTo(addr []byte, port uint16) prepare {
	return func(a *attacker, t transport, fd int) (uint16, error) {
		err := a.Bind(fd, addr)
		if err == nil && t.stream() {
			err = a.Listen(fd)
		}
		return port, err
	}
}

// portOf is the port the kernel has chosen.
func portOf(fd int) (uint16, error) {
	name, err := unix.Getsockname(fd)
	return sock.AddrPort(name).Port(), err
}

// unbound receives without a call of bind.
func unbound(a *attacker, t transport, fd int) (uint16, error) {
	var err error
	if t.stream() {
		err = a.Listen(fd)
	} else {
		_, err = a.Send(fd, sock.Message{Data: []byte("autobind"), To: t.at(a.Self, portFree+39)})
	}
	if err != nil {
		return 0, err
	}
	return portOf(fd)
}

// disconnected receives on what a connect left of the socket.
func disconnected(bindFirst uint16) prepare {
	return func(a *attacker, t transport, fd int) (uint16, error) {
		var err error
		if bindFirst != 0 {
			err = a.Bind(fd, t.at(wildcard(), bindFirst))
		}
		to := t.at(a.Victim, t.anyPort())
		if err == nil {
			err = a.Connect(fd, to)
		}
		if err == nil {
			err = a.Connect(fd, sock.Unspec())
		}
		if err == nil && t.stream() {
			err = a.Listen(fd)
		}
		if err == nil && bindFirst == 0 && !t.stream() {
			_, err = a.Send(fd, sock.Message{Data: []byte("autobind"), To: t.at(a.Self, portFree+39)})
		}
		if err != nil {
			return 0, err
		}
		return portOf(fd)
	}
}

// onDevice binds to a link first.
func onDevice(link string, then prepare) prepare {
	return func(a *attacker, t transport, fd int) (uint16, error) {
		if err := unix.SetsockoptString(fd, unix.SOL_SOCKET, unix.SO_BINDTODEVICE, link); err != nil {
			return 0, err
		}
		return then(a, t, fd)
	}
}

// dual lets an IPv6 socket receive IPv4.
func dual(then prepare) prepare {
	return func(a *attacker, t transport, fd int) (uint16, error) {
		if err := unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_V6ONLY, 0); err != nil {
			return 0, err
		}
		return then(a, t, fd)
	}
}

// catchCases receive what was sent to the victim, at ports where it does not
// listen, by sockets for every address.
func catchCases() []Case {
	var cases []Case
	port := uint16(portFree)
	add := func(name string, t transport, to transport, p prepare) {
		cases = append(cases, Case{"catch/" + name, func(a *attacker) verdict { return a.catch(t, to, p) }})
	}
	for _, t := range []transport{tcp4, udp4, tcp6, udp6, mptcp4, mptcp6} {
		add(t.name+"-any", t, t, bindTo(t.at(wildcard(), port), port))
		add(t.name+"-device", t, t, onDevice("lo", bindTo(t.at(wildcard(), port+1), port+1)))
		add(t.name+"-auto", t, t, unbound)
		port += 2
	}
	for _, t := range []transport{tcp6, udp6} {
		to := map[bool]transport{true: tcp4, false: udp4}[t.stream()]
		add(t.name+"-dual", t, to, dual(bindTo(t.at(wildcard(), port), port)))
		add(t.name+"-dual-own", t, t, dual(bindTo(t.at(wildcard(), port+1), port+1)))
		add(t.name+"-dual-auto", t, to, dual(unbound))
		port += 2
	}
	for _, t := range []transport{tcp4, udp4, tcp6, udp6} {
		add(t.name+"-disconnected", t, t, disconnected(0))
	}
	add("udp4-bound-disconnected", udp4, udp4, disconnected(port))
	add("udp4-unspec", udp4, udp4, bindTo(sock.As(sock.At("0.0.0.0", port+1), unix.AF_UNSPEC), port+1))
	add("tcp4-unspec", tcp4, tcp4, bindTo(sock.As(sock.At("0.0.0.0", port+2), unix.AF_UNSPEC), port+2))
	return cases
}

// catch receives by one transport what it sends to the victim by another.
func (a *attacker) catch(t, to transport, p prepare) verdict {
	fd, err := a.socket(t)
	var port uint16
	if err == nil {
		port, err = p(a, t, fd)
	}
	if err != nil {
		return failed(err)
	}
	a.say(to, to.at(a.Victim, port)) // a refusal shows in that nothing comes
	peer, err := a.got(t, fd)
	if err != nil {
		return failed(err)
	}
	return verdict{success: true, detail: fmt.Sprintf("at port %d from %s", port, peer)}
}

// got takes a connection or a datagram that is there.
func (a *attacker) got(t transport, fd int) (netip.AddrPort, error) {
	if err := a.Await(fd, patience/2); err != nil {
		return netip.AddrPort{}, err
	}
	if t.stream() {
		_, peer, err := a.Accept(fd)
		return sock.AddrPort(peer), err
	}
	_, _, peer, err := a.Receive(fd, make([]byte, 256), nil)
	return sock.AddrPort(peer), err
}
