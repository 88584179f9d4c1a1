package addrguard_test

import (
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/addrguard"
	"github.com/particle-net/particle/internal/netnstest"
	"github.com/particle-net/particle/topology"
)

func endpointID(n int) topology.EndpointID {
	return topology.EndpointID(fmt.Sprintf("%012x%052x", n, n))
}

// own connects a container with a namespace of its own, which the guard has
// nothing to do with.
func (m *machine) own(ns *netnstest.Namespace, n int) *box {
	m.t.Helper()
	err := m.plane.ApplyBranch(m.t.Context(), topology.Branch{
		Network: networkID(1), Endpoint: endpointID(n), Namespace: ns.Path(), Link: "eth%d", MTU: 1450,
		IPv4: netip.AddrFrom4([4]byte{10, 77, 1, byte(n)}), IPv6: netip.MustParseAddr(fmt.Sprintf("fd00:77:1::%x", n)),
	})
	if err != nil {
		m.t.Fatal(err)
	}
	if err := m.ProtectBranch(m.t.Context(), networkID(1), endpointID(n)); err != nil {
		m.t.Fatal(err)
	}
	cgroup := fmt.Sprintf("%s/own%d", m.top, boundary.Add(1))
	m.cgroup(cgroup)
	return m.start(cgroup, ns)
}

// pinned counts the programs on branches.
func (m *machine) pinned(want int) {
	m.t.Helper()
	if !devicesSince(m.t) {
		want = 0
	}
	pins, err := filepath.Glob(m.opts.Pins + "/*/device-*-pb*")
	if err != nil || len(pins) != want {
		m.t.Errorf("programs of branches: %v, %v; want %d", pins, err, want)
	}
}

func TestContainersWithTheirOwnNamespace(t *testing.T) {
	t.Parallel()
	root := netnstest.New(t)
	root.Run("ip", "link", "add", "eth0", "type", "bridge")
	root.Run("ip", "address", "add", "192.0.2.1/24", "dev", "eth0")
	root.Run("ip", "link", "set", "eth0", "up")
	m := newMachine(t, root, "192.0.2.1", "10.77.1.0/24", "fd00:77:1::/64")
	shared, own := m.container("10.77.1.5", "fd00:77:1::5"), m.own(netnstest.New(t), 9)

	// A server for both families, as most are.
	s := shared.socket(unix.AF_INET6, tcp)
	expect(t, "bind", s.do(Call{Name: "bind", FD: s.fd, Addr: "[::]:80"}).Err, 0)
	s.must(Call{Name: "listen", FD: s.fd})
	expect(t, "by IPv4", dial(t, own, s, "10.77.1.5:80").from, "::ffff:10.77.1.9")
	if !unmet(t, own, "[fd00:77:1::5]:80") {
		expect(t, "by IPv6", dial(t, own, s, "[fd00:77:1::5]:80").from, "fd00:77:1::9")
	}
	expect(t, "the other way", dial(t, shared, own.listening("10.77.1.9:80"), "10.77.1.9:80").from, "10.77.1.5")
	for family, to := range map[int]string{unix.AF_INET: "10.77.1.9", unix.AF_INET6: "fd00:77:1::9"} {
		echoed(t, shared, family, to)
	}

	// Its loopback is private towards them, too, under whatever name.
	private, stranger := shared.bound(udp, "[::1]:53"), own.socket(unix.AF_INET6, udp)
	name := addrguard.Prefixes()[0].Addr().As16()
	name[15] = 1 // the slot
	expect(t, "send", stranger.send(join(netip.AddrFrom16(name).String(), 53), "forbidden"), 0)
	friend := shared.socket(unix.AF_INET6, udp)
	expect(t, "send", friend.send("[::1]:53", "own"), 0)
	text, _ := private.received("what arrives")
	expect(t, "what arrives", text, "own")
	if devicesSince(t) { // a server for both families is found there, but not by them
		open := shared.bound(udp, "[::]:54")
		expect(t, "send", stranger.send(join(netip.AddrFrom16(name).String(), 54), "forbidden"), 0)
		expect(t, "send", friend.send("[::1]:54", "own"), 0)
		text, _ := open.received("what arrives at all addresses")
		expect(t, "what arrives at all addresses", text, "own")
	}
}

func TestBranchesComeAndGo(t *testing.T) {
	t.Parallel()
	root := netnstest.New(t)
	root.Run("ip", "link", "add", "eth0", "type", "bridge")
	root.Run("ip", "address", "add", "192.0.2.1/24", "dev", "eth0")
	root.Run("ip", "link", "set", "eth0", "up")
	m := newMachine(t, root, "192.0.2.1", "10.77.1.0/24", "fd00:77:1::/64")
	shared := m.container("10.77.1.5", "fd00:77:1::5")
	m.own(netnstest.New(t), 9)
	m.pinned(2)
	m.own(netnstest.New(t), 9) // the link is made anew
	m.own(netnstest.New(t), 10)
	m.pinned(4)
	if err := m.plane.RemoveBranches(t.Context(), networkID(1), []topology.EndpointID{endpointID(10)}); err != nil {
		t.Fatal(err)
	}
	m.protect()
	m.pinned(2)
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	m.open() // another process, which takes them over
	m.protect()
	m.pinned(2)
	echoed(t, shared, unix.AF_INET, "10.77.1.9")
	if err := m.Unprotect(t.Context(), networkID(1)); err != nil {
		t.Fatal(err)
	}
	m.pinned(0)
}

// A network without IPv6 has nothing to steer on the devices that lead elsewhere; what
// a version put there that did not know that goes.
func TestDevicesWithoutIPv6(t *testing.T) {
	t.Parallel()
	if !devicesSince(t) {
		return // no device has a program
	}
	h := newHost(t)
	id := h.network(1, v4)
	ns := h.spaces[id]
	ns.Run("ip", "link", "add", "vx0", "type", "veth", "peer", "name", "wire")
	ns.Run("sh", "-c", "ip "+branchLink(1))
	for _, ipv6 := range []bool{false, true, false} {
		if err := h.Close(); err != nil { // one process does not look at a branch twice
			t.Fatal(err)
		}
		h.open()
		if err := h.Protect(t.Context(), id, ipv6); err != nil {
			t.Fatal(err)
		}
		var have []string
		for name := range h.programs() {
			if parts := strings.Split(name, "-"); parts[0] == "device" {
				have = append(have, parts[2][:2]+" "+parts[3])
			}
		}
		slices.Sort(have)
		want := []string{"lo steer", "pb ping", "vx ping"}
		if ipv6 {
			want = []string{"lo steer", "pb ping", "pb steer", "vx ping", "vx steer"}
		}
		expect(t, fmt.Sprint("programs, with IPv6 ", ipv6), fmt.Sprint(have), fmt.Sprint(want))
		ns.Do(func() {
			device, err := net.InterfaceByName("vx0")
			if err != nil {
				t.Fatal(err)
			}
			// The kernel takes it away some time after its pin is gone.
			eventually(t, fmt.Sprintf("programs on the way in are there: %v", ipv6), func() bool {
				hanging, err := link.QueryPrograms(link.QueryOptions{Target: device.Index, Attach: ebpf.AttachTCXIngress})
				if err != nil {
					t.Fatal(err)
				}
				return (len(hanging.Programs) > 0) == ipv6
			})
		})
	}
}
