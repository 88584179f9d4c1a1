package overlay_test

import (
	"encoding/binary"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/internal/netnstest"
	"github.com/particle-net/particle/overlay"
)

// acquainted are two machines with a part of network 1 each, which know each
// other.
func acquainted(t *testing.T, change ...func(*overlay.Options)) [2]*machine {
	t.Helper()
	hosts := [2]*machine{newMachine(t, "", change...), newMachine(t, "", change...)}
	netnstest.Connect(hosts[0].Namespace, "eth0", "192.0.2.1/24", hosts[1].Namespace, "eth0", "192.0.2.2/24")
	blocks := [2][]string{{"10.9.1.0/24", "fd00:9:1::/64"}, {"10.9.2.0/24", "fd00:9:2::/64"}}
	vteps := [2]string{"192.0.2.1", "192.0.2.2"}
	for i, m := range hosts {
		seg := part(blocks[i], []string{"10.9.0.0/16", "fd00:9::/32"}, peer(vteps[1-i], blocks[1-i]...))
		seg.VTEP = netip.MustParseAddr(vteps[i])
		m.apply(seg, true)
		m.members(vteps[1-i])
	}
	reach(t, hosts[0], vteps[0], vteps[1])
	return hosts
}

// atOwnPort are hosts that take VXLAN at the port of the one that is told.
func atOwnPort(list ...netip.Addr) []netip.AddrPort {
	var all []netip.AddrPort
	for _, a := range list {
		all = append(all, netip.AddrPortFrom(a, 0))
	}
	return all
}

// reach lets hosts resolve each other's tunnel addresses, or the first packet would
// be late.
func reach(t *testing.T, m *machine, from, to string) {
	t.Helper()
	if err := ping(m.Namespace, netip.MustParseAddr(from), netip.MustParseAddr(to)); err != nil {
		t.Fatal(err)
	}
}

func (m *machine) members(list ...string) {
	m.t.Helper()
	if err := m.SetMembers(m.t.Context(), atOwnPort(addrs(list...)...)); err != nil {
		m.t.Fatal(err)
	}
}

// hearing is a socket of network 1 on a host, and one in the same namespace that
// always gets through to it.
type hearing struct {
	socket
	known socket
	at    string
}

func (m *machine) hearing(t *testing.T, at string) hearing {
	t.Helper()
	ns := m.tenant(network(1))
	return hearing{bindUDP(t, ns, at), bindUDP(t, ns, strings.Replace(at, ":53", ":54", 1)), at}
}

// tells says whether what send sends to the socket arrives.
func (h hearing) tells(send func(text string)) bool {
	h.t.Helper()
	send("sent")
	h.known.send(h.at, "known")
	text, _ := h.next()
	if text == "known" {
		return false
	}
	h.want("known")
	return text == "sent"
}

func TestMembersAloneAreHeard(t *testing.T) {
	t.Parallel()
	for _, at := range []string{"10.9.2.7:53", "[fd00:9:2::7]:53"} {
		hosts := acquainted(t)
		server := hosts[1].hearing(t, at)
		client := bindUDP(t, hosts[0].tenant(network(1)), strings.NewReplacer("9.2.7", "9.1.7", "9:2::", "9:1::", ":53", ":0").Replace(at))
		for _, c := range []struct {
			members []string
			want    bool
		}{
			{[]string{"192.0.2.1"}, true},
			{[]string{"192.0.2.9", "2001:db8::1"}, false},
			{[]string{"192.0.2.9", "192.0.2.1"}, true},
			{nil, false},
		} {
			hosts[1].members(c.members...)
			if got := server.tells(func(text string) { client.send(at, text) }); got != c.want {
				t.Errorf("members %v: a datagram to %s arrives: %v, want %v", c.members, at, got, c.want)
			}
		}
	}
}

func TestMembersOverIPv6(t *testing.T) {
	t.Parallel()
	hosts := [2]*machine{newMachine(t, ""), newMachine(t, "")}
	netnstest.Connect(hosts[0].Namespace, "eth0", "2001:db8::1/64", hosts[1].Namespace, "eth0", "2001:db8::2/64")
	for i, m := range hosts {
		own, other := []string{"2001:db8::1", "2001:db8::2"}[i], []string{"2001:db8::2", "2001:db8::1"}[i]
		blocks := []string{"10.9.1.0/24", "10.9.2.0/24"}
		seg := part(blocks[i:i+1], []string{"10.9.0.0/16"}, peer(other, blocks[1-i]))
		seg.VTEP, seg.MTU = netip.MustParseAddr(own), 1430
		m.apply(seg, true)
		m.observes(seg)
		m.members(other)
	}
	reach(t, hosts[0], "2001:db8::1", "2001:db8::2")
	server, client := hosts[1].hearing(t, "10.9.2.7:53"), bindUDP(t, hosts[0].tenant(network(1)), "10.9.1.7:0")
	say := func(text string) { client.send(server.at, text) }
	if !server.tells(say) {
		t.Error("a member is not heard")
	}
	hosts[1].members("2001:db8::9", "192.0.2.1")
	if server.tells(say) {
		t.Error("another is heard")
	}
}

// pieces are a datagram of IPv6 in two, the first of which has that many of its bytes
// from the UDP header on. With options it has those, and nothing of UDP.
func pieces(from, to netip.AddrPort, text string, first int, options bool) (all [][]byte) {
	whole, kind := datagram(from, to, text)[40:], byte(unix.IPPROTO_UDP)
	if options { // eight bytes of destination options, which do nothing (RFC 8200 section 4.6)
		whole, kind = append([]byte{kind, 0, 1, 4, 0, 0, 0, 0}, whole...), unix.IPPROTO_DSTOPTS
	}
	number := binary.BigEndian.AppendUint32(nil, rand.Uint32())
	for i, piece := range [][]byte{whole[:first], whole[first:]} {
		header := append([]byte{kind, 0, 0, 0}, number...)
		binary.BigEndian.PutUint16(header[2:], uint16(i*first|1-i))
		body := append(header, piece...)
		all = append(all, append(ipHeader(from.Addr(), to.Addr(), unix.IPPROTO_FRAGMENT, 64, len(body)), body...))
	}
	return all
}

// A host that tracks no connections looks at pieces of IPv6 before they are put
// together.
func TestPiecesAreHeardFromMembersAlone(t *testing.T) {
	t.Parallel()
	netnstest.RequireTool(t, "nft")
	for name, tracks := range map[string]bool{"tracking": true, "not tracking": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m, there := newMachine(t, ""), netnstest.New(t)
			netnstest.Connect(there, "eth0", "2001:db8::1/64", m.Namespace, "eth0", "2001:db8::2/64")
			seg := part([]string{"10.9.2.0/24"}, []string{"10.9.0.0/16"}, peer("2001:db8::9", "10.9.1.0/24"))
			seg.VTEP, seg.MTU = netip.MustParseAddr("2001:db8::2"), 1430
			m.apply(seg, true)
			reach(t, m, "2001:db8::2", "2001:db8::1")
			if tracks {
				m.Run("nft", "add table inet t; add chain inet t f { type filter hook forward priority 0; }; add rule inet t f ct state established accept")
			}
			server, hw := m.hearing(t, "10.9.2.7:53"), hardware(t, m.mac("eth0"))
			plain := bindUDP(t, m.Namespace, "[2001:db8::2]:5000")
			from, to := netip.MustParseAddrPort("[2001:db8::1]:1000"), netip.MustParseAddrPort("[2001:db8::2]:4789")
			for _, member := range []bool{false, true} {
				m.members(map[bool]string{true: "2001:db8::1", false: "2001:db8::9"}[member])
				for _, c := range []struct {
					first   int
					options bool
					want    bool
				}{{1 << 10, false, member}, {16, false, member}, {8, false, false}, {8, true, false}} {
					got := server.tells(func(text string) {
						packet := forged("2001:db8::2", server.at, text)
						if c.first > len(packet) {
							frame(t, there, "eth0", hw, unix.ETH_P_IPV6, datagram(from, to, packet))
						} else {
							for _, p := range pieces(from, to, packet, c.first, c.options) {
								frame(t, there, "eth0", hw, unix.ETH_P_IPV6, p)
							}
						}
						frame(t, there, "eth0", hw, unix.ETH_P_IPV6, datagram(from, netip.MustParseAddrPort("[2001:db8::2]:5000"), "after it"))
						plain.want("after it")
					})
					// Where connections are tracked, what comes in any pieces is whole.
					if want := c.want || tracks && member && !c.options; got != want {
						t.Errorf("from a member %v, in pieces of %d, options %v: heard %v, want %v", member, c.first, c.options, got, want)
					}
				}
			}
		})
	}
}

// hardware is a MAC that ip prints.
func hardware(t *testing.T, text string) net.HardwareAddr {
	t.Helper()
	mac, err := net.ParseMAC(text)
	if err != nil {
		t.Fatal(err)
	}
	return mac
}

// Docker Swarm's networks, say, by the same port.
func TestVXLANOfOthersIsLeftAlone(t *testing.T) {
	t.Parallel()
	hosts := acquainted(t)
	for i, m := range hosts {
		m.members()
		m.Run("ip", "link", "add", "swarm", "type", "vxlan", "id", "4097", "dstport", "4789", "local", []string{"192.0.2.1", "192.0.2.2"}[i],
			"remote", []string{"192.0.2.2", "192.0.2.1"}[i])
		m.Run("ip", "address", "add", []string{"172.30.0.1/24", "172.30.0.2/24"}[i], "dev", "swarm")
		m.Run("ip", "link", "set", "swarm", "up")
	}
	server, client := bindUDP(t, hosts[1].Namespace, "172.30.0.2:53"), bindUDP(t, hosts[0].Namespace, "172.30.0.1:0")
	client.send("172.30.0.2:53", "hello")
	server.want("hello")
}

// forged is a VXLAN packet of network 1 for the host with the tunnel address, with a
// datagram inside.
func forged(vtep, to, text string) string {
	packet := binary.BigEndian.AppendUint32([]byte{8, 0, 0, 0}, 42<<8)
	packet = append(packet, overlay.HardwareAddr(netip.MustParseAddr(vtep))...)
	packet = append(packet, 2, 0, 0, 0, 0, 1, 8, 0)
	inner := datagram(netip.MustParseAddrPort("10.9.1.66:66"), netip.MustParseAddrPort(to), text)
	return string(append(packet, inner...))
}

// A process without any right to, on the host itself.
func TestHostItselfIsNoMember(t *testing.T) {
	t.Parallel()
	hosts := acquainted(t)
	hosts[1].members("192.0.2.1", "192.0.2.2", "127.0.0.1") // by mistake
	server := hosts[1].hearing(t, "10.9.2.7:53")
	liar := bindUDP(t, hosts[1].Namespace, "0.0.0.0:0")
	for _, to := range []string{"192.0.2.2:4789", "127.0.0.1:4789"} {
		if server.tells(func(text string) { liar.send(to, forged("192.0.2.2", "10.9.2.7:53", text)) }) {
			t.Errorf("what a process sends to %s is taken for a host's", to)
		}
	}
	// The packet is right: from a member it is heard.
	member := bindUDP(t, hosts[0].Namespace, "0.0.0.0:0")
	if !server.tells(func(text string) { member.send("192.0.2.2:4789", forged("192.0.2.2", "10.9.2.7:53", text)) }) {
		t.Error("a made packet from a member is not heard; the test proves nothing")
	}
}

// Which addresses a host has beside the one that it is known by, no other host can
// tell: "A host takes the VXLAN" of its networks at its tunnel address alone.
func TestHostIsHeardAtItsTunnelAddressAlone(t *testing.T) {
	t.Parallel()
	for version, c := range map[string]struct{ from, at, other string }{
		"IPv4": {"192.0.2.1", "192.0.2.2", "203.0.113.9"},
		"IPv6": {"2001:db8::1", "2001:db8::2", "2001:db8:9::9"},
	} {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			m, there := newMachine(t, ""), netnstest.New(t)
			bits := netip.MustParseAddr(c.at).BitLen() - 8
			netnstest.Connect(m.Namespace, "eth0", netip.PrefixFrom(netip.MustParseAddr(c.at), bits).String(),
				there, "eth0", netip.PrefixFrom(netip.MustParseAddr(c.from), bits).String())
			m.Run("ip", "address", "add", c.other, "dev", "eth0", "nodad")
			there.Run("ip", "route", "replace", c.other, "via", c.at)
			seg := part([]string{"10.9.2.0/24"}, []string{"10.9.0.0/16"}, peer(c.from, "10.9.1.0/24"))
			seg.VTEP, seg.MTU = netip.MustParseAddr(c.at), 1430
			m.apply(seg, true)
			m.members(c.from)
			reach(t, m, c.at, c.from)
			server, member := m.hearing(t, "10.9.2.7:53"), bindUDP(t, there, at(map[bool]string{true: "0.0.0.0", false: "::"}[version == "IPv4"], 0))
			plain := bindUDP(t, m.Namespace, at(c.other, 5000))
			for to, want := range map[string]bool{c.at: true, c.other: false} {
				got := server.tells(func(text string) {
					member.send(at(to, 4789), forged(c.at, "10.9.2.7:53", text))
					member.send(at(c.other, 5000), "by the same way")
					plain.want("by the same way")
				})
				if got != want {
					t.Errorf("what is for %s is heard: %v, want %v", to, got, want)
				}
			}
		})
	}
}

// The tunnel address of networks is noted as they are, and of an earlier version's at
// the first look.
func TestFilterKnowsTheOwnAddress(t *testing.T) {
	t.Parallel()
	netnstest.RequireTool(t, "nft")
	m := newMachine(t, "192.0.2.1/24")
	seg := part([]string{"10.9.1.0/24"}, []string{"10.9.0.0/16"})
	m.apply(seg, true)
	holds := func(want string) {
		t.Helper()
		if got := m.elements("own4") + m.elements("own6"); got != want {
			t.Errorf("own addresses are %q, want %q", got, want)
		}
	}
	holds("192.0.2.1")
	for _, vtep := range []string{"192.0.2.2", "2001:db8::42", "192.0.2.1"} {
		seg.VTEP = netip.MustParseAddr(vtep)
		m.apply(seg, true)
		holds(vtep)
		m.apply(seg, false)
	}
	m.Run("nft", "flush set inet particle-vxlan networks; add element inet particle-vxlan networks { 4789 . "+
		"0x2a0000 comment \""+string(seg.Network)+"\" }; flush chain inet particle-vxlan passing; flush set inet particle-vxlan own4")
	m.restart()
	m.apply(seg, true)
	holds("192.0.2.1")
	m.apply(seg, false)
}

func TestFilterIsRepaired(t *testing.T) {
	t.Parallel()
	netnstest.RequireTool(t, "nft")
	m := newMachine(t, "192.0.2.1/24")
	seg := part([]string{"10.9.1.0/24"}, []string{"10.9.0.0/16"})
	m.apply(seg, true)
	m.members("192.0.2.2", "2001:db8::2")
	show := func() string { return m.Run("nft", "list", "table", "inet", "particle-vxlan") }
	want := show()
	for _, drift := range []string{
		"flush ruleset",
		"flush set inet particle-vxlan networks",
		"flush set inet particle-vxlan members6",
		"add element inet particle-vxlan members4 { 192.0.2.66 }",
		"flush chain inet particle-vxlan input",
		"add chain inet particle-vxlan input { policy drop; }",
		"add table inet particle-vxlan { flags dormant; }",
		"delete table inet particle-vxlan; add table inet particle-vxlan; add chain inet particle-vxlan input { type filter hook output priority 0; }",
	} {
		m.Run("nft", drift)
		m.apply(seg, true)
		if diff := cmp.Diff(want, show()); diff != "" {
			t.Errorf("after %q (-want +got):\n%s", drift, diff)
		}
		m.apply(seg, false)
	}
	m.restart() // by a plugin that does not know the members yet
	m.apply(seg, false)
	if diff := cmp.Diff(want, show()); diff != "" {
		t.Errorf("after a restart (-want +got):\n%s", diff)
	}
}

// The filter knows the networks that there are, without looking each time.
func TestFilterFollowsNetworks(t *testing.T) {
	t.Parallel()
	netnstest.RequireTool(t, "nft")
	for name, every := range map[string]time.Duration{"looking": 0, "granted": time.Hour} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newMachine(t, "192.0.2.1/24", func(o *overlay.Options) { o.AcceptEvery = every })
			holds := func(want ...int) {
				t.Helper()
				list := m.Run("nft", "list", "set", "inet", "particle-vxlan", "networks")
				if n := strings.Count(list, "comment"); n != len(want) {
					t.Errorf("%d networks in the filter, want %d:\n%s", n, len(want), list)
				}
				for _, id := range want {
					if !strings.Contains(list, string(network(id))) {
						t.Errorf("network %d is not in the filter:\n%s", id, list)
					}
				}
			}
			m.apply(shared(segment(1, 42, "192.0.2.1", "10.9.0.0/24")), true)
			m.apply(shared(segment(2, 43, "192.0.2.1", "10.9.0.0/24")), true)
			holds(1, 2)
			if _, err := m.Apply(t.Context(), shared(segment(3, 43, "192.0.2.1", "10.9.0.0/24"))); err == nil {
				t.Fatal("two networks have one VNI")
			}
			holds(1, 2)
			m.apply(shared(segment(1, 44, "192.0.2.1", "10.9.0.0/24")), true)
			holds(1, 2)
			if err := m.Remove(t.Context(), network(1)); err != nil {
				t.Fatal(err)
			}
			holds(2)
			m.apply(segment(2, 0, "", "10.9.0.0/24"), true)
			holds()
			m.apply(shared(segment(2, 43, "192.0.2.1", "10.9.0.0/24")), true)
			holds(2)
			m.apply(segment(2, 43, "192.0.2.1", "10.9.0.0/24"), true) // this host's alone
			holds()
		})
	}
}

// elements are what a set of the filter has, in order.
func (m *machine) elements(set string) string {
	m.t.Helper()
	_, list, _ := strings.Cut(m.Run("nft", "list", "set", "inet", "particle-vxlan", set), "elements = {")
	list, _, _ = strings.Cut(list, "}")
	all := strings.FieldsFunc(list, func(r rune) bool { return r == ',' || unicode.IsSpace(r) })
	slices.Sort(all)
	return strings.Join(all, " ")
}

// Who comes is let in beside those who are, whatever has become of the filter.
func TestMembersCome(t *testing.T) {
	t.Parallel()
	netnstest.RequireTool(t, "nft")
	for name, before := range map[string]func(m *machine){
		"at first":       func(*machine) {},
		"filter is gone": func(m *machine) { m.Run("nft", "flush", "ruleset") },
		"a restart": func(m *machine) {
			m.restart()
			if err := m.AddMembers(m.t.Context(), atOwnPort(addrs("192.0.2.3")...)); err == nil {
				m.t.Error("members are added to nobody knows whom")
			}
			m.members("192.0.2.2", "2001:db8::2")
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newMachine(t, "192.0.2.1/24", taken)
			m.apply(part([]string{"10.9.1.0/24"}, []string{"10.9.0.0/16"}), true)
			m.members("192.0.2.2", "2001:db8::2")
			before(m)
			at4, at6 := "192.0.2.2", "2001:db8::2"
			for i, come := range []string{"192.0.2.3:0", "[2001:db8::3]:0", "192.0.2.4:8472", "[2001:db8::4]:8472"} {
				a := netip.MustParseAddrPort(come)
				if err := m.AddMembers(t.Context(), []netip.AddrPort{a}); err != nil {
					t.Fatal(err)
				}
				at, ports := &at4, "4789"
				if a.Addr().Is6() {
					at = &at6
				}
				*at += " " + a.Addr().String()
				if i >= 2 {
					ports += " 8472"
				}
				for set, want := range map[string]string{"members4": at4, "members6": at6, "ports": ports} {
					if got := m.elements(set); got != want {
						t.Errorf("with %s set %s has %q, want %q", come, set, got, want)
					}
				}
			}
			m.members("192.0.2.3")
			if got := m.elements("members4") + m.elements("members6"); got != "192.0.2.3" {
				t.Errorf("after all were told, members are %q", got)
			}
		})
	}
}

func TestManyMembers(t *testing.T) {
	t.Parallel()
	netnstest.RequireTool(t, "nft")
	m := newMachine(t, "192.0.2.1/24")
	m.apply(shared(segment(1, 42, "192.0.2.1", "10.9.0.0/24")), true)
	var all []string
	for i := range 10000 {
		all = append(all, netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}).String())
	}
	m.members(all...)
	m.Run("nft", "flush", "ruleset")
	m.apply(shared(segment(1, 42, "192.0.2.1", "10.9.0.0/24")), true)
	if n := strings.Count(m.Run("nft", "list", "set", "inet", "particle-vxlan", "members4"), "10.1."); n != len(all) {
		t.Errorf("%d members, want %d", n, len(all))
	}
	m.members(all[:1]...)
	if n := strings.Count(m.Run("nft", "list", "set", "inet", "particle-vxlan", "members4"), "10.1."); n != 1 {
		t.Errorf("%d members, want 1", n)
	}
}
