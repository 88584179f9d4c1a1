package overlay_test

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/internal/netnstest"
	"github.com/particle-net/particle/overlay"
)

func TestUplinkLetsTenantsOut(t *testing.T) {
	eachVersion(t, func(t *testing.T, a addressing) {
		m, internet := routed(t)
		serve(t, listenTCP(t, internet, at(a.outside, 80)), "internet")
		serve(t, listenTCP(t, m.Namespace, at(a.host, 8080)), "host")
		for n := 1; n <= 2; n++ {
			ns := m.tenantWithUplink(n)
			// The same address and port in both, bound as the address guard does.
			got, err := ask(ns, a.container, at(a.outside, 80))
			if want := "internet sees " + a.host; err != nil || got != want {
				t.Errorf("tenant %d got %q, %v; want %q", n, got, err, want)
			}
			_, tenant := a.ends(uplink(t, n))
			got, err = ask(ns, a.container, at(a.host, 8080))
			if want := "host sees " + tenant; err != nil || got != want {
				t.Errorf("tenant %d got %q, %v; want %q", n, got, err, want)
			}
			if got, err := ask(ns, "", at(a.outside, 80)); err != nil {
				t.Errorf("tenant %d without a source of its own: %q, %v", n, got, err)
			}
		}
		one, two := bindUDP(t, m.tenant(network(1)), at(a.container, 33333)), bindUDP(t, m.tenant(network(2)), at(a.container, 33333))
		echo := bindUDP(t, internet, at(a.outside, 53))
		one.send(at(a.outside, 53), "from one")
		sourceOne := echo.want("from one")
		two.send(at(a.outside, 53), "from two")
		sourceTwo := echo.want("from two")
		echo.send(sourceOne, "to one")
		echo.send(sourceTwo, "to two")
		one.want("to one")
		two.want("to two")
	})
}

// picture is everything that belongs to an uplink, with the handles of rules,
// so that rules made anew show.
func (m *machine) picture(n int) string {
	m.t.Helper()
	var b strings.Builder
	for _, ns := range []*netnstest.Namespace{m.Namespace, m.gateway(network(n)), m.tenant(network(n))} {
		b.WriteString(ns.Run("nft", "-a", "list", "tables"))
		b.WriteString(ns.Run("nft", "-s", "list", "table", "inet", "particle"))
	}
	gate := m.gateway(network(n))
	for _, args := range [][]string{{"-o", "address"}, {"-o", "link"}, {"route", "show", "table", "112"}, {"-6", "route", "show", "table", "112"}, {"rule"}, {"-6", "rule"}} {
		b.WriteString(gate.Run("ip", args...))
	}
	b.WriteString(m.Run("ip", "-br", "address", "show", "type", "veth"))
	b.WriteString(m.Run("ip", "-o", "link", "show", "type", "veth"))
	b.WriteString(m.tenant(network(n)).Run("ip", "route"))
	b.WriteString(m.tenant(network(n)).Run("ip", "-6", "route"))
	b.WriteString(m.tenant(network(n)).Run("ip", "-6", "neighbour", "show", "nud", "permanent"))
	b.WriteString(m.Run("ip", "-6", "neighbour", "show", "nud", "permanent"))
	b.WriteString(dump(m.tenant(network(n))))
	return b.String()
}

func TestUplinkIsRepaired(t *testing.T) {
	t.Parallel()
	m, internet := routed(t)
	for _, a := range versions() {
		serve(t, listenTCP(t, internet, at(a.outside, 80)), "internet")
	}
	ns := m.tenantWithUplink(1)
	pu := "pu" + network(1).Short()
	_, tenant6 := versions()["IPv6"].ends(uplink(t, 1))
	host6, _ := versions()["IPv6"].ends(uplink(t, 1).Inside())
	gate := m.gateway(network(1))
	before := m.picture(1)
	m.applyUplink(1, false)
	if diff := cmp.Diff(before, m.picture(1)); diff != "" {
		t.Errorf("the second ApplyUplink changed the kernel (-want +got):\n%s", diff)
	}
	m.restart()
	m.applyUplink(1, false)
	for _, drift := range []struct {
		in   *netnstest.Namespace
		args []string
	}{
		{m.Namespace, []string{"ip", "link", "delete", pu}},
		{m.Namespace, []string{"ip", "link", "set", pu, "down"}},
		{m.Namespace, []string{"sh", "-c", "ip link set " + pu + " down; ip link set " + pu + " name other; ip link add " + pu + " type veth peer name another"}},
		{m.Namespace, []string{"ip", "link", "set", pu, "mtu", "1400"}},
		{m.Namespace, []string{"ip", "route", "flush", "dev", pu}},
		{m.Namespace, []string{"ip", "-6", "route", "flush", "dev", pu}},
		{m.Namespace, []string{"ip", "address", "flush", "dev", pu}},
		{m.Namespace, []string{"ip", "address", "add", "169.254.192.40/31", "dev", pu}},
		{m.Namespace, []string{"ip", "-6", "address", "flush", "dev", pu}},
		{m.Namespace, []string{"ip", "-6", "address", "add", "fdf0:cf12:e344::40/127", "dev", pu}},
		{m.Namespace, []string{"ip", "address", "add", "fe80::7/64", "dev", pu, "nodad"}},
		{m.Namespace, []string{"ip", "-6", "neighbour", "flush", "dev", pu, "nud", "all"}},
		{m.Namespace, []string{"ip", "neighbour", "replace", tenant6, "lladdr", "02:00:00:00:00:01", "dev", pu, "nud", "permanent"}},
		{m.Namespace, []string{"ip", "neighbour", "change", tenant6, "dev", pu, "nud", "reachable"}},
		{m.Namespace, []string{"nft", "flush", "chain", "inet", "particle", "forward"}},
		{m.Namespace, []string{"nft", "delete", "table", "inet", "particle"}},
		{m.Namespace, []string{"nft", "insert", "rule", "inet", "particle", "forward", "accept"}},
		{m.Namespace, []string{"sh", "-c", "echo 0 > /proc/sys/net/ipv4/ip_forward"}},
		{m.Namespace, []string{"sh", "-c", "echo 0 > /proc/sys/net/ipv4/conf/" + pu + "/forwarding"}},
		{m.Namespace, []string{"sh", "-c", "echo 0 > /proc/sys/net/ipv6/conf/all/forwarding"}},
		{m.Namespace, []string{"sh", "-c", "echo 1 > /proc/sys/net/ipv6/conf/" + pu + "/disable_ipv6"}},
		{m.Namespace, []string{"sh", "-c", "echo 2 > /proc/sys/net/ipv6/conf/" + pu + "/accept_ra"}},
		{m.Namespace, []string{"sh", "-c", "echo 1 > /proc/sys/net/ipv6/conf/" + pu + "/accept_redirects"}},
		{ns, []string{"sh", "-c", "echo 1 > /proc/sys/net/ipv6/conf/up0/disable_ipv6"}},
		{ns, []string{"ip", "-6", "address", "flush", "dev", "up0"}},
		{ns, []string{"ip", "-6", "neighbour", "flush", "dev", "up0", "nud", "all"}},
		{ns, []string{"ip", "-6", "neighbour", "replace", host6, "lladdr", "02:00:00:00:00:01", "dev", "up0", "nud", "permanent"}},
		{ns, []string{"ip", "-6", "route", "delete", "default"}},
		{ns, []string{"ip", "-6", "route", "flush", "dev", "up0"}},
		{gate, []string{"ip", "route", "flush", "table", "main"}},
		{ns, []string{"ip", "link", "delete", "up0"}},
		{ns, []string{"sh", "-c", "ip link set up0 down; ip link set up0 name other"}},
		{ns, []string{"ip", "link", "set", "up0", "down"}},
		{ns, []string{"sh", "-c", "nft flush chain inet particle forward; nft delete chain inet particle forward"}},
		{ns, []string{"ip", "route", "delete", "default"}},
		{ns, []string{"ip", "route", "replace", "default", "via", "169.254.255.252", "dev", "up0", "proto", "112", "metric", "7"}},
		{gate, []string{"ip", "link", "delete", "up0"}},
		{gate, []string{"ip", "link", "delete", "in0"}},
		{gate, []string{"ip", "link", "set", "in0", "down"}},
		{gate, []string{"ip", "address", "flush", "dev", "in0"}},
		{gate, []string{"ip", "-6", "address", "flush", "dev", "up0"}},
		{gate, []string{"ip", "-6", "neighbour", "flush", "dev", "in0", "nud", "all"}},
		{gate, []string{"ip", "route", "delete", "default"}},
		{gate, []string{"ip", "route", "flush", "table", "112"}},
		{gate, []string{"ip", "-6", "route", "flush", "table", "112"}},
		{gate, []string{"ip", "rule", "delete", "iif", "up0"}},
		{gate, []string{"ip", "-6", "rule", "delete", "iif", "up0"}},
		{gate, []string{"nft", "flush", "table", "inet", "particle"}},
		{gate, []string{"nft", "delete", "table", "inet", "particle"}},
		{gate, []string{"sh", "-c", "echo 0 > /proc/sys/net/ipv4/ip_forward"}},
		{gate, []string{"sh", "-c", "echo 0 > /proc/sys/net/ipv6/conf/all/forwarding"}},
		{gate, []string{"sh", "-c", "echo 1 > /proc/sys/net/ipv4/conf/all/rp_filter"}},
		{ns, []string{"nft", "add", "chain", "inet", "particle", "untracked-in", "{ type filter hook prerouting priority -300; }"}}, // an earlier version's
		{ns, []string{"nft", "flush", "table", "inet", "particle"}},
		{ns, []string{"nft", "delete", "table", "inet", "particle"}},
		{ns, []string{"sh", "-c", "nft delete table inet particle; nft add table inet particle; nft 'add chain inet particle input { type filter hook input priority 10; }'"}},
	} {
		drift.in.Run(drift.args[0], drift.args[1:]...)
		// A second default route with a worse metric is none of our concern, nor is
		// a link-local address.
		m.applyUplink(1, !slices.Contains(drift.args, "metric") && !slices.Contains(drift.args, "fe80::7/64"))
		m.applyUplink(1, false)
		for name, a := range versions() {
			if got, err := ask(ns, a.container, at(a.outside, 80)); err != nil {
				t.Errorf("after %v, over %s: got %q, %v", drift.args, name, got, err)
			}
		}
	}
}

func TestRemoveTakesTheUplink(t *testing.T) {
	t.Parallel()
	m, _ := routed(t)
	m.tenantWithUplink(1)
	for range 2 { // gone is success
		if err := m.Remove(t.Context(), network(1)); err != nil {
			t.Fatal(err)
		}
	}
	if links := linksNamed(m.Namespace, "pu"); len(links) > 0 {
		t.Errorf("Remove left %v", links)
	}
	if mounts := m.mounts(); len(mounts) > 0 {
		t.Errorf("Remove left %v", mounts)
	}
	if _, err := m.ApplyUplink(t.Context(), uplink(t, 1)); !errors.Is(err, overlay.ErrNoNetwork) {
		t.Errorf("ApplyUplink of a removed network: %v", err)
	}
}

// "The way out takes one hop more than from a bridge", where one reaches the host.
func TestWayOutTakesOneHopMore(t *testing.T) {
	eachVersion(t, func(t *testing.T, a addressing) {
		m, _ := routed(t)
		ns := m.tenantWithUplink(1)
		server, client := bindUDP(t, m.Namespace, at(a.host, 1000)), bindUDP(t, ns, at(a.container, 1000))
		raw, err := client.PacketConn.(*net.UDPConn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		for hops := 1; hops <= 2; hops++ {
			failed := raw.Control(func(fd uintptr) {
				if a.family == "-4" {
					err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_TTL, hops)
				} else {
					err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, hops)
				}
			})
			if err := errors.Join(failed, err); err != nil {
				t.Fatal(err)
			}
			client.send(at(a.host, 1000), fmt.Sprintf("%d hops", hops))
		}
		server.want("2 hops")
	})
}
