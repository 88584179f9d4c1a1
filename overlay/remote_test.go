package overlay_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/internal/netnstest"
	"github.com/particle-net/particle/overlay"
	"github.com/particle-net/particle/topology"
)

// remotePlaces are containers of network 1 on two hosts: sharing the namespace, and
// with one of their own, at an address of the block and at a single one.
func remotePlaces(t *testing.T, hosts [2]*machine, v6 bool) (list [2][]place) {
	t.Helper()
	for i, m := range hosts {
		format := map[bool]string{false: "10.9.%d.%d", true: "fd00:9:%d::%d"}[v6]
		addr := func(last int) netip.Addr { return netip.MustParseAddr(fmt.Sprintf(format, i+1, last)) }
		list[i] = append(list[i], place{fmt.Sprint("shared on ", i), m.tenant(network(1)), addr(9)})
		own := branched{netnstest.New(t), topology.Branch{Network: network(1), Endpoint: endpoint(2), Link: "eth%d", MTU: 1450}}
		if v6 {
			own.IPv6 = addr(2)
		} else {
			own.IPv4 = addr(2)
		}
		own.Branch.Namespace = own.Path()
		m.attach(own.Branch)
		list[i] = append(list[i], place{fmt.Sprint("own on ", i), own.Namespace, addr(2)})
	}
	return list
}

func TestContainersOfAllKindsAcrossHosts(t *testing.T) {
	t.Parallel()
	for name, v6 := range map[string]bool{"IPv4": false, "IPv6": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			hosts := acquainted(t)
			list := remotePlaces(t, hosts, v6)
			for _, here := range list[0] {
				for _, there := range list[1] {
					converse(t, here, there)
					converse(t, there, here)
				}
			}
			for i, m := range hosts {
				if n := sysctl(m.tenant(network(1)), "net/netfilter/nf_conntrack_count"); n != "0" {
					t.Errorf("host %d tracks %s connections, want none", i, n)
				}
			}
		})
	}
}

// A single address that one host has inside another's block, shared and with a
// namespace of its own.
func TestSingleAddressInsideAnothersBlock(t *testing.T) {
	t.Parallel()
	hosts := acquainted(t)
	subnets := []string{"10.9.0.0/16", "fd00:9::/32"}
	one := part([]string{"10.9.1.0/24", "fd00:9:1::/64"}, subnets, peer("192.0.2.2", "10.9.2.0/24", "fd00:9:2::/64", "10.9.1.77/32", "fd00:9:1::77/128"))
	two := part([]string{"10.9.2.0/24", "fd00:9:2::/64", "10.9.1.77/32", "fd00:9:1::77/128"}, subnets, peer("192.0.2.1", "10.9.1.0/24", "fd00:9:1::/64"))
	two.VTEP = netip.MustParseAddr("192.0.2.2")
	hosts[0].apply(one, true)
	hosts[1].apply(two, true)
	hosts[0].tenant(network(1)).Run("ip", "rule", "add", "pref", "100", "table", "main") // unmerges the tables for good
	hosts[0].tenant(network(1)).Run("ip", "rule", "delete", "pref", "100")
	own := branched{netnstest.New(t), topology.Branch{Network: network(1), Endpoint: endpoint(2), Link: "eth%d", MTU: 1450,
		IPv4: netip.MustParseAddr("10.9.1.77"), IPv6: netip.MustParseAddr("fd00:9:1::77")}}
	own.Branch.Namespace = own.Path()
	for _, single := range own.Addresses() {
		here := place{"the block's host", hosts[0].tenant(network(1)), netip.MustParseAddr("10.9.1.9")}
		if single.Is6() {
			here.addr = netip.MustParseAddr("fd00:9:1::9")
		}
		there := place{"the other", hosts[1].tenant(network(1)), single}
		converse(t, here, there)
		converse(t, there, here)
	}
	hosts[1].attach(own.Branch)
	for range 2 {
		hosts[1].apply(two, false) // the branch has the address now, and keeps it
		converse(t, place{"the block's host", hosts[0].tenant(network(1)), netip.MustParseAddr("10.9.1.9")}, place{"own", own.Namespace, own.IPv4})
		converse(t, place{"own", own.Namespace, own.IPv6}, place{"the block's host", hosts[0].tenant(network(1)), netip.MustParseAddr("fd00:9:1::9")})
	}
	if err := hosts[1].RemoveBranches(t.Context(), network(1), []topology.EndpointID{endpoint(2)}); err != nil {
		t.Fatal(err)
	}
	hosts[1].apply(two, false)
	converse(t, place{"the block's host", hosts[0].tenant(network(1)), netip.MustParseAddr("10.9.1.9")}, place{"the other", hosts[1].tenant(network(1)), own.IPv4})
	two.Pools = two.Pools[:2]
	hosts[1].apply(two, true)
	hosts[1].observes(two)
}

// Who binds no source comes from the host's own part, also if it has many.
func TestSourceIsOfTheOwnPart(t *testing.T) {
	t.Parallel()
	hosts := acquainted(t)
	for to, want := range map[string]string{"10.9.2.7:80": "10.9.1.0", "[fd00:9:2::7]:80": "fd00:9:1::"} {
		l, err := hosts[1].Listen(t.Context(), network(1), "tcp", to)
		if err != nil {
			t.Fatal(err)
		}
		serve(t, l, "server")
		if got, err := ask(hosts[0].tenant(network(1)), "", to); err != nil || got != "server sees "+want {
			t.Errorf("%s: %q, %v; want to be seen as %s", to, got, err, want)
		}
	}
}

// Addresses of nobody, and closed ports, are told at once, and nothing of the
// network leaves by its uplink.
func TestUnassignedAddressesAreUnreachable(t *testing.T) {
	t.Parallel()
	hosts := acquainted(t)
	one := hosts[0]
	up := uplink(t, 1)
	if _, err := one.ApplyUplink(t.Context(), up); err != nil {
		t.Fatal(err)
	}
	for to, want := range map[string]string{
		"10.9.99.1:80": "no route to host", "[fd00:9:99::1]:80": "no route to host",
		"10.9.1.99:80": "connection refused", "[fd00:9:1::99]:80": "connection refused", // here
		"10.9.2.99:80": "connection refused", "[fd00:9:2::99]:80": "connection refused", // there
	} {
		if _, err := ask(one.tenant(network(1)), "", to); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("connect to %s: %v, want %s", to, err, want)
		}
	}
	for _, to := range []string{"10.9.2.99:80", "[fd00:9:2::99]:80"} {
		refusedUDP(t, one.tenant(network(1)), to)
	}
}

// Other hosts reach containers and nothing else: not the uplink, not the world
// behind it, not what the namespace has for itself.
func TestOtherHostsReachContainersAlone(t *testing.T) {
	t.Parallel()
	hosts := acquainted(t)
	there := hosts[1]
	internet := netnstest.New(t)
	netnstest.Connect(there.Namespace, "eth1", "198.51.100.1/24", internet, "eth0", "198.51.100.9/24")
	there.Run("ip", "route", "add", "default", "via", "198.51.100.9")
	up := uplink(t, 1)
	if _, err := there.ApplyUplink(t.Context(), up); err != nil {
		t.Fatal(err)
	}
	local := part([]string{"10.9.2.0/24", "fd00:9:2::/64", "fd00:66::/112", "169.254.0.53/32"}, []string{"10.9.0.0/16", "fd00:9::/32"},
		peer("192.0.2.1", "10.9.1.0/24", "fd00:9:1::/64"))
	local.VTEP = netip.MustParseAddr("192.0.2.2")
	there.apply(local, true)
	ns := there.tenant(network(1))
	ns.Run("sysctl", "-q", "-w", "net.ipv4.ip_forward=1")
	from := hosts[0].tenant(network(1))
	gateway := netip.MustParseAddr("192.0.2.2")
	hosts[0].change(nil, []topology.Peer{{VTEP: gateway, Prefixes: prefixes("10.9.2.0/24", "fd00:9:2::/64", "0.0.0.0/1", "128.0.0.0/1", "fd00:66::/112")}})
	world := bindUDP(t, internet, "198.51.100.9:53")
	from4, from6 := bindUDP(t, from, "10.9.1.7:0"), bindUDP(t, from, "[fd00:9:1::7]:0")
	for to, sender := range map[string]socket{
		up.Inside().Tenant.Addr().String(): from4, "169.254.0.53": from4, "fd00:66::7": from6, "10.9.2.7": from4, "fd00:9:2::7": from6,
	} {
		at := netip.AddrPortFrom(netip.MustParseAddr(to), 53).String()
		server := there.hearing(t, at)
		want := strings.Contains(to, "9.2.7") || strings.Contains(to, "9:2::7")
		if got := server.tells(func(text string) { sender.send(at, text) }); got != want {
			t.Errorf("what another host sends to %s arrives: %v, want %v", at, got, want)
		}
	}
	from4.send("198.51.100.9:53", "by another host's uplink")
	own := bindUDP(t, ns, "10.9.2.8:0")
	own.send("198.51.100.9:53", "by its own")
	world.want("by its own")
	there.apply(local, false)
}

// What is this host's alone no other host reaches, be it one of the cluster.
func TestNetworkOfOneHostHearsNobody(t *testing.T) {
	t.Parallel()
	hosts := acquainted(t)
	there := hosts[1]
	alone := segment(3, 55, "192.0.2.2", "10.9.2.0/24")
	member := bindUDP(t, hosts[0].Namespace, "0.0.0.0:0")
	heard := func() bool {
		t.Helper()
		ns := there.tenant(network(3))
		server := hearing{bindUDP(t, ns, "10.9.2.7:53"), bindUDP(t, ns, "10.9.2.7:54"), "10.9.2.7:53"}
		defer server.Close()
		defer server.known.Close()
		plain := bindUDP(t, there.Namespace, "192.0.2.2:5000")
		defer plain.Close()
		return server.tells(func(text string) {
			packet := []byte(forged("192.0.2.2", server.at, text))
			binary.BigEndian.PutUint32(packet[4:], 55<<8)
			member.send("192.0.2.2:4789", string(packet))
			member.send("192.0.2.2:5000", "by the same way")
			plain.want("by the same way")
		})
	}
	there.apply(alone, true)
	for range 2 {
		if heard() {
			t.Error("a network of this host alone hears another host")
		}
		there.apply(shared(alone), true)
		if !heard() {
			t.Error("a network of several hosts does not hear a member; the test proves nothing")
		}
		there.apply(shared(alone), false)
		there.apply(alone, true)
		there.apply(alone, false)
	}
}

// A prefix that moves from one host to another leads to one of them at any time.
func TestPrefixMovesWithoutAGap(t *testing.T) {
	t.Parallel()
	m := newMachine(t, "192.0.2.1/24")
	for _, moving := range []string{"10.9.2.0/24", "fd00:9:2::/64", "10.9.1.7/32"} {
		from, to := []topology.Peer{peer("192.0.2.2", moving)}, []topology.Peer{peer("192.0.2.3", moving)}
		seg := part([]string{"10.9.1.0/24", "fd00:9:1::/64"}, []string{"10.9.0.0/16", "fd00:9::/32"}, from...)
		if _, err := m.Apply(t.Context(), seg); err != nil {
			t.Fatal(err)
		}
		address := netip.MustParsePrefix(moving).Addr()
		if !prefixes(moving)[0].IsSingleIP() {
			address = address.Next()
		}
		moved, lost := make(chan struct{}), make(chan error, 1)
		go m.tenant(seg.Network).Do(func() { lost <- lookUp(address, moved) })
		for range 200 {
			m.change(from, to)
			m.change(to, from)
		}
		close(moved)
		if err := <-lost; err != nil {
			t.Errorf("%s, on its way from one host to another: %v", moving, err)
		}
	}
}

// lookUp asks the kernel again and again for the way to an address, until it has
// none that leads to another host. It runs inside the namespace.
func lookUp(a netip.Addr, until <-chan struct{}) error {
	domain := unix.AF_INET
	if a.Is6() {
		domain = unix.AF_INET6
	}
	for {
		select {
		case <-until:
			return nil
		default:
		}
		fd, err := unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		err = unix.Connect(fd, sockaddrPort(a, 9))
		name, _ := unix.Getsockname(fd)
		_ = unix.Close(fd)
		if err != nil {
			return err
		}
		// By another way, such as to itself, it would be seen as another.
		if v4, ok := name.(*unix.SockaddrInet4); ok && v4.Addr != [4]byte{10, 9, 1, 0} {
			return fmt.Errorf("it is reached from %v", netip.AddrFrom4(v4.Addr))
		}
	}
}

func sockaddrPort(a netip.Addr, port int) unix.Sockaddr {
	if a.Is4() {
		return &unix.SockaddrInet4{Addr: a.As4(), Port: port}
	}
	return &unix.SockaddrInet6{Addr: a.As16(), Port: port}
}

// What cannot be is told for each host, and the others are set all the same.
func TestHostsThatCannotBeReached(t *testing.T) {
	t.Parallel()
	m := newMachine(t, "192.0.2.1/24")
	seg := part([]string{"10.9.1.0/24"}, []string{"10.9.0.0/16"})
	m.apply(seg, true)
	twin := peer("192.0.2.4", "10.9.4.0/24")
	twin.MAC = overlay.HardwareAddr(netip.MustParseAddr("192.0.2.2"))
	good := peer("192.0.2.2", "10.9.2.0/24")
	for cause, bad := range map[string]topology.Peer{
		"this host itself":   peer("192.0.2.1", "10.9.5.0/24"),
		"another IP version": peer("2001:db8::2", "10.9.5.0/24"),
		"no tunnel address":  {Prefixes: prefixes("10.9.5.0/24")},
		"no MAC":             {VTEP: netip.MustParseAddr("192.0.2.6"), MAC: []byte{1}},
		"no address range":   {VTEP: netip.MustParseAddr("192.0.2.6"), Prefixes: make([]netip.Prefix, 1)},
		"is that of host":    twin,
		"its next hop":       peer("208.0.2.2", "10.9.5.0/24"),
	} {
		seg.Peers = []topology.Peer{good, bad}
		for _, apply := range []func() error{
			func() error { _, err := m.Apply(t.Context(), seg); return err },
			func() error { return m.ChangePeers(t.Context(), seg, nil, seg.Peers) },
		} {
			if err := apply(); !errors.Is(err, topology.ErrUnreached) || !strings.Contains(err.Error(), cause) {
				t.Errorf("want %q, got %v", cause, err)
			}
			want := seg
			want.Peers = seg.Peers[:1]
			m.observes(want)
		}
	}
	if err := m.changePeers(network(9), nil, nil); !errors.Is(err, overlay.ErrNoNetwork) {
		t.Errorf("of a network that is not here: %v", err)
	}
}

// Who comes and is too like a host that is there does not take its place, and the others
// that come with it are set.
func TestHostsThatComeTooLikeAnother(t *testing.T) {
	t.Parallel()
	twin := peer("192.0.2.4", "10.9.4.0/24")
	twin.MAC = overlay.HardwareAddr(netip.MustParseAddr("192.0.2.2"))
	for name, alike := range map[string]topology.Peer{"next hop": peer("208.0.2.2", "10.9.4.0/24"), "MAC": twin} {
		m := newMachine(t, "192.0.2.1/24")
		there, other := peer("192.0.2.2", "10.9.2.0/24"), peer("192.0.2.3", "10.9.3.0/24")
		seg := part([]string{"10.9.1.0/24"}, []string{"10.9.0.0/16"}, there)
		m.apply(seg, true)
		whole := seg
		whole.Peers = []topology.Peer{there, other, alike}
		err := m.ChangePeers(t.Context(), whole, nil, []topology.Peer{alike, other})
		if !errors.Is(err, topology.ErrUnreached) || !strings.Contains(err.Error(), "host "+alike.VTEP.String()) || !strings.Contains(err.Error(), "of host 192.0.2.2") {
			t.Errorf("%s: got %v", name, err)
		}
		seg.Peers = []topology.Peer{there, other}
		m.observes(seg)
		// It may have its place.
		whole.Peers = []topology.Peer{other, alike}
		if err := m.ChangePeers(t.Context(), whole, []topology.Peer{there}, []topology.Peer{alike}); err != nil {
			t.Errorf("%s: in the place of the other: %v", name, err)
		}
		m.observes(whole)
	}
}

// A network that is made while hosts cannot be reached, or this host has no address to
// reach them from, is there, with all else that it has.
func TestNetworkIsMadeWithoutHostsThatCannotBeReached(t *testing.T) {
	t.Parallel()
	good := peer("192.0.2.2", "10.9.2.0/24")
	seg := part([]string{"10.9.1.0/24"}, []string{"10.9.0.0/16"}, good)
	for i := range 9 {
		seg.Peers = append(seg.Peers, peer(fmt.Sprintf("2001:db8::%d", i+1), fmt.Sprintf("10.9.%d.0/24", i+3)))
	}
	m := newMachine(t, "192.0.2.1/24")
	_, err := m.Apply(t.Context(), seg)
	if !errors.Is(err, topology.ErrUnreached) || !strings.Contains(err.Error(), "and 6 more") {
		t.Errorf("got %v", err)
	}
	want := seg
	want.Peers = []topology.Peer{good}
	m.observes(want)
	// A failure is not taken for that.
	seg.MTU = 1
	if _, err := m.Apply(t.Context(), seg); err == nil || errors.Is(err, topology.ErrUnreached) {
		t.Errorf("with an impossible MTU: %v", err)
	}

	m = newMachine(t, "192.0.2.1/24")
	seg = part([]string{"10.9.1.0/24"}, []string{"10.9.0.0/16"}, good)
	seg.VTEP = netip.Addr{}
	if _, err := m.Apply(t.Context(), seg); !errors.Is(err, topology.ErrUnreached) || !strings.Contains(err.Error(), "no tunnel address") {
		t.Errorf("got %v", err)
	}
	seg.VTEP = netip.MustParseAddr("192.0.2.1")
	m.apply(seg, true)
	m.observes(seg)
}

func TestPeerDriftIsRepaired(t *testing.T) {
	t.Parallel()
	netnstest.RequireTool(t, "bridge")
	m := newMachine(t, "192.0.2.1/24")
	for name, seg := range map[string]topology.Segment{
		"IPv4": part([]string{"10.9.1.0/24"}, []string{"10.9.0.0/16"}, peer("192.0.2.2", "10.9.2.0/24", "10.9.1.5/32"), peer("192.0.2.3", "10.9.3.0/24")),
		"both": part([]string{"10.9.1.0/24", "fd00:9:1::/64"}, []string{"10.9.0.0/16", "fd00:9::/32"},
			peer("192.0.2.2", "10.9.2.0/24", "10.9.1.5/32", "fd00:9:2::/64"), peer("192.0.2.3", "10.9.3.0/24", "fd00:9:3::/64")),
	} {
		if _, err := m.Apply(t.Context(), seg); err != nil {
			t.Fatal(err)
		}
		ns := m.tenant(seg.Network)
		picture := func() string {
			return dump(ns) + ns.Run("sh", "-c", "ip route show table all proto 112; ip -6 route show table all proto 112; "+
				"ip neighbour show dev vx0 nud permanent | sort; bridge fdb show dev vx0 | sort; nft list ruleset")
		}
		want := picture()
		via, hop := "240.0.2.3", "240.0.2.3"
		if name == "both" {
			via, hop = "fe80::c000:203", "inet6 fe80::c000:203"
		}
		for _, drift := range []string{
			"bridge fdb delete 0a:58:c0:00:02:02 dev vx0 dst 192.0.2.2 self",
			"bridge fdb replace 0a:58:c0:00:02:02 dev vx0 dst 192.0.2.66 self permanent",
			"bridge fdb append 0a:58:c0:00:02:02 dev vx0 dst 192.0.2.66 self permanent",
			"bridge fdb replace 0a:58:c0:00:02:02 dev vx0 dst 192.0.2.2 vni 99 self permanent",
			"bridge fdb append 0a:58:c0:00:02:02 dev vx0 dst 192.0.2.2 vni 99 self permanent",
			"bridge fdb replace 0a:58:c0:00:02:02 dev vx0 dst 192.0.2.2 via lo self permanent",
			"ip route change 10.9.3.0/24 via " + hop + " dev vx0 onlink proto 112 metric 3221225987 src 10.9.1.0 mtu lock 600",
			"nft add table inet particle '{ flags dormant; }'",
			"nft add chain inet particle input '{ policy drop; }'",
			"bridge fdb append 0a:58:c0:00:02:42 dev vx0 dst 192.0.2.66 self permanent",
			"ip neighbour flush dev vx0 nud permanent",
			"ip neighbour replace " + via + " lladdr 0a:58:00:00:00:01 dev vx0 nud permanent",
			"ip neighbour replace 240.0.0.9 lladdr 0a:58:00:00:00:01 dev vx0 nud permanent",
			"ip route delete 10.9.3.0/24",
			"ip route delete 10.9.1.5/32 table local",
			"ip route delete unreachable 10.9.0.0/16",
			"ip route add 10.9.66.0/24 via 240.0.2.3 dev vx0 onlink proto 112",
			"ip route flush dev vx0",
			"ip -6 route flush dev vx0",
			"ip -6 address flush dev vx0",
			"ip address add 10.9.1.7/16 dev vx0; ip -6 address add fd00:9:9::9/64 dev vx0 nodad",
			"ip link set vx0 down",
			"ip link delete vx0",
			"nft flush ruleset",
			"echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6",
		} {
			ns.Run("sh", "-c", drift)
			if _, err := m.Apply(t.Context(), seg); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, picture()); diff != "" {
				t.Errorf("%s, after %q (-want +got):\n%s", name, drift, diff)
			}
			m.apply(seg, false)
		}
	}
}

// refusedUDP sends a datagram and waits to be told that nobody is there.
func refusedUDP(t *testing.T, ns *netnstest.Namespace, to string) {
	t.Helper()
	var err error
	ns.Do(func() {
		var conn net.Conn
		if conn, err = net.Dial("udp", to); err != nil {
			return
		}
		defer conn.Close()
		if _, err = conn.Write([]byte("x")); err == nil {
			_ = conn.SetReadDeadline(time.Now().Add(patience))
			_, err = conn.Read(make([]byte, 1))
		}
	})
	if !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("UDP to %s: %v, want %v", to, err, unix.ECONNREFUSED)
	}
}
