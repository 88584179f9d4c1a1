package attack

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/integration/sockets/sock"
)

// straightCases reach what the victim offers on its address, by other addresses.
func straightCases() []Case {
	var cases []Case
	for _, c := range []struct {
		name string
		t    transport
		port func(a *attacker) uint16
	}{
		{"any", tcp4, port(portTCPAny)}, {"any", udp4, port(portUDPAny)}, {"any", tcp6, port(portTCPAny6)}, {"any", udp6, port(portUDPAny6)},
		{"any", mptcp4, port(portTCPAny)}, {"any", tcpMapped, port(portTCPAny)}, {"any", udpMapped, port(portUDPAny)},
		{"dual", tcp4, port(portTCPDual)}, {"dual", udp4, port(portUDPDual)}, {"dual", tcp6, port(portTCPDual)}, {"dual", udp6, port(portUDPDual)},
		{"auto", tcp4, func(a *attacker) uint16 { return a.ports["tcp-auto"] }},
		{"auto", udp4, func(a *attacker) uint16 { return a.ports["udp-auto"] }},
	} {
		for by, at := range byOthers() {
			cases = append(cases, Case{fmt.Sprintf("reach/%s-%s-%s", c.t.name, c.name, byNames[by]), func(a *attacker) verdict {
				return a.say(c.t, c.t.at(at(a), c.port(a)))
			}})
		}
	}
	for _, t := range []transport{tcp4, udp4} {
		cases = append(cases, Case{"reach/" + t.name + "-any-link", func(a *attacker) verdict {
			link := linkAddress()
			if !link.IsValid() {
				return failed(unix.EADDRNOTAVAIL)
			}
			return a.say(t, sock.In(link, t.anyPort()))
		}})
	}
	return cases
}

func port(p uint16) func(*attacker) uint16 { return func(*attacker) uint16 { return p } }

var byNames = []string{"self", "third", "loopback", "loopback-9", "zero"}

// byOthers are addresses that are not the victim's.
func byOthers() []func(a *attacker) Ends {
	return []func(a *attacker) Ends{
		func(a *attacker) Ends { return a.Self },
		func(a *attacker) Ends { return a.Third },
		func(*attacker) Ends { return loopback() },
		func(*attacker) Ends { return known("127.9.9.9", "::1") },
		func(*attacker) Ends { return wildcard() },
	}
}

// privateCases reach the victim's loopback services by names of the attacker's own
// loopback, and by names that hide what is meant.
func privateCases() []Case {
	var cases []Case
	for _, t := range []transport{tcp4, udp4, tcp6, udp6, tcpMapped, udpMapped, mptcp4, mptcp6} {
		port := t.privatePort()
		cases = append(cases,
			Case{"private/" + t.name, func(a *attacker) verdict { return a.say(t, t.at(loopback(), port)) }},
			Case{"private/" + t.name + "-zero", func(a *attacker) verdict { return a.say(t, t.at(wildcard(), port)) }},
			Case{"private/" + t.name + "-victim", func(a *attacker) verdict { return a.say(t, t.at(a.Victim, port)) }})
	}
	lo, lo6 := sock.At("127.0.0.1", portUDPLo), sock.At("::1", portUDPLo6)
	by := func(name string, t transport, to []byte, prepare func(a *attacker, fd int) error) {
		cases = append(cases, Case{"private/" + name, func(a *attacker) verdict {
			fd, err := a.socket(t)
			if err == nil {
				err = prepare(a, fd)
			}
			if err != nil {
				return failed(err)
			}
			return a.sayBy(t, fd, to)
		}})
	}
	nothing := func(*attacker, int) error { return nil }
	// sendmsg takes AF_UNSPEC for AF_INET, and AF_INET on a socket of AF_INET6.
	by("udp4-unspec", udp4, sock.As(lo, unix.AF_UNSPEC), nothing)
	by("udp6-inet", udpMapped, lo, nothing)
	by("udp6-unspec", udp6, sock.As(lo6, unix.AF_UNSPEC), nothing)
	by("udp4-connected", udp4, lo, func(a *attacker, fd int) error { return a.Connect(fd, sock.In(a.Victim.Four, portUDPAny)) })
	by("udp4-device", udp4, lo, func(_ *attacker, fd int) error {
		return unix.SetsockoptString(fd, unix.SOL_SOCKET, unix.SO_BINDTODEVICE, "lo")
	})
	by("udp4-bound", udp4, lo, func(a *attacker, fd int) error { return a.Bind(fd, sock.At("127.0.0.1", 0)) })
	// Routes that the sender chooses: the destination is the victim, and the packet
	// is to pass its loopback first.
	for _, t := range []transport{tcp4, udp4, tcp6, udp6} {
		cases = append(cases, Case{"private/" + t.name + "-route", func(a *attacker) verdict {
			fd, err := a.socket(t)
			if err == nil && t.family == unix.AF_INET {
				err = sourceRoute(fd, loopback().Four)
			} else if err == nil {
				err = routingHeader(fd, loopback().Six)
			}
			if err != nil {
				return failed(err)
			}
			return a.sayBy(t, fd, t.at(a.Victim, t.privatePort()))
		}})
	}
	for _, t := range fastOpeners() {
		cases = append(cases, Case{"private/" + t.name + "-fastopen", func(a *attacker) verdict {
			return a.fastOpen(t, t.at(loopback(), t.privatePort()), nil)
		}})
	}
	return cases
}

// privatePort is where the victim listens on its loopback.
func (t transport) privatePort() uint16 {
	six := t.family == unix.AF_INET6 && !t.mapped
	switch {
	case t.stream() && six:
		return portTCPLo6
	case t.stream():
		return portTCPLo
	case six:
		return portUDPLo6
	default:
		return portUDPLo
	}
}

// sourceRoute sets a loose source route over one hop (RFC 791, section 3.1).
func sourceRoute(fd int, hop netip.Addr) error {
	option := append([]byte{0x83, 7, 4}, hop.AsSlice()...)
	return unix.SetsockoptString(fd, unix.SOL_IP, unix.IP_OPTIONS, string(append(option, 0)))
}

// routingHeader sets a segment routing header over one hop (RFC 8754). The kernel
// writes the destination into the last segment, which stands first.
func routingHeader(fd int, hop netip.Addr) error {
	h := make([]byte, 8+2*16)
	h[1], h[2], h[3], h[4] = 4, 4, 1, 1 // length, type, segments left, last entry
	copy(h[24:], hop.AsSlice())
	return unix.SetsockoptString(fd, unix.SOL_IPV6, unix.IPV6_RTHDR, string(h))
}

// scanTime bounds a scan: 65,535 refusals take about a second.
const scanTime = 20 * time.Second

// scanCases try every address that could be the victim's private one.
func scanCases() []Case {
	v4 := func(slot uint16) netip.Addr {
		return netip.AddrFrom4([4]byte{127, byte(slot >> 8), byte(slot), 1})
	}
	cases := []Case{
		{"scan/tcp4", func(a *attacker) verdict { return a.scan(tcp4, portTCPLo, v4) }},
		{"scan/udp4", func(a *attacker) verdict { return a.scan(udp4, portUDPLo, v4) }},
		{"scan/udp4-any", func(a *attacker) verdict { return a.scan(udp4, portUDPAny, v4) }},
		{"scan/tcp4-any", func(a *attacker) verdict { return a.scan(tcp4, portTCPAny, v4) }},
		{"scan/udp-mapped", func(a *attacker) verdict {
			return a.scan(udpMapped, portUDPLo, func(slot uint16) netip.Addr { return netip.AddrFrom16(v4(slot).As16()) })
		}},
	}
	for _, t := range []transport{tcp6, udp6} {
		port := t.privatePort()
		cases = append(cases, Case{"scan/" + t.name, func(a *attacker) verdict {
			v := failed(unix.EADDRNOTAVAIL)
			for _, prefix := range a.Private {
				if v = a.scan(t, port, func(slot uint16) netip.Addr { return inPrefix(prefix, slot) }); v.token != "" {
					break
				}
			}
			return v
		}})
	}
	return cases
}

// inPrefix is the address of a slot in an IPv6 prefix.
func inPrefix(prefix netip.Prefix, slot uint16) netip.Addr {
	raw := prefix.Addr().As16()
	binary.BigEndian.PutUint16(raw[14:], slot)
	return netip.AddrFrom16(raw)
}

// scan says the token to the address of each slot, and stops where a stream is
// answered.
func (a *attacker) scan(t transport, port uint16, address func(slot uint16) netip.Addr) verdict {
	end := time.Now().Add(scanTime)
	v, tried := verdict{}, 0
	for slot := 1; slot <= 0xffff && time.Now().Before(end); slot++ {
		tried++
		said := a.say(t, sock.In(address(uint16(slot)), port))
		a.Reset()
		if said.token != "" {
			v.token, v.err = said.token, nil
			if t.stream() {
				break
			}
		} else if v.token == "" {
			v.err = said.err
		}
	}
	v.detail = fmt.Sprintf("%d tried", tried)
	return v
}
