package attack

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/integration/sockets/sock"
)

// tenantCases reach a victim on another network of the host: by its address, and
// by the links through which networks reach the world.
func tenantCases() []Case {
	var cases []Case
	for _, c := range []struct {
		t    transport
		port uint16
	}{{tcp4, portTCPAny}, {tcp6, portTCPAny6}} {
		cases = append(cases, Case{"tenant/" + c.t.name, func(a *attacker) verdict {
			return a.knock([]netip.Addr{c.t.pick(a.Other)}, c.port)
		}})
	}
	return append(cases, Case{"tenant/uplinks", func(a *attacker) verdict {
		var links []netip.Addr
		own := linkAddress()
		for low := range 128 {
			if addr := netip.AddrFrom4([4]byte{169, 254, 192, byte(low)}); addr != own {
				links = append(links, addr)
			}
		}
		return a.knock(links, portTCPAny)
	}})
}

// linkAddress is the IPv4 address of the namespace's link to the world; not valid
// if there is none.
func linkAddress() netip.Addr {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return netip.Addr{}
	}
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Is4() && !p.Addr().IsLoopback() {
			return p.Addr()
		}
	}
	return netip.Addr{}
}

// knock connects to all addresses at once, and succeeds if one of them is open.
// What is dropped on the way would take its time one after the other.
func (a *attacker) knock(at []netip.Addr, port uint16) verdict {
	var last error
	var polled []unix.PollFd
	for _, addr := range at {
		t := tcp4
		if addr.Is6() {
			t = tcp6
		}
		fd, err := unix.Socket(t.family, t.kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return failed(err)
		}
		a.Adopt(fd)
		sa := unix.Sockaddr(&unix.SockaddrInet6{Port: int(port), Addr: addr.As16()})
		if addr.Is4() {
			sa = &unix.SockaddrInet4{Port: int(port), Addr: addr.As4()}
		}
		if err := unix.Connect(fd, sa); err != nil && err != unix.EINPROGRESS {
			last = err
			continue
		}
		polled = append(polled, unix.PollFd{Fd: int32(fd), Events: unix.POLLOUT})
	}
	for len(polled) > 0 {
		n, err := unix.Poll(polled, int(patience.Milliseconds()))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n == 0 {
			return verdict{err: errors.Join(last, err), detail: fmt.Sprintf("%d without an answer", len(polled))}
		}
		var waiting []unix.PollFd
		for _, p := range polled {
			if p.Revents == 0 {
				waiting = append(waiting, p)
				continue
			}
			code, err := unix.GetsockoptInt(int(p.Fd), unix.SOL_SOCKET, unix.SO_ERROR)
			if err == nil && code == 0 {
				peer, _ := unix.Getpeername(int(p.Fd)) // it may be gone again
				return verdict{success: true, detail: sock.Text(peer)}
			}
			last = unix.Errno(code)
		}
		polled = waiting
	}
	return failed(last)
}
