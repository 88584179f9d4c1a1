package etcdtest

import (
	"net"
	"net/netip"
	"os"
	"testing"
)

// FreePorts finds three ports in a row that are free on every address of the
// loopback link, and below those that the kernel gives to outgoing connections.
func FreePorts(t testing.TB) uint16 {
	t.Helper()
	for base := uint16(20000 + 3*(os.Getpid()%4000)); base < 32700; base += 3 {
		free := true
		for i := range uint16(3) {
			l, err := net.Listen("tcp4", netip.AddrPortFrom(netip.IPv4Unspecified(), base+i).String())
			if err != nil {
				free = false
				break
			}
			defer l.Close()
		}
		if free {
			return base
		}
	}
	t.Fatal("no free ports")
	return 0
}
