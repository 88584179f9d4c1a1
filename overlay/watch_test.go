package overlay_test

import (
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/particle-net/particle/internal/netnstest"
	"github.com/particle-net/particle/overlay"
)

// A network that was found in order is not read again until something tells that it
// has changed. Whatever has, tells.
func TestStillNetworkIsRepaired(t *testing.T) {
	t.Parallel()
	for _, tool := range []string{"nft", "bridge"} {
		netnstest.RequireTool(t, tool)
	}
	m := newMachine(t, "192.0.2.1/24", func(o *overlay.Options) { o.AcceptEvery = time.Hour })
	seg := part([]string{"10.9.1.0/24", "fd00:9:1::/64"}, []string{"10.9.0.0/16", "fd00:9::/32"},
		peer("192.0.2.2", "10.9.2.0/24", "fd00:9:2::/64"), peer("192.0.2.3", "10.9.3.0/24"))
	m.apply(seg, true)
	for range 2 {
		m.apply(seg, false)
	}
	ns := m.tenant(network(1))
	want := dump(ns)
	for _, drift := range []string{
		"bridge fdb del 0a:58:c0:00:02:02 dev vx0 dst 192.0.2.2",
		"bridge fdb replace 0a:58:c0:00:02:02 dev vx0 dst 192.0.2.66",
		"ip neighbour del fe80::c000:202 dev vx0",
		"ip neighbour replace fe80::c000:202 lladdr 02:00:00:00:00:66 dev vx0",
		"ip route del 10.9.2.0/24",
		"ip -6 route del fd00:9:2::/64",
		"ip route del local 10.9.1.0/24 dev lo table local",
		"ip route del unreachable 10.9.0.0/16 metric 4294967295",
		"ip address add 10.9.9.9/32 dev vx0",
		"ip link set vx0 down",
		"ip link set vx0 mtu 1300",
		"ip link delete vx0",
		"ip link set lo down",
		"nft flush ruleset",
		"nft flush chain inet particle input",
		"echo 0 > /proc/sys/net/ipv6/ip_nonlocal_bind",
		"echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6",
	} {
		ns.Run("sh", "-c", drift)
		m.apply(seg, true)
		m.observes(seg)
		if got := dump(ns); got != want {
			t.Errorf("after %q:\n%s\nwant:\n%s", drift, got, want)
		}
		for range 2 {
			m.apply(seg, false)
		}
	}
}

// Nor is the way out, of which the host's end is looked at in any case.
func TestStillUplinkIsRepaired(t *testing.T) {
	t.Parallel()
	m, _ := routed(t)
	ns := m.tenantWithUplink(1)
	gate, pu := m.gateway(network(1)), "pu"+network(1).Short()
	still := func() {
		t.Helper()
		for range 2 {
			m.applyUplink(1, false)
		}
	}
	shape := func() string {
		return dump(ns) + dump(gate) + m.Run("ip", "-o", "address", "show", "up", "dev", pu, "scope", "global")
	}
	// Numbers of links, and with them their order, differ after a repair.
	plain := func(s string) string {
		lines := strings.Split(regexp.MustCompile(`(?m)^[0-9]+: |valid_lft.*$`).ReplaceAllString(s, ""), "\n")
		slices.Sort(lines)
		return strings.Join(lines, "\n")
	}
	still()
	want := plain(shape())
	for _, drift := range []struct {
		in   *netnstest.Namespace
		line string
	}{
		{ns, "ip route del default"},
		{ns, "ip -6 route del default"},
		{ns, "nft delete table inet particle"},
		{ns, "ip link set up0 down"},
		{ns, "ip link delete up0"},
		{gate, "ip route del default"},
		{gate, "ip rule del iif up0 lookup 112"},
		{gate, "ip route flush table 112"},
		{gate, "ip address flush dev in0"},
		{gate, "nft flush ruleset"},
		{gate, "echo 0 > /proc/sys/net/ipv4/ip_forward"},
		{m.Namespace, "ip address flush dev " + pu},
		{m.Namespace, "ip link set " + pu + " down"},
		{m.Namespace, "ip link delete " + pu},
		{m.Namespace, "nft flush chain inet particle prerouting"},
	} {
		drift.in.Run("sh", "-c", drift.line)
		m.applyUplink(1, true)
		if got := plain(shape()); got != want {
			t.Errorf("after %q:\n%s\nwant:\n%s", drift.line, got, want)
		}
		still()
	}
}

// What is listened to in a namespace does not keep it.
func TestRemovedNetworkKeepsNoNamespace(t *testing.T) {
	t.Parallel()
	m := newMachine(t, "192.0.2.1/24")
	seg := segment(1, 0, "", "10.9.1.0/24")
	for _, replace := range []bool{false, true} {
		m.apply(seg, true)
		m.apply(seg, false)
		path := m.opts.NamespaceDir + "/" + string(network(1))
		m.Run("ip", "link", "add", "witness", "type", "veth", "peer", "name", "inner")
		m.Run("sh", "-c", "nsenter --net="+path+" true && ip link set inner netns "+path)
		if replace { // by somebody, with another, which is taken for the network's
			m.Run("umount", path)
			m.apply(seg, true)
			m.apply(seg, false)
		}
		if err := m.Remove(t.Context(), network(1)); err != nil {
			t.Fatal(err)
		}
		for strings.Contains(m.Run("ip", "-o", "link", "show", "type", "veth"), "witness") {
			<-time.After(10 * time.Millisecond) // the kernel takes a namespace down by and by
		}
	}
}
