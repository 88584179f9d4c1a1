package overlay_test

import (
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/overlay"
	"github.com/particle-net/particle/topology"
)

// base is what every tenant namespace has.
const base = `ip_unprivileged_port_start 0
ping_group_range 0 2147483647
ip_nonlocal_bind 0
ip6_nonlocal_bind 1
disable_ipv6 all 0
disable_ipv6 default 0
disable_ipv6 lo 0
`

const (
	loUp     = "link lo up 127.0.0.1/8 ::1/128\n"
	resolver = "route unreachable 127.0.0.11  local\n"
)

// patience bounds a connection that should succeed; far more than it takes.
const patience = 10 * time.Second

type state struct {
	name string
	seg  topology.Segment
	want string
}

// states are segments of one network, with the kernel's picture of each.
func states() []state {
	with := func(change func(*topology.Segment)) topology.Segment {
		seg := segment(1, 42, "192.0.2.1", "10.9.0.0/24")
		change(&seg)
		return seg
	}
	const vx0 = "link vx0 down mtu 1450 0a:58:c0:00:02:01 vxlan 42 192.0.2.1 port 4789 learning=false\n"
	return []state{
		{"one pool", with(func(*topology.Segment) {}), loUp + vx0 +
			"route local 10.9.0.0/24 lo local\n" + resolver + base},
		{"two pools", with(func(s *topology.Segment) { s.Pools = prefixes("10.9.0.0/24", "10.10.0.0/16") }), loUp + vx0 +
			"route local 10.9.0.0/24 lo local\nroute local 10.10.0.0/16 lo local\n" + resolver + base},
		{"both families", with(func(s *topology.Segment) { s.Pools = prefixes("10.9.0.0/24", "fd00:9::/64") }), loUp + vx0 +
			"route local 10.9.0.0/24 lo local\n" + resolver + "route local fd00:9::/64 lo local\n" + base},
		{"no pool", with(func(s *topology.Segment) { s.Pools = nil }), loUp + vx0 + resolver + base},
		{"jumbo frames", with(func(s *topology.Segment) { s.MTU = 8950 }), loUp +
			strings.Replace(vx0, "1450", "8950", 1) + "route local 10.9.0.0/24 lo local\n" + resolver + base},
		{"no underlay", with(func(s *topology.Segment) { s.VTEP = netip.Addr{} }), loUp +
			"route local 10.9.0.0/24 lo local\n" + resolver + base},
	}
}

func TestApplyReachesEveryStateFromEveryOther(t *testing.T) {
	t.Parallel()
	m := newMachine(t, "192.0.2.1/24")
	visit := func(s state, wantChange bool) {
		t.Helper()
		m.apply(s.seg, wantChange)
		got := dump(m.tenant(s.seg.Network))
		if diff := cmp.Diff(s.want, got); diff != "" {
			t.Fatalf("%s (-want +got):\n%s", s.name, diff)
		}
		m.apply(s.seg, false)
		if again := dump(m.tenant(s.seg.Network)); again != got {
			t.Fatalf("%s: the second Apply changed the kernel:\n%s", s.name, cmp.Diff(got, again))
		}
		m.observes(s.seg)
	}
	walk := states()
	for _, s := range walk {
		visit(s, true)
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	last := len(walk) - 1
	for range 20 {
		next := random.IntN(len(walk))
		visit(walk[next], next != last)
		last = next
	}
}

// observes fails the test if the kernel, read back, is not the segment.
func (m *machine) observes(want topology.Segment) {
	m.t.Helper()
	got, err := m.Observe(m.t.Context(), want.Network)
	if err != nil {
		m.t.Fatal(err)
	}
	if !want.VTEP.IsValid() {
		want.VNI, want.Port, want.MTU = 0, 0, 0
	}
	slices.SortFunc(want.Pools, netip.Prefix.Compare)
	compare := cmp.Options{cmpopts.EquateEmpty(), cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})}
	if diff := cmp.Diff(want, got, compare); diff != "" {
		m.t.Fatalf("Observe (-want +got):\n%s", diff)
	}
}

func TestSixOverSix(t *testing.T) {
	t.Parallel()
	m := newMachine(t, "2001:db8::1/64")
	seg := segment(1, 42, "2001:db8::1", "fd00:9::/64")
	m.apply(seg, true)
	m.apply(seg, false)
	m.observes(seg)
}

func TestReadyNamespacesAreLikeNewOnes(t *testing.T) {
	t.Parallel()
	m := newMachine(t, "192.0.2.1/24", func(o *overlay.Options) { o.Ready = 2 })
	for n := range 6 { // more than are ready
		seg := segment(n+1, topology.VNI(n+1), "192.0.2.1", "10.9.0.0/24", "fd00:9::/64")
		m.apply(seg, true)
		m.apply(seg, false)
		m.observes(seg)
	}
}

func TestTenantsWithTheSameSubnet(t *testing.T) {
	t.Parallel()
	m := newMachine(t, "192.0.2.1/24")
	for n := 1; n <= 2; n++ {
		m.apply(segment(n, topology.VNI(n), "192.0.2.1", "10.9.0.0/24"), true)
	}
	var accepted [3]net.Listener
	for n := 1; n <= 2; n++ {
		l, err := m.Listen(t.Context(), network(n), "tcp", "10.9.0.7:80")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		accepted[n] = l
	}
	if err := m.Remove(t.Context(), network(1)); err != nil {
		t.Fatal(err)
	}
	m.apply(segment(2, 2, "192.0.2.1", "10.9.0.0/24"), false)
}

func TestVNIInUse(t *testing.T) {
	t.Parallel()
	m := newMachine(t, "192.0.2.1/24")
	m.apply(segment(1, 42, "192.0.2.1", "10.9.0.0/24"), true)
	_, err := m.Apply(t.Context(), segment(2, 42, "192.0.2.1", "10.8.0.0/24"))
	if !errors.Is(err, topology.ErrVNIInUse) || !strings.Contains(err.Error(), "network "+network(1).Short()) {
		t.Errorf("a VNI held by another network: %v", err)
	}
	m.Run("ip", "link", "add", "vxlan7", "type", "vxlan", "id", "7", "dstport", "4789")
	_, err = m.Apply(t.Context(), segment(3, 7, "192.0.2.1", "10.8.0.0/24"))
	if !errors.Is(err, topology.ErrVNIInUse) || !strings.Contains(err.Error(), "vxlan7") {
		t.Errorf("a VNI held by a device of the host: %v", err)
	}
	ids, err := m.Networks(t.Context())
	if want := []topology.NetworkID{network(1)}; err != nil || !slices.Equal(ids, want) {
		t.Errorf("Networks() = %v, %v; want %v: a failed Apply leaves nothing", ids, err, want)
	}
}

// "`/run/particle` is no cache to be cleaned": whose namespace was unmounted is told so, and
// not sent to look for another program. It is made anew when its containers have ended.
func TestUnmountedNamespace(t *testing.T) {
	t.Parallel()
	m := newMachine(t, "192.0.2.1/24")
	seg := segment(1, 42, "192.0.2.1", "10.9.0.0/24")
	m.apply(seg, true)
	path := filepath.Join(m.opts.NamespaceDir, string(network(1)))
	container, err := os.Open(path) // holds it as a process in it would
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
		t.Fatal(errors.Join(err, container.Close()))
	}
	_, err = m.Apply(t.Context(), seg)
	if !errors.Is(err, topology.ErrVNIInUse) || !strings.Contains(err.Error(), "unmounted from "+path) {
		t.Errorf("after unmounting: %v", err)
	}
	if err := container.Close(); err != nil {
		t.Fatal(err)
	}
	for err = errors.New("not tried"); err != nil && t.Context().Err() == nil; { // the kernel ends namespaces in its own time
		_, err = m.Apply(t.Context(), seg)
	}
	m.apply(seg, false)
}

func TestPortTaken(t *testing.T) {
	t.Parallel()
	m := newMachine(t, "192.0.2.1/24")
	var holder net.PacketConn
	var err error
	m.Do(func() { holder, err = net.ListenPacket("udp4", "0.0.0.0:4789") })
	if err != nil {
		t.Fatal(err)
	}
	defer holder.Close()
	_, err = m.Apply(t.Context(), shared(segment(1, 42, "192.0.2.1", "10.9.0.0/24")))
	var told *fault.Error
	m.apply(segment(2, 43, "192.0.2.1", "10.9.0.0/24"), true) // this host's alone needs none
	if !errors.As(err, &told) || told.On != "4789" || told.Fix == "" {
		t.Fatalf("Apply on a taken port: %v", err)
	}
	_ = holder.Close()
	// A program that another test starts has the socket, too, until its exec.
	for limit := time.Now().Add(time.Minute); errors.As(err, &told) && time.Now().Before(limit); {
		_, err = m.Apply(t.Context(), shared(segment(1, 42, "192.0.2.1", "10.9.0.0/24")))
	}
	if err != nil {
		t.Fatal(err)
	}
	m.observes(shared(segment(1, 42, "192.0.2.1", "10.9.0.0/24")))
}

// The host's tunnel address may change, and the port by a setting.
func TestDifferentDeviceIsReplaced(t *testing.T) {
	t.Parallel()
	m := newMachine(t, "192.0.2.1/24")
	m.apply(segment(1, 42, "192.0.2.1", "10.9.0.0/24"), true)
	otherPort := segment(1, 42, "192.0.2.1", "10.9.0.0/24")
	otherPort.Port = 4790
	for name, seg := range map[string]topology.Segment{
		"VNI":            segment(1, 43, "192.0.2.1", "10.9.0.0/24"),
		"local address":  segment(1, 42, "192.0.2.2", "10.9.0.0/24"),
		"address family": segment(1, 42, "2001:db8::42", "10.9.0.0/24"),
		"UDP port":       otherPort,
	} {
		t.Log(name)
		m.apply(seg, true)
		m.observes(seg)
		m.apply(seg, false)
	}
}

func TestAdoptionAfterRestart(t *testing.T) {
	t.Parallel()
	m := newMachine(t, "192.0.2.1/24", func(o *overlay.Options) { o.Ready = 1 })
	seg := segment(1, 42, "192.0.2.1", "10.9.0.0/24", "fd00:9::/64")
	m.apply(seg, true)
	m.restart()
	ids, err := m.Networks(t.Context())
	if err != nil || !slices.Equal(ids, []topology.NetworkID{seg.Network}) {
		t.Fatalf("Networks() = %v, %v", ids, err)
	}
	m.observes(seg)
	m.apply(seg, false)
}

func TestDriftIsRepaired(t *testing.T) {
	t.Parallel()
	m := newMachine(t, "192.0.2.1/24")
	seg := segment(1, 42, "192.0.2.1", "10.9.0.0/24", "fd00:9::/64")
	m.apply(seg, true)
	ns := m.tenant(seg.Network)
	want := dump(ns)
	for _, drift := range [][]string{
		{"ip", "link", "delete", "vx0"},
		{"ip", "link", "set", "vx0", "up"},
		{"ip", "link", "set", "vx0", "mtu", "1300"},
		{"ip", "link", "set", "lo", "down"},
		{"ip", "route", "delete", "local", "10.9.0.0/24", "table", "local"},
		{"ip", "route", "delete", "unreachable", "127.0.0.11", "table", "local"},
		{"ip", "-6", "route", "delete", "local", "fd00:9::/64", "table", "local"},
		{"ip", "route", "add", "local", "10.66.0.0/16", "dev", "lo", "table", "local", "proto", "112"},
		// What Docker up to 25 does at every container start.
		{"sh", "-c", "echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6"},
		{"sh", "-c", "echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6"},
		{"sh", "-c", "echo 1 > /proc/sys/net/ipv6/conf/lo/disable_ipv6"},
		{"sh", "-c", "echo 0 > /proc/sys/net/ipv6/ip_nonlocal_bind"},
		{"sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_nonlocal_bind"},
		{"sh", "-c", "echo 1024 > /proc/sys/net/ipv4/ip_unprivileged_port_start"},
		{"sh", "-c", "echo 1 0 > /proc/sys/net/ipv4/ping_group_range"},
	} {
		ns.Run(drift[0], drift[1:]...)
		if dump(ns) == want {
			t.Errorf("%v: dump does not show it", drift)
		}
		m.apply(seg, true)
		if diff := cmp.Diff(want, dump(ns)); diff != "" {
			t.Errorf("after %v (-want +got):\n%s", drift, diff)
		}
		m.apply(seg, false)
	}
}

func TestRoutesOfOthersAreKept(t *testing.T) {
	t.Parallel()
	m := newMachine(t, "192.0.2.1/24")
	seg := segment(1, 42, "192.0.2.1", "10.9.0.0/24")
	m.apply(seg, true)
	ns := m.tenant(seg.Network)
	ns.Run("ip", "route", "add", "local", "10.66.0.0/16", "dev", "lo", "table", "local")
	m.apply(seg, false)
	if !strings.Contains(dump(ns), "10.66.0.0/16") {
		t.Error("Apply removed a route that it did not make")
	}
}

func TestRemove(t *testing.T) {
	t.Parallel()
	m := newMachine(t, "192.0.2.1/24")
	seg := segment(1, 42, "192.0.2.1", "10.9.0.0/24")
	m.apply(seg, true)
	orphan(t, m)
	for range 2 { // already gone is success
		if err := m.Remove(t.Context(), seg.Network); err != nil {
			t.Fatal(err)
		}
	}
	if mounts := m.mounts(); len(mounts) > 0 {
		t.Errorf("left mounted: %v", mounts)
	}
	if _, err := m.Observe(t.Context(), seg.Network); !errors.Is(err, overlay.ErrNoNetwork) {
		t.Errorf("Observe of a removed network: %v", err)
	}
	// The old namespace is still alive: its socket holds it.
	m.apply(segment(2, 42, "192.0.2.1", "10.9.0.0/24"), true)
}

// orphan leaves a connected socket in network 1's namespace until the test
// ends, as a killed container may for minutes.
func orphan(t *testing.T, m *machine) {
	t.Helper()
	l, err := m.Listen(t.Context(), network(1), "tcp", "10.9.0.7:80")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	var conn net.Conn
	m.tenant(network(1)).Do(func() { conn, err = net.Dial("tcp", "10.9.0.7:80") })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
}

func TestPoolAddressesCanBeBound(t *testing.T) {
	t.Parallel()
	m := newMachine(t, "192.0.2.1/24")
	m.apply(segment(1, 42, "192.0.2.1", "10.9.0.0/24", "fd00:9::/64"), true)
	for address, want := range map[string]error{
		"10.9.0.1:80":         nil,
		"10.9.0.200:80":       nil,
		"[fd00:9::7]:80":      nil,
		"[fd00:9::ffff:1]:80": nil,
		"127.0.0.1:80":        nil,
		"[::1]:80":            nil,
		"127.0.0.11:53":       syscall.EADDRNOTAVAIL,
		"10.8.0.1:80":         syscall.EADDRNOTAVAIL,
	} {
		l, err := m.Listen(t.Context(), network(1), "tcp", address)
		if err == nil {
			_ = l.Close()
		}
		p, perr := m.ListenPacket(t.Context(), network(1), "udp", address)
		if perr == nil {
			_ = p.Close()
		}
		if !errors.Is(err, want) || !errors.Is(perr, want) {
			t.Errorf("bind %s: tcp %v, udp %v; want %v", address, err, perr, want)
		}
	}
	if _, err := m.Listen(t.Context(), network(1), "tcp", "localhost:80"); err == nil {
		t.Error("Listen took a name")
	}
	if _, err := m.Listen(t.Context(), network(9), "tcp", "10.9.0.1:80"); !errors.Is(err, overlay.ErrNoNetwork) {
		t.Errorf("Listen in a network that is not here: %v", err)
	}
}
