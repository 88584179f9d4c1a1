package overlay_test

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/internal/netnstest"
)

// ping sends an echo request from a raw socket and waits for the reply.
func ping(ns *netnstest.Namespace, from, to netip.Addr) (err error) {
	ns.Do(func() { err = echo(from, to) })
	return err
}

func echo(from, to netip.Addr) error {
	domain, protocol, request, reply := unix.AF_INET, unix.IPPROTO_ICMP, byte(8), byte(0)
	if to.Is6() {
		domain, protocol, request, reply = unix.AF_INET6, unix.IPPROTO_ICMPV6, 128, 129
	}
	fd, err := unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	limit := unix.NsecToTimeval(patience.Nanoseconds())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit); err != nil {
		return err
	}
	if err := unix.Bind(fd, sockaddr(from)); err != nil {
		return err
	}
	message := []byte{request, 0, 0, 0, 0x12, 0x34, 0, 1}
	if to.Is4() { // the kernel fills in that of ICMPv6
		binary.BigEndian.PutUint16(message[2:], checksum(message))
	}
	if err := unix.Sendto(fd, message, 0, sockaddr(to)); err != nil {
		return err
	}
	buffer := make([]byte, 1500)
	for began := time.Now(); time.Since(began) < patience; {
		n, _, err := unix.Recvfrom(fd, buffer, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		packet := buffer[:n]
		if to.Is4() {
			packet = packet[20:] // raw IPv4 sockets see the header
		}
		if packet[0] == reply {
			return nil
		}
	}
	return errors.New("no reply")
}

func sockaddr(a netip.Addr) unix.Sockaddr {
	if a.Is4() {
		return &unix.SockaddrInet4{Addr: a.As4()}
	}
	return &unix.SockaddrInet6{Addr: a.As16()}
}

// checksum is the internet checksum (RFC 1071).
func checksum(parts ...[]byte) uint16 {
	var sum uint32
	for _, p := range parts {
		for i := 0; i+1 < len(p); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(p[i:]))
		}
		if len(p)%2 == 1 {
			sum += uint32(p[len(p)-1]) << 8
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// datagram is a UDP packet with its IP header.
func datagram(from, to netip.AddrPort, text string) []byte {
	udp := binary.BigEndian.AppendUint16(nil, from.Port())
	udp = binary.BigEndian.AppendUint16(udp, to.Port())
	udp = binary.BigEndian.AppendUint16(udp, uint16(8+len(text)))
	udp = append(append(udp, 0, 0), text...)
	source, destination := from.Addr().AsSlice(), to.Addr().AsSlice()
	pseudo := []byte{0, unix.IPPROTO_UDP, 0, byte(len(udp))}
	binary.BigEndian.PutUint16(udp[6:], checksum(source, destination, pseudo, udp))
	return append(ipHeader(from.Addr(), to.Addr(), unix.IPPROTO_UDP, 64, len(udp)), udp...)
}

func ipHeader(from, to netip.Addr, protocol, hops byte, payload int) []byte {
	if from.Is6() {
		head := []byte{0x60, 0, 0, 0, 0, byte(payload), protocol, hops}
		return append(append(head, from.AsSlice()...), to.AsSlice()...)
	}
	head := []byte{0x45, 0, 0, byte(20 + payload), 0, 1, 0, 0, hops, protocol, 0, 0}
	head = append(append(head, from.AsSlice()...), to.AsSlice()...)
	binary.BigEndian.PutUint16(head[10:], checksum(head))
	return head
}

// frame puts a packet on a link as it is, past the namespace's own routes.
func frame(t *testing.T, ns *netnstest.Namespace, link string, destination net.HardwareAddr, protocol uint16, packet []byte) {
	t.Helper()
	var err error
	ns.Do(func() {
		var fd int
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return
		}
		defer unix.Close(fd)
		var end *net.Interface
		if end, err = net.InterfaceByName(link); err != nil {
			return
		}
		to := &unix.SockaddrLinklayer{Protocol: protocol>>8 | protocol<<8, Ifindex: end.Index, Halen: 6}
		copy(to.Addr[:], destination)
		err = unix.Sendto(fd, packet, 0, to)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// gatewayMAC is that of the tenant's ends; everyone hears broadcasts.
var (
	gatewayMAC   = net.HardwareAddr{0x0a, 0x58, 169, 254, 1, 1}
	broadcastMAC = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
)

// A container that is root in its namespace sends what it likes.
func TestBranchCannotForgeItsSource(t *testing.T) {
	t.Parallel()
	m, internet := routed(t)
	m.apply(segment(1, 0, "", "10.9.0.0/24", "fd00:9::/64"), true)
	m.applyUplink(1, true)
	own, neighbour := m.branch(1, 2), m.branch(1, 3)
	tenant := m.tenant(network(1))
	for _, family := range []struct {
		shared, any, own, neighbour, beyond netip.Addr
		ethertype                           uint16
		forged                              []string
	}{
		{netip.MustParseAddr("10.9.0.9"), netip.IPv4Unspecified(), own.IPv4, neighbour.IPv4, netip.MustParseAddr(outside), unix.ETH_P_IP,
			[]string{"10.9.0.9", "10.9.0.3", "10.9.0.200", "10.9.0.0", "10.9.0.255", "169.254.255.253", "198.51.100.7", "127.0.0.1", "0.0.0.0", "169.254.1.1"}},
		{netip.MustParseAddr("fd00:9::9"), netip.IPv6Unspecified(), own.IPv6, neighbour.IPv6, netip.Addr{}, unix.ETH_P_IPV6,
			[]string{"fd00:9::9", "fd00:9::3", "fd00:9::200", "fd00:9::", "2001:db8::7", "::1", "::", "fe80::1", "fe80::2"}},
	} {
		receivers := []socket{openUDP(t, tenant, family.shared), openUDP(t, tenant, family.any), openUDP(t, neighbour.Namespace, family.neighbour)}
		if family.beyond.IsValid() {
			receivers = append(receivers, openUDP(t, internet, family.beyond))
		}
		honest := openUDP(t, own.Namespace, family.own)
		for i, r := range receivers {
			to := netip.MustParseAddrPort(r.LocalAddr().String())
			targets := []netip.AddrPort{to}
			if i == 1 { // bound to all addresses: what is sent to all, too
				to = netip.AddrPortFrom(family.shared, to.Port())
				targets = []netip.AddrPort{to, netip.AddrPortFrom(toAll(family.own), to.Port())}
			}
			for _, source := range family.forged {
				for _, target := range targets {
					packet := datagram(netip.AddrPortFrom(netip.MustParseAddr(source), 1000), target, "from "+source)
					frame(t, own.Namespace, "eth0", gatewayMAC, family.ethertype, packet)
					frame(t, own.Namespace, "eth0", broadcastMAC, family.ethertype, packet)
				}
				honest.send(to.String(), "honest")
				r.want("honest")
			}
		}
	}
}

// toAll is the address of everyone on the link.
func toAll(a netip.Addr) netip.Addr {
	if a.Is4() {
		return netip.MustParseAddr("255.255.255.255")
	}
	return netip.MustParseAddr("ff02::1")
}

// The frames that forge sources do arrive where the source is the own one.
func TestFramesOfBranchArrive(t *testing.T) {
	t.Parallel()
	m := newMachine(t, "")
	m.apply(segment(1, 0, "", "10.9.0.0/24", "fd00:9::/64"), true)
	own := m.branch(1, 2)
	for shared, ethertype := range map[string]uint16{"10.9.0.9": unix.ETH_P_IP, "fd00:9::9": unix.ETH_P_IPV6} {
		server := openUDP(t, m.tenant(network(1)), netip.MustParseAddr(shared))
		to := netip.MustParseAddrPort(server.LocalAddr().String())
		source := own.IPv4
		if to.Addr().Is6() {
			source = own.IPv6
		}
		frame(t, own.Namespace, "eth0", gatewayMAC, ethertype, datagram(netip.AddrPortFrom(source, 1000), to, "frame"))
		server.want("frame")
	}
}

func TestBranchDoesNotReachOtherTenants(t *testing.T) {
	t.Parallel()
	m, _ := routed(t)
	m.tenantWithUplink(1)
	b := m.tenantWithUplink(2)
	attacker, victim := m.branch4(1, 2), m.branch4(2, 3)
	shared, inside := bindUDP(t, b, "0.0.0.0:53"), bindUDP(t, victim.Namespace, "0.0.0.0:53")
	known, every := bindUDP(t, m.Namespace, "192.0.2.1:1000"), bindUDP(t, m.Namespace, "0.0.0.0:1001")
	tunnel := bindUDP(t, m.Namespace, "192.0.2.1:4789")
	client := bindUDP(t, attacker.Namespace, "10.9.0.2:1001")
	answerTo := map[socket]string{}
	for _, v := range []socket{shared, inside} {
		v.send("192.0.2.1:1000", "hello")
		answerTo[v] = known.want("hello")
	}
	attempt := func() {
		t.Helper()
		client.send("169.254.192.5:53", "to the uplink of b")
		client.send("10.9.0.3:53", "to an address that b has too")
		client.send("10.9.0.7:53", "to another")
		for _, v := range []socket{shared, inside} {
			known.send(answerTo[v], "answer")
			v.want("answer")
		}
		client.send("169.254.192.4:1001", "to the host by the uplink of b")
		client.send("192.0.2.1:4789", "forged VXLAN")
		client.send("192.0.2.1:1001", "to the host")
		every.want("to the host")
		tunnel.wantNothing()
	}
	attempt()
	ownTable(b) // without the tenant's rules
	attempt()
}

// Nothing that a container says about links, neighbours and routes is heard.
func TestBranchDoesNotTeachTheTenant(t *testing.T) {
	t.Parallel()
	m, _ := routed(t)
	m.apply(segment(1, 0, "", "10.9.0.0/24", "fd00:9::/64"), true)
	m.applyUplink(1, true)
	own, neighbour := m.branch(1, 2), m.branch(1, 3)
	tenant := m.tenant(network(1))
	// As a host that has opened its ears may have them inherited.
	tenant.Run("sh", "-c", "echo 1 > /proc/sys/net/ipv4/conf/all/arp_accept; echo 2 > /proc/sys/net/ipv6/conf/pb"+own.Endpoint.Short()+"/accept_ra")
	picture := func() string {
		return tenant.Run("ip", "-4", "route", "show", "table", "all") +
			// Routes to own addresses of IPv6 come a moment after the address.
			tenant.Run("sh", "-c", "ip -6 route show table all | grep -v 'proto kernel'") +
			tenant.Run("ip", "neighbour") + tenant.Run("ip", "-o", "address") + tenant.Run("ip", "route", "show", "cache")
	}
	before := picture()
	attackerMAC := net.HardwareAddr{0x0a, 0x58, 10, 9, 0, 2}
	for _, claimed := range []string{"10.9.0.3", "10.9.0.9", "169.254.255.252", "10.9.0.200"} {
		for _, operation := range []byte{1, 2} { // request and reply, both gratuitous
			frame(t, own.Namespace, "eth0", broadcastMAC, unix.ETH_P_ARP, arp(operation, attackerMAC, netip.MustParseAddr(claimed)))
		}
	}
	own.Run("ip", "address", "add", "fe80::2/64", "dev", "eth0", "nodad")
	var err error
	own.Do(func() { err = advertise("eth0") })
	if err != nil {
		t.Fatal(err)
	}
	link := []byte{2, 1, 0x0a, 0x58, 10, 9, 0, 2} // target link-layer address (RFC 4861 section 4.6.1)
	for _, claimed := range []string{"fd00:9::3", "fd00:9::9"} {
		const override = 0x20
		body := append(append([]byte{136, 0, 0, 0, override, 0, 0, 0}, netip.MustParseAddr(claimed).AsSlice()...), link...)
		for _, source := range []netip.Addr{own.IPv6, netip.MustParseAddr("fe80::2")} {
			frame(t, own.Namespace, "eth0", gatewayMAC, unix.ETH_P_IPV6, icmp6(source, netip.MustParseAddr("ff02::1"), body))
		}
	}
	gateway := netip.MustParseAddr("169.254.255.252")
	for _, source := range []netip.Addr{own.IPv4, gateway} {
		told := datagram(netip.MustParseAddrPort("10.9.0.9:1000"), netip.MustParseAddrPort(outside+":53"), "")
		body := append(append([]byte{5, 1, 0, 0}, own.IPv4.AsSlice()...), told...) // redirect for a host
		binary.BigEndian.PutUint16(body[2:], checksum(body))
		packet := append(ipHeader(source, netip.MustParseAddr("10.9.0.9"), unix.IPPROTO_ICMP, 64, len(body)), body...)
		frame(t, own.Namespace, "eth0", gatewayMAC, unix.ETH_P_IP, packet)
	}
	// What comes after all that, on the same link, shows that it was looked at.
	converse(t, place{"own", own.Namespace, own.IPv4}, place{"shared", tenant, netip.MustParseAddr("10.9.0.9")})
	if diff := cmp.Diff(before, picture()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for _, p := range []place{{"neighbour", neighbour.Namespace, neighbour.IPv4}, {"neighbour", neighbour.Namespace, neighbour.IPv6}} {
		shared := netip.MustParseAddr("10.9.0.9")
		if p.addr.Is6() {
			shared = netip.MustParseAddr("fd00:9::9")
		}
		converse(t, place{"shared", tenant, shared}, p)
	}
}

// arp claims an address for a MAC (RFC 826).
func arp(operation byte, mac net.HardwareAddr, claimed netip.Addr) []byte {
	head := []byte{0, 1, 8, 0, 6, 4, 0, operation}
	sender := append(append(head, mac...), claimed.AsSlice()...)
	return append(append(sender, broadcastMAC...), claimed.AsSlice()...)
}

// icmp6 completes an ICMPv6 message; neighbour discovery wants 255 hops.
func icmp6(from, to netip.Addr, body []byte) []byte {
	pseudo := []byte{0, 0, 0, byte(len(body)), 0, 0, 0, unix.IPPROTO_ICMPV6}
	binary.BigEndian.PutUint16(body[2:], 0)
	binary.BigEndian.PutUint16(body[2:], checksum(from.AsSlice(), to.AsSlice(), pseudo, body))
	return append(ipHeader(from, to, unix.IPPROTO_ICMPV6, 255, len(body)), body...)
}

func TestBranchesAreTrackedBeyondTheTenantAlone(t *testing.T) {
	t.Parallel()
	m, _ := routed(t)
	tenant := m.tenantWithUplink(1)
	own, other := m.branch4(1, 2), m.branch4(1, 3)
	shared := place{"shared", tenant, netip.MustParseAddr("10.9.0.9")}
	converse(t, place{"own", own.Namespace, own.IPv4}, shared)
	converse(t, shared, place{"own", own.Namespace, own.IPv4})
	converse(t, place{"own", own.Namespace, own.IPv4}, place{"other", other.Namespace, other.IPv4})
	count := func(in *netnstest.Namespace) string { return sysctl(in, "net/netfilter/nf_conntrack_count") }
	bindUDP(t, own.Namespace, "10.9.0.2:1000").send("192.0.2.1:9", "tracked, for its answer must come back")
	gate := m.gateway(network(1))
	for began := time.Now(); count(gate) != "1"; {
		if time.Since(began) > patience {
			t.Fatalf("%s connections are tracked, want the one that leaves", count(gate))
		}
	}
	if n := count(tenant); n != "0" {
		t.Errorf("%s connections are tracked in the tenant, want none", n)
	}
}

// "A process with CAP_NET_ADMIN (and no user namespace) can change links of the
// namespaces that its links lead to (IFLA_TARGET_NETNSID of rtnetlink)": from the
// container it makes one there, and removes it.
func TestContainerChangesLinksWhereItsLinksLead(t *testing.T) {
	t.Parallel()
	m := newMachine(t, "")
	m.apply(segment(1, 0, "", "10.9.0.0/24", "fd00:9::/64"), true)
	container := m.branch(1, 2)
	request := func(kind, flags int, there int) (err error) {
		container.Do(func() {
			req := nl.NewNetlinkRequest(kind, flags|unix.NLM_F_ACK)
			req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
			req.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated("intruder")))
			req.AddData(nl.NewRtAttr(unix.IFLA_TARGET_NETNSID, nl.Uint32Attr(uint32(there))))
			info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
			info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("bridge"))
			req.AddData(info)
			_, err = req.Execute(unix.NETLINK_ROUTE, 0)
		})
		return err
	}
	var link netlink.Link
	var err error
	container.Do(func() { link, err = netlink.LinkByName("eth0") })
	if err != nil {
		t.Fatal(err)
	}
	there, tenant := link.Attrs().NetNsID, m.tenant(network(1))
	if err := request(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, there); err != nil {
		t.Fatal(err)
	}
	tenant.Run("ip", "link", "show", "dev", "intruder")
	if err := request(unix.RTM_DELLINK, 0, there); err != nil {
		t.Fatal(err)
	}
	if out, err := tenant.Try("ip", "link", "show", "dev", "intruder"); err == nil {
		t.Errorf("it is there still: %s", out)
	}
}
