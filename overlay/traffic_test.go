package overlay_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/internal/netnstest"
	"github.com/particle-net/particle/topology"
)

// peers are two machines on one underlay, each with a block of the same
// network's addresses.
func peers(t *testing.T, aVTEP, bVTEP string, bits int) [2]*machine {
	t.Helper()
	hosts := [2]*machine{newMachine(t, ""), newMachine(t, "")}
	netnstest.Connect(hosts[0].Namespace, "eth0", fmt.Sprintf("%s/%d", aVTEP, bits),
		hosts[1].Namespace, "eth0", fmt.Sprintf("%s/%d", bVTEP, bits))
	return hosts
}

// introduce tells host m of another one, which has a block of network n.
func (m *machine) introduce(n int, block, vtep string) {
	m.t.Helper()
	other := []topology.Peer{peer(vtep, block)}
	err := errors.Join(m.changePeers(network(n), nil, other), m.SetMembers(m.t.Context(), atOwnPort(addrs(vtep)...)))
	if err != nil {
		m.t.Fatal(err)
	}
}

func addrs(list ...string) []netip.Addr {
	var out []netip.Addr
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

func TestTrafficBetweenHosts(t *testing.T) {
	t.Parallel()
	for name, vtep := range map[string]struct {
		addrs    [2]string
		bits     int
		overhead int
	}{
		"over v4": {[2]string{"192.0.2.1", "192.0.2.2"}, 24, 50},
		"over v6": {[2]string{"2001:db8::1", "2001:db8::2"}, 64, 70},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			hosts := peers(t, vtep.addrs[0], vtep.addrs[1], vtep.bits)
			blocks := [2]string{"10.9.1.0/24", "10.9.2.0/24"}
			for i, m := range hosts {
				underlay, err := m.Underlay(t.Context(), netip.Addr{})
				if err != nil || underlay.VTEP.String() != vtep.addrs[i] {
					t.Fatalf("Underlay() = %+v, %v", underlay, err)
				}
				for n, vni := range map[int]topology.VNI{1: 42, 2: 43} { // two tenants with the same subnet
					seg := segment(n, vni, vtep.addrs[i], blocks[i])
					seg.MTU, seg.Subnets = underlay.MTU-vtep.overhead, prefixes("10.9.0.0/16")
					m.apply(seg, true)
					m.introduce(n, blocks[1-i], vtep.addrs[1-i])
				}
			}
			for n := 1; n <= 2; n++ {
				server, err := hosts[1].Listen(t.Context(), network(n), "tcp", "10.9.2.7:80")
				if err != nil {
					t.Fatal(err)
				}
				serve(t, server, fmt.Sprint("tenant ", n))
			}
			for n := 1; n <= 2; n++ {
				got, err := ask(hosts[0].tenant(network(n)), "10.9.1.9", "10.9.2.7:80")
				if want := fmt.Sprintf("tenant %d sees 10.9.1.9", n); err != nil || got != want {
					t.Errorf("tenant %d got %q, %v; want %q", n, got, err, want)
				}
			}
			// A packet of the device's full size crosses the underlay unfragmented.
			// 28 bytes are the inner IPv4 and UDP headers.
			hosts[0].sendWhole(t, "10.9.1.9", hosts[1], "10.9.2.7:53", 1500-vtep.overhead-28)
		})
	}
}

// sendWhole sends a datagram in one piece or not at all, and waits for it.
func (m *machine) sendWhole(t *testing.T, from string, there *machine, to string, size int) {
	t.Helper()
	server, err := there.ListenPacket(t.Context(), network(1), "udp", to)
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	client, err := m.ListenPacket(t.Context(), network(1), "udp4", from+":0")
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	raw, err := client.(*net.UDPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	_ = raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO)
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.WriteTo(make([]byte, size), net.UDPAddrFromAddrPort(netip.MustParseAddrPort(to))); err != nil {
		t.Fatal(err)
	}
	_ = server.SetReadDeadline(time.Now().Add(patience))
	if n, _, err := server.ReadFrom(make([]byte, 1<<16)); err != nil || n != size {
		t.Errorf("of a datagram of %d bytes arrived %d: %v", size, n, err)
	}
	if _, err := client.WriteTo(make([]byte, size+1), net.UDPAddrFromAddrPort(netip.MustParseAddrPort(to))); !errors.Is(err, unix.EMSGSIZE) {
		t.Errorf("a datagram of %d bytes was not refused: %v", size+1, err)
	}
}

// serve answers each connection with a name and the address it came from.
func serve(t *testing.T, l net.Listener, name string) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			from := conn.RemoteAddr().(*net.TCPAddr).IP
			fmt.Fprintf(conn, "%s sees %s", name, from)
			_ = conn.Close()
		}
	}()
	t.Cleanup(func() {
		_ = l.Close()
		<-done
	})
}

// ask connects from a namespace and an address in it, and reads the answer.
func ask(ns *netnstest.Namespace, from, to string) (answer string, err error) {
	ns.Do(func() {
		dialer := net.Dialer{Timeout: patience}
		if from != "" {
			dialer.LocalAddr = &net.TCPAddr{IP: net.ParseIP(from)}
		}
		var conn net.Conn
		if conn, err = dialer.Dial("tcp", to); err != nil {
			return
		}
		defer conn.Close()
		var text []byte
		text, err = io.ReadAll(conn)
		answer = string(text)
	})
	return answer, err
}
