package attack

import (
	"net"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// everyone is a group that every link is in, and one that has to be joined; toAll is
// who is on a link, whether they like it or not.
func everyone() Ends { return known("224.0.0.1", "ff15::fb") }
func toAll() Ends    { return known("255.255.255.255", "ff15::fb") }

// joined hears a group on every link: each has its own members.
func joined(fd int, group netip.Addr) error {
	links, err := net.Interfaces()
	for _, link := range links {
		if group.Is4() {
			_ = unix.SetsockoptIPMreqn(fd, unix.SOL_IP, unix.IP_ADD_MEMBERSHIP, &unix.IPMreqn{Multiaddr: group.As4(), Ifindex: int32(link.Index)})
		} else {
			_ = unix.SetsockoptIPv6Mreq(fd, unix.SOL_IPV6, unix.IPV6_ADD_MEMBERSHIP, &unix.IPv6Mreq{Multiaddr: group.As16(), Interface: uint32(link.Index)})
		}
	} // not every link has groups
	return err
}

// groupCases hear what the victim sends to many, are heard by the victim under such
// an address, and take it.
func groupCases() []Case {
	var cases []Case
	port := uint16(portFree + 38)
	for _, c := range []struct {
		name  string
		t     transport
		group Ends
	}{{"udp4-group", udp4, everyone()}, {"udp6-group", udp6, everyone()}, {"udp4-broadcast", udp4, toAll()}} {
		group := c.t.pick(c.group)
		cases = append(cases,
			Case{"lure/" + c.name, func(a *attacker) verdict {
				return a.overhear(c.t, group, bindTo(c.t.at(c.group, port), port))
			}},
			Case{"catch/" + c.name, func(a *attacker) verdict { return a.overhear(c.t, group, unbound) }},
			Case{"squat/" + c.name, func(a *attacker) verdict { return a.squat(c.t, c.group, port) }})
	}
	for _, t := range []transport{udp4, udp6} {
		to := t.at(everyone(), portUDPGroup)
		cases = append(cases, Case{"reach/" + t.name + "-group", func(a *attacker) verdict {
			fd, err := a.socket(t)
			if err == nil {
				err = a.Bind(fd, t.at(a.Self, 0))
			}
			if err != nil {
				return failed(err)
			}
			return a.sayBy(t, fd, to)
		}})
		for _, s := range []source{fromNobody(), fromBound(), fromPacketInfo()} {
			if t.family == unix.AF_INET6 && s.prepare == nil && s.control == nil {
				continue // no link has an address for a source
			}
			cases = append(cases, Case{"spoof/" + t.name + "-group-" + s.name, func(a *attacker) verdict { return a.pretendTo(t, s, to, false) }})
		}
	}
	return append(cases, Case{"reach/udp4-auto-group", func(a *attacker) verdict {
		return a.say(udp4, udp4.at(everyone(), a.ports["udp-auto"]))
	}})
}

// overhear receives what the victim sends to a group.
func (a *attacker) overhear(t transport, group netip.Addr, p prepare) verdict {
	fd, err := a.socket(t)
	if err == nil && group != toAll().Four {
		err = joined(fd, group)
	}
	var port uint16
	if err == nil {
		port, err = p(a, t, fd)
	}
	if err != nil {
		return failed(err)
	}
	a.victimCalls(t, netip.AddrPortFrom(group, port), 1)
	peer, err := a.got(t, fd)
	return verdict{success: err == nil, err: err, detail: "heard " + peer.String()}
}

// openGroups hears what is sent to groups, by sockets that are bound to them, as far as
// that is allowed.
func (v *victim) openGroups() error {
	for _, t := range []transport{udp4, udp6} {
		fd, err := unix.Socket(t.family, t.kind|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		group := t.pick(everyone())
		to := unix.Sockaddr(&unix.SockaddrInet6{Port: portUDPGroup, Addr: group.As16()})
		if group.Is4() {
			to = &unix.SockaddrInet4{Port: portUDPGroup, Addr: group.As4()}
		}
		if err := unix.Bind(fd, to); err != nil {
			return err
		}
		if err := joined(fd, group); err != nil {
			return err
		}
		conn, err := net.FilePacketConn(os.NewFile(uintptr(fd), t.name+"-group"))
		if err != nil {
			return err
		}
		go v.hear(t.name+"-group", conn)
	}
	return nil
}
