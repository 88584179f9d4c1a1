package addrguard_test

import (
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// What docs/limits.md tells of a shared namespace:
//
//   - "`/proc/net`, `ss` and `netstat` show all containers' sockets."
//   - "One set of `net.*` settings holds for all containers."
//   - "IP_PKTINFO, IP_RECVERR and `/proc/net` show loopback addresses as the namespace
//     knows them (127.H.L.x, or the own address)."
func TestWhatIsShared(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	network := h.network(1, v4)
	a, b := h.box(network, 1, v4), h.box(network, 2, v4)
	b.listening("0.0.0.0:80")
	b.listening("127.0.0.1:81")
	list := a.must(Call{Name: "read", Text: "/proc/self/net/tcp"}).Text
	expect(t, "a neighbour's server is listed", strings.Contains(list, " 02004D0A:0050 "), true)
	expect(t, "so is that on its loopback", strings.Contains(list, "7F:0051 "), true)
	expect(t, "as 127.0.0.1", strings.Contains(list, " 0100007F:0051 "), false)

	const setting = "/proc/sys/net/ipv4/ip_default_ttl"
	h.spaces[network].Do(func() {
		if err := os.WriteFile(setting, []byte("77"), 0); err != nil {
			t.Error(err)
		}
	})
	for _, box := range []*box{a, b} {
		expect(t, "setting", strings.TrimSpace(box.must(Call{Name: "read", Text: setting}).Text), "77")
	}
}

// "A process that root of the host puts into a tenant namespace by hand is strict
// only below a cgroup that holds containers of particle networks."
func TestWhoIsPutIntoTheNamespace(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	network := h.network(1, v4)
	h.box(network, 1, v4)
	h.cgroup(h.top + "/stranger")
	h.cgroup(h.top + "-outside")
	below, outside := h.start(h.top+"/stranger", h.spaces[network]), h.start(h.top+"-outside", h.spaces[network])
	expect(t, "below an anchor", below.do(Call{Name: "socket", Family: unix.AF_INET, Type: tcp}).Err, unix.EPERM)
	expect(t, "elsewhere", outside.bound(tcp, "0.0.0.0:81").name(), "0.0.0.0:81")
}

// "A datagram over IPv6 that comes in pieces is not heard by a socket of both families."
func TestPiecesForBothFamilies(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	network := h.network(1, v4|v6)
	a, b := h.box(network, 1, v4|v6), h.box(network, 2, v4|v6)
	h.spaces[network].Run("ip", "link", "set", "lo", "mtu", "1500")
	long := strings.Repeat("long ", 400)
	both, six, named := a.bound(udp, "[::]:53"), a.bound(udp, "[::]:153", v6only), a.bound(udp, "[fd00:77::1]:253")
	for _, c := range []struct {
		to     string
		family int
		server sock
		err    unix.Errno // of what the sender waits for
	}{
		{"10.77.0.1:53", unix.AF_INET, both, 0},
		{"[fd00:77::1]:53", unix.AF_INET6, both, unix.ECONNREFUSED},
		{"[fd00:77::1]:153", unix.AF_INET6, six, 0},
		{"[fd00:77::1]:253", unix.AF_INET6, named, 0},
	} {
		client := b.socket(c.family, udp)
		expect(t, c.to+": connect", client.connect(c.to), 0)
		expect(t, c.to+": send", client.send("", long), 0)
		if c.err != 0 {
			expect(t, c.to, client.do(Call{Name: "receive", FD: client.fd}).Err, c.err)
			continue
		}
		text, _ := c.server.received(c.to)
		expect(t, c.to, text, long)
	}
}

// "Ports that a container binds are not chosen for connections of others."
func TestBoundPortsAreNotChosenForNeighbours(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	network := h.network(1, v4)
	a, b := h.box(network, 1, v4), h.box(network, 2, v4)
	h.spaces[network].Do(func() {
		if err := os.WriteFile("/proc/sys/net/ipv4/ip_local_port_range", []byte("40000 40003"), 0); err != nil {
			t.Error(err)
		}
	})
	b.listening("0.0.0.0:80")
	for range 4 {
		a.bound(tcp, "0.0.0.0:0")
	}
	expect(t, "connect", b.socket(unix.AF_INET, tcp).connect("10.77.0.2:80"), unix.EADDRNOTAVAIL)
	expect(t, "connect of a socket that was bound", b.bound(tcp, "0.0.0.0:0").connect("10.77.0.2:80"), 0)
}

// "A port at which a container has closed connections is its address's for a minute."
func TestClosedConnectionsKeepTheirPort(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	network := h.network(1, v4)
	first, client := h.box(network, 1, v4), h.box(network, 2, v4).socket(unix.AF_INET, tcp)
	reuse := [3]int{unix.SOL_SOCKET, unix.SO_REUSEADDR, 1}
	server := first.listening("0.0.0.0:80", reuse)
	expect(t, "connect", client.connect("10.77.0.1:80"), 0)
	connection, _ := server.accept()
	connection.close()
	client.close()
	server.close()
	if err := h.Expel(first.id); err != nil {
		t.Fatal(err)
	}
	next := h.box(network, 1, v4)
	_, err := next.at(tcp, "0.0.0.0:80")
	expect(t, "bind", err, unix.EADDRINUSE)
	next.listening("0.0.0.0:80", reuse)
}
