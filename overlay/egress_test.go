package overlay_test

import (
	"errors"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/internal/netnstest"
	"github.com/particle-net/particle/topology"
)

const outside = "203.0.113.80" // a server beyond the host's router

// addressing is what one IP version calls everything in the world that routed
// makes.
type addressing struct {
	family    string // for ip(8)
	host      string // the machine
	router    string // its default gateway
	outside   string // the server beyond it
	any       string
	pool      string // of every tenant
	container string // in it
	neighbour string // in it, too
	uplinks   netip.Prefix
	iptables  string
}

func versions() map[string]addressing {
	return map[string]addressing{
		"IPv4": {"-4", "192.0.2.1", "192.0.2.2", outside, "0.0.0.0", "10.9.0.0/24", "10.9.0.5", "10.9.0.7",
			topology.UplinkRange, "iptables"},
		"IPv6": {"-6", "2001:db8:2::1", "2001:db8:2::2", "2001:db8:80::80", "::", "fd00:9::/64", "fd00:9::5", "fd00:9::7",
			topology.UplinkRange6, "ip6tables"},
	}
}

// ends are the addresses of an uplink.
func (a addressing) ends(up topology.Uplink) (host, tenant string) {
	if a.family == "-6" {
		return up.Host6.Addr().String(), up.Tenant6.Addr().String()
	}
	return up.Host.Addr().String(), up.Tenant.Addr().String()
}

// eachVersion runs a test for each IP version, in worlds of their own.
func eachVersion(t *testing.T, run func(t *testing.T, a addressing)) {
	t.Parallel()
	for name, a := range versions() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			run(t, a)
		})
	}
}

// at is an address with a port, as package net writes it.
func at(addr string, port int) string { return net.JoinHostPort(addr, strconv.Itoa(port)) }

// routed is a machine with a router behind which everything else is. The router
// knows the way back to the machine's own addresses alone.
func routed(t *testing.T) (m *machine, internet *netnstest.Namespace) {
	t.Helper()
	for _, tool := range []string{"nft", "iptables", "ip6tables"} {
		netnstest.RequireTool(t, tool)
	}
	m = newMachine(t, "")
	internet = netnstest.New(t)
	netnstest.Connect(m.Namespace, "eth0", "192.0.2.1/24", internet, "eth0", "192.0.2.2/24")
	six := versions()["IPv6"]
	m.Run("ip", "address", "add", six.host+"/64", "dev", "eth0", "nodad")
	internet.Run("ip", "address", "add", six.router+"/64", "dev", "eth0", "nodad")
	for _, a := range versions() {
		internet.Run("ip", "address", "add", a.outside, "dev", "lo", "nodad")
		m.Run("ip", a.family, "route", "add", "default", "via", a.router)
	}
	// Without the kernel's own filter of sources, our rules are all there is.
	m.Run("sh", "-c", "echo 0 > /proc/sys/net/ipv4/conf/all/rp_filter; echo 0 > /proc/sys/net/ipv4/conf/default/rp_filter")
	return m, internet
}

// tenantWithUplink makes network n, local to the host, with the same subnets as
// all others.
func (m *machine) tenantWithUplink(n int) *netnstest.Namespace {
	m.t.Helper()
	m.apply(segment(n, 0, "", "10.9.0.0/24", "fd00:9::/64"), true)
	m.applyUplink(n, true)
	return m.tenant(network(n))
}

// uplink is network n's, with both IP versions.
func uplink(t testing.TB, n int) topology.Uplink {
	t.Helper()
	up, err := topology.NewUplink(network(n), n, 1500)
	if err != nil {
		t.Fatal(err)
	}
	return up.WithIPv6()
}

func (m *machine) applyUplink(n int, wantChange bool) {
	m.t.Helper()
	changed, err := m.ApplyUplink(m.t.Context(), uplink(m.t, n))
	if err != nil {
		m.t.Fatal(err)
	}
	if changed != wantChange {
		m.t.Fatalf("ApplyUplink(%d) changed = %v, want %v", n, changed, wantChange)
	}
}

// socket is a UDP socket in a namespace that ends with the test.
type socket struct {
	net.PacketConn
	t *testing.T
}

func bindUDP(t *testing.T, ns *netnstest.Namespace, addr string) socket {
	t.Helper()
	var conn net.PacketConn
	var err error
	version := "udp4"
	if strings.HasPrefix(addr, "[") {
		version = "udp6"
	}
	ns.Do(func() { conn, err = net.ListenPacket(version, addr) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return socket{conn, t}
}

func (s socket) send(to, text string) {
	s.t.Helper()
	if _, err := s.WriteTo([]byte(text), net.UDPAddrFromAddrPort(netip.MustParseAddrPort(to))); err != nil {
		s.t.Logf("send %q to %s: %v", text, to, err) // refused right away is as good as dropped
	}
}

// next waits for a datagram.
func (s socket) next() (text, source string) {
	s.t.Helper()
	_ = s.SetReadDeadline(time.Now().Add(patience))
	buffer := make([]byte, 512)
	n, addr, err := s.ReadFrom(buffer)
	if err != nil {
		s.t.Fatal("waiting for a datagram: ", err)
	}
	return string(buffer[:n]), addr.String()
}

// want fails the test unless the next datagram is text. Sent after one that must
// not arrive, it proves that one lost, without waiting for nothing.
func (s socket) want(text string) (source string) {
	s.t.Helper()
	got, source := s.next()
	if got != text {
		s.t.Errorf("got %q from %s, want %q", got, source, text)
		_, source = s.next()
	}
	return source
}

// wantNothing fails the test if a datagram is there.
func (s socket) wantNothing() {
	s.t.Helper()
	raw, err := s.PacketConn.(*net.UDPConn).SyscallConn()
	if err != nil {
		s.t.Fatal(err)
	}
	err = raw.Control(func(fd uintptr) {
		buffer := make([]byte, 512)
		n, _, err := unix.Recvfrom(int(fd), buffer, unix.MSG_DONTWAIT)
		if !errors.Is(err, unix.EAGAIN) {
			s.t.Errorf("got %q, %v, want nothing", buffer[:max(n, 0)], err)
		}
	})
	if err != nil {
		s.t.Error(err)
	}
}

func listenTCP(t *testing.T, ns *netnstest.Namespace, addr string) net.Listener {
	t.Helper()
	var l net.Listener
	var err error
	ns.Do(func() { l, err = net.Listen("tcp", addr) })
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// ownTable takes our table away from a namespace, to see the other one alone.
func ownTable(ns *netnstest.Namespace) {
	ns.Run("nft", "delete", "table", "inet", "particle")
	letSpeak(ns)
}

// letSpeak has what a gateway sends itself follow its default route to the host, as
// root there could.
func letSpeak(gate *netnstest.Namespace) {
	gate.Run("sh", "-c", "for v in -4 -6; do ip $v rule delete iif lo lookup 112 2>/dev/null; done; true")
}
