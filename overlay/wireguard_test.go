package overlay_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/particle-net/particle/internal/netnstest"
	"github.com/particle-net/particle/internal/wireguard"
	"github.com/particle-net/particle/overlay"
	"github.com/particle-net/particle/topology"
)

// secured is a machine of an encrypted cluster.
type secured struct {
	*machine
	wireguard.End
	underlay netip.Addr
	plain    topology.Underlay
}

// TestWireGuard shows on a kernel with WireGuard what it is good for, and on one
// without that the host refuses. With PARTICLE_REQUIRE=wireguard, as of `make
// test-kernels`, the kernel must have it.
func TestWireGuard(t *testing.T) {
	t.Parallel()
	if err := newMachine(t, "").CanEncrypt(); err != nil {
		if os.Getenv("PARTICLE_REQUIRE") == "wireguard" {
			t.Fatal(err)
		}
		refusesToEncrypt(t)
		return
	}
	for name, test := range map[string]func(*testing.T){
		"between hosts over IPv4":      func(t *testing.T) { encryptsAll(t, "192.0.2.%d/24") },
		"between hosts over IPv6":      func(t *testing.T) { encryptsAll(t, "2001:db8::%d/64") },
		"fails closed":                 failsClosed,
		"is repaired":                  repairsWireGuard,
		"is taken away":                removesWireGuard,
		"peers that have left":         dropsFormerPeers,
		"peers keep to their address":  bindsPeersToAddresses,
		"peers that move":              followsPeers,
		"port is taken":                tellsPortTaken,
		"a link of another kind":       refusesOtherLink,
		"where IPv6 is off by default": worksWithIPv6Off,
	} {
		t.Run(name, func(t *testing.T) { t.Parallel(); test(t) })
	}
}

// refusesToEncrypt shows that the cause is told, and that what keeps packets in is
// there even so.
func refusesToEncrypt(t *testing.T) {
	m := newMachine(t, "192.0.2.1/24")
	m.Run("ip", "-6", "route", "add", "default", "dev", "eth0")
	if err := m.CanEncrypt(); !errors.Is(err, overlay.ErrNoWireGuard) || !strings.Contains(err.Error(), "modprobe wireguard") {
		t.Errorf("CanEncrypt() = %v, want the cause and what to do", err)
	}
	if _, err := m.ApplyWireGuard(t.Context(), wireGuard(t, 1)); !errors.Is(err, overlay.ErrNoWireGuard) {
		t.Errorf("ApplyWireGuard() = %v, want %v", err, overlay.ErrNoWireGuard)
	}
	if out, err := m.Try("ip", "-6", "route", "get", wireGuard(t, 2).Address.String()); err == nil {
		t.Errorf("there is a way to another host's tunnel address: %s", out)
	}
	if err := m.RemoveWireGuard(t.Context()); err != nil {
		t.Error(err)
	}
	if out := m.Run("ip", "-6", "route", "show", "type", "unreachable"); strings.Contains(out, "fd91") {
		t.Errorf("left behind: %s", out)
	}
}

// wireGuard is the end of host i.
func wireGuard(t *testing.T, i int) wireguard.End {
	t.Helper()
	addr, err := topology.WireGuardAddress(topology.NodeID(strings.Repeat(fmt.Sprintf("%02x", i), 16)))
	if err != nil {
		t.Fatal(err)
	}
	secret, err := wireguard.NewSecret()
	if err != nil {
		t.Fatal(err)
	}
	return wireguard.End{Address: addr, Secret: secret, Port: 7793, MTU: 1420}
}

// secure makes three machines on one switch, which know each other. format makes
// their addresses of a number.
func secure(t *testing.T, format string) (hosts [3]*secured, wire *tap) {
	t.Helper()
	lan := netnstest.New(t)
	lan.Run("ip", "link", "add", "br0", "type", "bridge")
	lan.Run("ip", "link", "set", "br0", "up")
	for i := range hosts {
		h := &secured{machine: newMachine(t, ""), End: wireGuard(t, i+1)}
		hosts[i] = h
		addr := netip.MustParsePrefix(fmt.Sprintf(format, i+1))
		h.underlay = addr.Addr()
		port := fmt.Sprint("port", i)
		netnstest.Connect(h.Namespace, "eth0", addr.String(), lan, port, "")
		lan.Run("ip", "link", "set", port, "master", "br0")
		var err error
		if h.plain, err = h.Underlay(t.Context(), netip.Addr{}); err != nil || h.plain.VTEP != h.underlay {
			t.Fatalf("Underlay() = %+v, %v", h.plain, err)
		}
		h.MTU = h.plain.Encrypted(h.Address).MTU
		h.applyWireGuard(true)
	}
	wire = listenAll(t, lan)
	for i, h := range hosts {
		h.know(hosts[(i+1)%3], hosts[(i+2)%3])
	}
	return hosts, wire
}

func (h *secured) applyWireGuard(wantChange bool) {
	h.t.Helper()
	changed, err := h.ApplyWireGuard(h.t.Context(), h.End)
	if err != nil || changed != wantChange {
		h.t.Fatalf("ApplyWireGuard() = %v, %v, want %v", changed, err, wantChange)
	}
}

func (h *secured) peer() topology.WireGuardPeer {
	return topology.WireGuardPeer{Address: h.Address, Key: h.Secret.Public(), Endpoint: netip.AddrPortFrom(h.underlay, h.Port)}
}

// know lets in these hosts and no others.
func (h *secured) know(others ...*secured) {
	h.t.Helper()
	var peers []topology.WireGuardPeer
	var members []netip.Addr
	for _, o := range others {
		peers, members = append(peers, o.peer()), append(members, o.Address)
	}
	if err := errors.Join(h.SetWireGuardPeers(h.t.Context(), peers), h.SetMembers(h.t.Context(), atOwnPort(members...))); err != nil {
		h.t.Fatal(err)
	}
}

// share gives each host a block of network n.
func share(t *testing.T, hosts [3]*secured, n int) {
	t.Helper()
	blocks := [3][]string{{"10.9.1.0/24", "fd00:9:1::/64"}, {"10.9.2.0/24", "fd00:9:2::/64"}, {"10.9.3.0/24", "fd00:9:3::/64"}}
	for i, h := range hosts {
		var peers []topology.Peer
		for j, o := range hosts {
			if j != i {
				peers = append(peers, peer(o.Address.String(), blocks[j]...))
			}
		}
		seg := part(blocks[i], []string{"10.9.0.0/16", "fd00:9::/32"}, peers...)
		under := h.plain.Encrypted(h.Address)
		seg.Network, seg.VNI, seg.VTEP, seg.MTU = network(n), topology.VNI(41+n), under.VTEP, under.MTU-under.Overhead()
		h.apply(seg, true)
	}
}

// marker is in all that tenants send in these tests.
const marker = "only-for-tenants"

func encryptsAll(t *testing.T, format string) {
	hosts, wire := secure(t, format)
	share(t, hosts, 1)
	share(t, hosts, 2) // another tenant, with the same addresses
	inside := listenAll(t, hosts[1].Namespace, "particle-wg")
	for n := 1; n <= 2; n++ {
		for _, at := range []string{"10.9.2.7:80", "[fd00:9:2::7]:80"} {
			serve(t, listenTCP(t, hosts[1].tenant(network(n)), at), fmt.Sprint(marker, n))
			for i, from := range []string{"10.9.1.9", "", "10.9.3.9"} {
				if i == 1 {
					continue
				}
				if at[0] == '[' {
					from = fmt.Sprintf("fd00:9:%d::9", i+1)
				}
				got, err := ask(hosts[i].tenant(network(n)), from, at)
				if want := fmt.Sprintf("%s%d sees %s", marker, n, from); err != nil || got != want {
					t.Errorf("tenant %d got %q, %v; want %q", n, got, err, want)
				}
			}
		}
	}
	// 28 and 48 bytes are the inner headers of IP and UDP.
	whole := hosts[0].plain.Encrypted(hosts[0].Address).MTU - 70
	hosts[0].sendExactly(t, "10.9.1.9:0", hosts[1], "10.9.2.7:53", whole-28)
	hosts[0].sendExactly(t, "[fd00:9:1::9]:0", hosts[1], "[fd00:9:2::7]:53", whole-48)
	wire.settle(hosts[0].machine, hosts[1].underlay)
	wire.wantNothingPlain(hosts)
	wire.wantWhole(hosts[0].plain.MTU)
	if !inside.contains(marker) {
		t.Error("inside of the tunnel nothing is seen in plain; the test proves nothing")
	}
}

func failsClosed(t *testing.T) {
	hosts, wire := secure(t, "192.0.2.%d/24")
	for _, h := range hosts { // another way, for packets that look for one
		h.Run("ip", "-6", "address", "add", "2001:db8::"+fmt.Sprint(h.underlay.As4()[3])+"/64", "dev", "eth0", "nodad")
		h.Run("ip", "-6", "route", "add", "default", "dev", "eth0")
	}
	share(t, hosts, 1)
	client, server := hosts[0], bindUDP(t, hosts[1].tenant(network(1)), "10.9.2.7:53")
	from := bindUDP(t, client.tenant(network(1)), "10.9.1.9:0")
	from.send("10.9.2.7:53", marker+"before")
	server.want(marker + "before")
	for _, missing := range []string{
		"ip link delete particle-wg",
		"ip link set particle-wg down",
		"ip -6 route flush fd91:9a00:bcf::/48",
		"ip link delete particle-wg; ip -6 route flush fd91:9a00:bcf::/48",
		"ip link delete particle-wg; ip -6 route flush fd91:9a00:bcf::/48; ip -6 address add " + client.Address.String() + "/48 dev eth0 nodad",
	} {
		client.Run("sh", "-c", missing)
		from.send("10.9.2.7:53", marker+"lost")
		wire.settle(client.machine, hosts[1].underlay)
		wire.wantNothingPlain(hosts)
		if strings.Contains(missing, "address add") {
			client.Run("ip", "-6", "address", "flush", "dev", "eth0", "to", "fd91:9a00:bcf::/48")
		}
		client.applyWireGuard(true)
		from.send("10.9.2.7:53", marker+"again")
		server.want(marker + "again")
	}
	client.applyWireGuard(false)
}

func repairsWireGuard(t *testing.T) {
	hosts, _ := secure(t, "192.0.2.%d/24")
	h := hosts[0]
	h.applyWireGuard(false)
	picture := func() string {
		device := h.device()
		text := fmt.Sprint(device.PublicKey, device.ListenPort, len(device.Peers))
		for _, p := range device.Peers {
			text += fmt.Sprint(p.PublicKey, p.AllowedIPs, p.PresharedKey)
		}
		return text + h.Run("ip", "-6", "-o", "address", "show", "particle-wg") + h.Run("ip", "-6", "route") + h.Run("nft", "list", "table", "inet", "particle-vxlan")
	}
	unindexed := func(s string) string { _, after, _ := strings.Cut(s, "particle-wg"); return after }
	want := unindexed(picture())
	other := wgtypes.Key(hosts[1].Secret.Public())
	for name, drift := range map[string]func(){
		"link":        func() { h.Run("ip", "link", "delete", "particle-wg") },
		"down":        func() { h.Run("ip", "link", "set", "particle-wg", "down") },
		"mtu":         func() { h.Run("ip", "link", "set", "particle-wg", "mtu", "1300") },
		"address":     func() { h.Run("ip", "address", "flush", "dev", "particle-wg") },
		"another":     func() { h.Run("ip", "address", "add", "fd91:9a00:bcf::77/128", "dev", "particle-wg") },
		"route":       func() { h.Run("ip", "-6", "route", "delete", "fd91:9a00:bcf::/48", "dev", "particle-wg") },
		"unreachable": func() { h.Run("ip", "-6", "route", "delete", "unreachable", "fd91:9a00:bcf::/48") },
		"firewall":    func() { h.Run("nft", "delete", "table", "inet", "particle-vxlan") },
		"peer gone":   func() { h.configure(wgtypes.Config{Peers: []wgtypes.PeerConfig{{PublicKey: other, Remove: true}}}) },
		"peer more":   func() { h.configure(wgtypes.Config{Peers: []wgtypes.PeerConfig{{PublicKey: wgtypes.Key{1}}}}) },
		"peer may more": func() {
			h.configure(wgtypes.Config{Peers: []wgtypes.PeerConfig{{PublicKey: other, AllowedIPs: allowed("::/0")}}})
		},
		"preshared": func() {
			h.configure(wgtypes.Config{Peers: []wgtypes.PeerConfig{{PublicKey: other, PresharedKey: &wgtypes.Key{7}}}})
		},
		"key":  func() { h.configure(wgtypes.Config{PrivateKey: &wgtypes.Key{8: 8}}) },
		"port": func() { h.configure(wgtypes.Config{ListenPort: new(7777)}) },
	} {
		drift()
		h.applyWireGuard(true)
		if got := unindexed(picture()); got != want {
			t.Errorf("%s: after the repair\n%s\nwant\n%s", name, got, want)
		}
		h.applyWireGuard(false)
	}
	h.restart() // by a plugin that does not know the peers yet
	if changed, err := h.ApplyWireGuard(t.Context(), h.End); err != nil || changed || len(h.device().Peers) != 2 {
		t.Errorf("after a restart: changed %v, %v, %d peers", changed, err, len(h.device().Peers))
	}
}

func removesWireGuard(t *testing.T) {
	m := newMachine(t, "192.0.2.1/24")
	before := m.Run("ip", "-6", "route") + m.Run("ip", "link")
	if _, err := m.ApplyWireGuard(t.Context(), wireGuard(t, 1)); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := m.RemoveWireGuard(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if after := m.Run("ip", "-6", "route") + m.Run("ip", "link"); after != before {
		t.Errorf("left behind:\n%s\nbefore:\n%s", after, before)
	}
}

// A peer that has left still has its keys, and the addresses of all.
func dropsFormerPeers(t *testing.T) {
	hosts, wire := secure(t, "192.0.2.%d/24")
	share(t, hosts, 1)
	server := bindUDP(t, hosts[1].tenant(network(1)), "10.9.2.7:53")
	former, member := bindUDP(t, hosts[0].tenant(network(1)), "10.9.1.9:0"), bindUDP(t, hosts[2].tenant(network(1)), "10.9.3.9:0")
	former.send("10.9.2.7:53", "hello")
	server.want("hello")
	peers := []topology.WireGuardPeer{hosts[2].peer()}
	if err := hosts[1].SetWireGuardPeers(t.Context(), peers); err != nil { // its address is still a member's
		t.Fatal(err)
	}
	former.send("10.9.2.7:53", "from one who has left")
	wire.settle(hosts[0].machine, hosts[1].underlay)
	member.send("10.9.2.7:53", "known")
	server.want("known")
}

// The firewall believes a tunnel address, because WireGuard does not let a peer
// use another's.
func bindsPeersToAddresses(t *testing.T) {
	hosts, _ := secure(t, "192.0.2.%d/24")
	share(t, hosts, 1)
	server, at := hosts[1].hearing(t, "10.9.2.7:53"), "["+hosts[1].Address.String()+"]:4789"
	packet := func(text string) string { return forged(hosts[1].Address.String(), "10.9.2.7:53", text) }
	// "An encrypted cluster keeps hosts" apart from others, not from each other: a
	// process of the host may send what VXLAN would.
	honest := bindUDP(t, hosts[0].Namespace, "["+hosts[0].Address.String()+"]:0")
	honest.send(at, packet("sent"))
	server.want("sent")
	hosts[2].Run("ip", "address", "add", hosts[0].Address.String()+"/128", "dev", "particle-wg")
	liar := bindUDP(t, hosts[2].Namespace, "["+hosts[0].Address.String()+"]:0")
	sure := bindUDP(t, hosts[2].Namespace, "["+hosts[2].Address.String()+"]:0")
	liar.send(at, packet("from another"))
	sure.send(at, packet("known")) // by the same tunnel, which keeps their order
	server.want("known")
}

func followsPeers(t *testing.T) {
	hosts, _ := secure(t, "192.0.2.%d/24")
	share(t, hosts, 1)
	moved, to := hosts[1], netip.MustParseAddr("192.0.2.22")
	server := bindUDP(t, moved.tenant(network(1)), "10.9.2.7:53")
	client := bindUDP(t, hosts[0].tenant(network(1)), "10.9.1.9:0")
	moved.Run("ip", "address", "delete", "192.0.2.2/24", "dev", "eth0")
	moved.Run("ip", "address", "add", "192.0.2.22/24", "dev", "eth0")
	moved.underlay = to
	hosts[0].know(hosts[1], hosts[2])
	client.send("10.9.2.7:53", "after")
	server.want("after")
	// What the kernel has learned from the peer's own packets stays.
	moved.Run("ip", "address", "add", "192.0.2.23/24", "dev", "eth0")
	moved.Run("ip", "route", "replace", "192.0.2.1/32", "dev", "eth0", "src", "192.0.2.23")
	back := bindUDP(t, hosts[0].tenant(network(1)), "10.9.1.9:53")
	bindUDP(t, moved.tenant(network(1)), "10.9.2.7:0").send("10.9.1.9:53", "from there")
	back.want("from there")
	hosts[0].applyWireGuard(false)
}

func tellsPortTaken(t *testing.T) {
	m := newMachine(t, "192.0.2.1/24")
	bindUDP(t, m.Namespace, "0.0.0.0:7793")
	if _, err := m.ApplyWireGuard(t.Context(), wireGuard(t, 1)); err == nil || !strings.Contains(err.Error(), "PARTICLE_WIREGUARD_PORT") {
		t.Errorf("with the port taken: %v", err)
	}
}

func refusesOtherLink(t *testing.T) {
	m := newMachine(t, "192.0.2.1/24")
	m.Run("ip", "link", "add", "particle-wg", "type", "dummy")
	if _, err := m.ApplyWireGuard(t.Context(), wireGuard(t, 1)); err == nil || !strings.Contains(err.Error(), "of kind dummy") {
		t.Errorf("with a dummy of that name: %v", err)
	}
	if err := m.RemoveWireGuard(t.Context()); err != nil || !strings.Contains(m.Run("ip", "link"), "particle-wg") {
		t.Errorf("somebody's link was removed, or %v", err)
	}
}

func worksWithIPv6Off(t *testing.T) {
	m := newMachine(t, "192.0.2.1/24")
	for _, of := range []string{"all", "default"} {
		m.Run("sysctl", "-q", "-w", "net.ipv6.conf."+of+".disable_ipv6=1")
	}
	w := wireGuard(t, 1)
	if _, err := m.ApplyWireGuard(t.Context(), w); err != nil {
		t.Fatal(err)
	}
	if out := m.Run("ip", "-6", "route", "get", wireGuard(t, 2).Address.String()); !strings.Contains(out, "dev particle-wg") {
		t.Errorf("other hosts are reached by %s", out)
	}
}

func allowed(cidr string) []net.IPNet {
	_, n, _ := net.ParseCIDR(cidr)
	return []net.IPNet{*n}
}

// device is what the kernel has.
func (h *secured) device() (d *wgtypes.Device) {
	h.t.Helper()
	h.control(func(c *wgctrl.Client) (err error) { d, err = c.Device("particle-wg"); return err })
	return d
}

func (h *secured) configure(config wgtypes.Config) {
	h.t.Helper()
	h.control(func(c *wgctrl.Client) error { return c.ConfigureDevice("particle-wg", config) })
}

func (h *secured) control(do func(*wgctrl.Client) error) {
	h.t.Helper()
	var err error
	h.Do(func() {
		var c *wgctrl.Client
		if c, err = wgctrl.New(); err == nil {
			err = errors.Join(do(c), c.Close())
		}
	})
	if err != nil {
		h.t.Fatal(err)
	}
}

// sendExactly sends a datagram in one piece or not at all, waits for it, and finds
// one that is longer by a byte refused.
func (h *secured) sendExactly(t *testing.T, from string, there *secured, to string, size int) {
	t.Helper()
	server, client := bindUDP(t, there.tenant(network(1)), to), bindUDP(t, h.tenant(network(1)), from)
	client.unfragmented()
	text := strings.Repeat(marker, size/len(marker)+1)
	client.send(to, text[:size])
	if got := server.whole(); got != text[:size] {
		t.Errorf("of a datagram of %d bytes arrived %d", size, len(got))
	}
	if err := client.try(to, text[:size+1]); !errors.Is(err, unix.EMSGSIZE) {
		t.Errorf("a datagram of %d bytes was not refused: %v", size+1, err)
	}
}
