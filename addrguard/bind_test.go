package addrguard_test

import (
	"testing"

	"golang.org/x/sys/unix"
)

func TestBind(t *testing.T) {
	t.Parallel()
	onKernels(t, func(t *testing.T, h *host) {
		network := h.network(1, v4|v6)
		a, b := h.box(network, 1, v4|v6), h.box(network, 2, v4|v6)
		for _, kind := range []int{tcp, udp} {
			for _, c := range []struct {
				addr    string
				options [][3]int
				err     unix.Errno
				name    string // as getsockname tells it
			}{
				{addr: "0.0.0.0:80", name: "0.0.0.0:80"},
				{addr: "10.77.0.1:81", name: "10.77.0.1:81"},
				{addr: "127.0.0.1:80", name: "127.0.0.1:80"},
				{addr: "127.0.0.7:80", name: "127.0.0.7:80"},
				{addr: "[::]:82", name: "[::]:82"},
				{addr: "[::]:80", options: [][3]int{v6only}, name: "[::]:80"},
				{addr: "[::1]:80", name: "[::1]:80"},
				{addr: "[fd00:77::1]:83", name: "[fd00:77::1]:83"},
				{addr: "[::ffff:0.0.0.0]:84", name: "[::ffff:0.0.0.0]:84"},
				{addr: "[::ffff:127.0.0.1]:84", name: "[::ffff:127.0.0.1]:84"},
				{addr: "[::ffff:10.77.0.1]:85", name: "[::ffff:10.77.0.1]:85"},
				{addr: "10.77.0.2:80", err: unix.EADDRNOTAVAIL},
				{addr: "8.8.8.8:80", err: unix.EADDRNOTAVAIL},
				{addr: "10.77.0.2:80", options: [][3]int{{unix.IPPROTO_IP, unix.IP_FREEBIND, 1}}, err: unix.EADDRNOTAVAIL},
				{addr: "10.77.0.2:80", options: [][3]int{{unix.IPPROTO_IP, unix.IP_TRANSPARENT, 1}}, err: unix.EADDRNOTAVAIL},
				{addr: "[::ffff:10.77.0.2]:80", err: unix.EADDRNOTAVAIL},
				{addr: "[fd00:77::2]:80", err: unix.EADDRNOTAVAIL},
				{addr: "[fdb9:1f1f:eea::2]:80", err: unix.EADDRNOTAVAIL},
				{addr: "[2001:db8::1]:80", options: [][3]int{{unix.IPPROTO_IPV6, unix.IPV6_FREEBIND, 1}}, err: unix.EADDRNOTAVAIL},
				{addr: "127.0.2.1:80", err: unix.EADDRNOTAVAIL},
				{addr: "127.1.2.3:80", err: unix.EADDRNOTAVAIL},
				{addr: "127.0.0.11:53", err: unix.EADDRNOTAVAIL},
				{addr: "169.254.0.53:53", err: unix.EADDRNOTAVAIL},
			} {
				s, err := a.at(kind, c.addr, c.options...)
				if err != c.err {
					t.Errorf("kind %d: bind %s %v: %v, want %v", kind, c.addr, c.options, err, c.err)
				}
				if err == 0 {
					expect(t, "getsockname of "+c.addr, s.name(), c.name)
				}
			}
			// A neighbour has the same ports.
			for _, addr := range []string{"0.0.0.0:80", "127.0.0.1:80", "[::]:82", "[::1]:80"} {
				if _, err := b.at(kind, addr); err != 0 {
					t.Errorf("kind %d: bind %s beside a neighbour: %v", kind, addr, err)
				}
			}
			again, err := a.at(kind, "0.0.0.0:80")
			expect(t, "bind 0.0.0.0:80 again", err, unix.EADDRINUSE)
			expect(t, "bind the own address then", again.do(Call{Name: "bind", FD: again.fd, Addr: "10.77.0.1:86"}).Err, 0)
			expect(t, "its name", again.name(), "10.77.0.1:86")
		}
		reuse := [3]int{unix.SOL_SOCKET, unix.SO_REUSEPORT, 1}
		a.bound(udp, "0.0.0.0:90", reuse)
		a.bound(udp, "0.0.0.0:90", reuse)
		s := a.bound(tcp, "0.0.0.0:0")
		if p := port(t, s.name()); p == "0" || s.name() != "0.0.0.0:"+p {
			t.Errorf("port 0: %s", s.name())
		}
	})
}
