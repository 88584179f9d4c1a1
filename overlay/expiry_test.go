package overlay_test

import (
	"errors"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// expiring makes a socket's datagrams pass n routers, and its reads fail with what
// these say.
func (s socket) expiring(family string, n int) {
	s.t.Helper()
	raw, err := s.PacketConn.(*net.UDPConn).SyscallConn()
	if err != nil {
		s.t.Fatal(err)
	}
	level, hops, tell := unix.IPPROTO_IP, unix.IP_TTL, unix.IP_RECVERR
	if family == "-6" {
		level, hops, tell = unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, unix.IPV6_RECVERR
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		failed = errors.Join(unix.SetsockoptInt(int(fd), level, hops, n), unix.SetsockoptInt(int(fd), level, tell, 1))
	})
	if err := errors.Join(err, failed); err != nil {
		s.t.Fatal(err)
	}
}

// A container hears that its packet has expired, from the gateway as from the host
// after it, and nobody else hears of it.
func TestExpiryIsTold(t *testing.T) {
	eachVersion(t, func(t *testing.T, a addressing) {
		m, _ := routed(t)
		tenant := m.tenantWithUplink(1)
		for hops, router := range map[int]string{1: "the gateway", 2: "the host"} {
			from := bindUDP(t, tenant, at(a.container, 0))
			from.expiring(a.family, hops)
			from.send(at(a.outside, 9), "expires")
			_ = from.SetReadDeadline(time.Now().Add(patience))
			if _, _, err := from.ReadFrom(make([]byte, 64)); !errors.Is(err, unix.EHOSTUNREACH) {
				t.Errorf("after a packet that expires at %s: %v, want %v", router, err, unix.EHOSTUNREACH)
			}
		}
	})
}
