package attack

import (
	"context"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/integration/sockets/sock"
)

// calls is how often a port that two share is tried: the kernel gives each caller
// to either by a hash, so none of 32 has come by chance once in 4 billion times.
const calls = 32

// stealCases share a port the victim listens on, and take callers that come to it.
// The callers are the attacker's own, as any neighbour's would be, but for those to
// the victim's loopback, which are the victim's.
func stealCases() []Case {
	var cases []Case
	for _, c := range []struct {
		t      transport
		at     Ends
		port   uint16
		option int
	}{
		{tcp4, wildcard(), portTCPAny, unix.SO_REUSEPORT},
		{tcp6, wildcard(), portTCPAny6, unix.SO_REUSEPORT},
		{udp4, wildcard(), portUDPAny, unix.SO_REUSEPORT},
		{udp6, wildcard(), portUDPAny6, unix.SO_REUSEPORT},
		{udp4, wildcard(), portUDPShared, unix.SO_REUSEADDR},
		{tcp4, Ends{}, portTCPOwn, unix.SO_REUSEPORT},
		{tcp6, Ends{}, portTCPOwn6, unix.SO_REUSEPORT},
		{udp4, Ends{}, portUDPOwn, unix.SO_REUSEPORT},
		// More exact than the victim's own socket.
		{udp4, Ends{}, portUDPShared, unix.SO_REUSEADDR},
		{udp4, Ends{}, portUDPAny, unix.SO_REUSEPORT},
		{tcp4, Ends{}, portTCPAny, unix.SO_REUSEPORT},
	} {
		where := "any"
		if c.at == (Ends{}) {
			where = "own"
		}
		cases = append(cases, Case{fmt.Sprintf("steal/%s-%s-%d", c.t.name, where, c.port), func(a *attacker) verdict {
			at := c.at
			if at == (Ends{}) {
				at = a.Victim
			}
			return a.steal(c.t, c.t.at(at, c.port), c.option, func() {
				for range calls {
					a.say(c.t, c.t.at(a.Victim, c.port))
				}
			})
		}})
	}
	for i, t := range []transport{tcp4, udp4} {
		port := []uint16{portTCPLo, portUDPLo}[i]
		cases = append(cases, Case{fmt.Sprintf("steal/%s-loopback-%d", t.name, port), func(a *attacker) verdict {
			return a.steal(t, t.at(loopback(), port), unix.SO_REUSEPORT, func() {
				a.victimCalls(t, netip.AddrPortFrom(t.pick(loopback()), port), calls)
			})
		}})
	}
	return cases
}

// steal shares a port and sees whether one of the callers comes.
func (a *attacker) steal(t transport, at []byte, share int, call func()) verdict {
	fd, err := a.socket(t)
	if err == nil {
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, share, 1)
	}
	if err == nil {
		_, err = bindTo(at, 0)(a, t, fd)
	}
	if err != nil {
		return failed(err)
	}
	call()
	peer, err := a.got(t, fd)
	if err != nil {
		return failed(err)
	}
	return verdict{success: true, detail: "a caller from " + peer.String()}
}

// victimCalls lets the victim connect or send somewhere. Where nobody listens it
// has nothing to tell.
func (a *attacker) victimCalls(t transport, to netip.AddrPort, count int) {
	_, _ = ask(context.Background(), a.Victim, Question{Op: "call", Network: t.name, Address: to.String(), Count: count})
}

// lureCases listen where the victim, which does not, will call: at its own
// loopback and at its own address.
func lureCases() []Case {
	var cases []Case
	port := uint16(portFree + 20)
	for _, t := range []transport{tcp4, udp4, tcp6, udp6} {
		for _, c := range []struct {
			name     string
			at       Ends
			loopback bool // what the victim calls, or else its own address
		}{{"loopback", loopback(), true}, {"any-loopback", wildcard(), true}, {"any-own", wildcard(), false}} {
			to := port
			port++
			cases = append(cases, Case{"lure/" + t.name + "-" + c.name, func(a *attacker) verdict {
				whom := a.Victim
				if c.loopback {
					whom = loopback()
				}
				return a.steal(t, t.at(c.at, to), unix.SO_REUSEADDR, func() {
					a.victimCalls(t, netip.AddrPortFrom(t.pick(whom), to), 1)
				})
			}})
		}
	}
	return append(cases, Case{"lure/unix", func(a *attacker) verdict {
		name := "particle-lure-" + a.nonce
		fd, err := a.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
		if err == nil {
			err = a.Bind(fd, sock.Abstract(name))
		}
		if err == nil {
			err = a.Listen(fd)
		}
		if err != nil {
			return failed(err)
		}
		_, _ = ask(context.Background(), a.Victim, Question{Op: "call", Network: "unix", Address: "@" + name})
		_, err = a.got(tcp4, fd)
		return outcome(err)
	}})
}

// squatCases take a name that the victim wants to have next.
func squatCases() []Case {
	var cases []Case
	port := uint16(portFree + 34)
	squat := func(name string, t transport, at Ends, port uint16) {
		cases = append(cases, Case{"squat/" + name, func(a *attacker) verdict { return a.squat(t, at, port) }})
	}
	for i, t := range []transport{tcp4, udp4, tcp6, udp6} {
		squat(t.name+"-any", t, wildcard(), port+uint16(i))
		squat(t.name+"-loopback", t, loopback(), port+uint16(i))
	}
	for _, t := range []transport{tcp4, udp4} {
		cases = append(cases, Case{"squat/" + t.name + "-auto", func(a *attacker) verdict {
			fd, err := a.socket(t)
			var port uint16
			if err == nil {
				port, err = unbound(a, t, fd)
			}
			if err != nil {
				return failed(err)
			}
			return a.victimBinds(t.name, netip.AddrPortFrom(a.Victim.Four, port).String())
		}})
	}
	return append(cases,
		Case{"squat/ping", func(a *attacker) verdict {
			fd, err := a.socket(ping4)
			if err == nil {
				err = a.Bind(fd, sock.In(a.Self.Four, identPing+1))
			}
			if err != nil {
				return failed(err)
			}
			return a.victimBinds("ping", netip.AddrPortFrom(a.Victim.Four, identPing+1).String())
		}},
		Case{"squat/netlink", func(a *attacker) verdict {
			fd, err := a.Socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE)
			if err == nil {
				err = a.Bind(fd, sock.Netlink(numberNetlink+1))
			}
			if err != nil {
				return failed(err)
			}
			return a.victimBinds("netlink", "")
		}},
		Case{"squat/unix", func(a *attacker) verdict {
			fd, err := a.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
			if err == nil {
				err = a.Bind(fd, sock.Abstract("particle-squat"))
			}
			if err != nil {
				return failed(err)
			}
			return a.victimBinds("unix", "particle-squat")
		}})
}

// squat takes an address by its name.
func (a *attacker) squat(t transport, at Ends, port uint16) verdict {
	fd, err := a.socket(t)
	if err == nil {
		_, err = bindTo(t.at(at, port), port)(a, t, fd)
	}
	if err != nil {
		return failed(err)
	}
	return a.victimBinds(t.name, netip.AddrPortFrom(t.pick(at), port).String())
}

// victimBinds is a success if the victim cannot have an address.
func (a *attacker) victimBinds(network, address string) verdict {
	answer, err := ask(context.Background(), a.Victim, Question{Op: "bind", Network: network, Address: address})
	if err != nil {
		return failed(err)
	}
	return verdict{success: answer.Errno != "", detail: "the victim gets " + answer.Errno}
}
