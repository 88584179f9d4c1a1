package overlay_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/particle-net/particle/internal/netnstest"
	"github.com/particle-net/particle/overlay"
	"github.com/particle-net/particle/topology"
)

// machine is a pretended host: a namespace in the host's place, with an
// underlay link, and a Host opened in it.
type machine struct {
	*netnstest.Namespace
	*overlay.Host
	t       testing.TB
	opts    overlay.Options
	applied sync.Map // by network
}

// newMachine opens a Host in a namespace of its own. The address is given to a
// bridge called eth0 (not every kernel has dummy links); empty leaves the host
// without an underlay.
func newMachine(t testing.TB, addr string, change ...func(*overlay.Options)) *machine {
	t.Helper()
	m := &machine{Namespace: netnstest.New(t), t: t, opts: overlay.Options{NamespaceDir: netnstest.RunDir(t)}}
	for _, c := range change {
		c(&m.opts)
	}
	if addr != "" {
		m.Run("ip", "link", "add", "eth0", "type", "bridge")
		m.Run("ip", "address", "add", addr, "dev", "eth0", "nodad")
		m.Run("ip", "link", "set", "eth0", "up")
	}
	m.open()
	t.Cleanup(m.cleanUp)
	return m
}

func (m *machine) open() {
	m.t.Helper()
	var err error
	m.Do(func() { m.Host, err = overlay.Open(m.t.Context(), m.opts) })
	if err != nil {
		m.t.Fatal(err)
	}
}

// restart is what replacing the plugin does.
func (m *machine) restart() {
	m.t.Helper()
	if err := m.Close(); err != nil {
		m.t.Fatal(err)
	}
	m.open()
}

// cleanUp removes every network and fails the test if that leaves anything.
func (m *machine) cleanUp() {
	ctx := context.Background()
	ids, err := m.Networks(ctx)
	if err != nil {
		m.t.Error(err)
	}
	for _, id := range ids {
		if err := m.Remove(ctx, id); err != nil {
			m.t.Error(err)
		}
	}
	if err := m.Close(); err != nil {
		m.t.Error(err)
	}
	left, err := os.ReadDir(m.opts.NamespaceDir)
	if err != nil || len(left) > 0 {
		m.t.Errorf("left in the namespace directory: %v %v", left, err)
	}
	if mounts := m.mounts(); len(mounts) > 0 {
		m.t.Errorf("left mounted: %v", mounts)
	}
	if links := linksNamed(m.Namespace, "pu"); len(links) > 0 {
		m.t.Errorf("left in the host's namespace: %v", links)
	}
}

// mounts are the mounts in the namespace directory.
func (m *machine) mounts() []string {
	m.t.Helper()
	return mountsBelow(m.t, m.opts.NamespaceDir)
}

// mountsBelow are the id and mount point of each mount there.
func mountsBelow(t testing.TB, dir string) []string {
	t.Helper()
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for line := range strings.Lines(string(table)) {
		fields := strings.Fields(line)
		if strings.HasPrefix(fields[4], dir) {
			found = append(found, fields[0]+" "+fields[4])
		}
	}
	return found
}

// tenant is the network's namespace.
func (m *machine) tenant(id topology.NetworkID) *netnstest.Namespace {
	m.t.Helper()
	return netnstest.At(m.t, filepath.Join(m.opts.NamespaceDir, string(id)))
}

// gateway is the namespace of the network's way out.
func (m *machine) gateway(id topology.NetworkID) *netnstest.Namespace {
	m.t.Helper()
	return netnstest.At(m.t, filepath.Join(m.opts.NamespaceDir, string(id)+".gateway"))
}

// Apply remembers what it applies, as the fabric does.
func (m *machine) Apply(ctx context.Context, seg topology.Segment) (changed bool, err error) {
	m.applied.Store(seg.Network, seg)
	return m.Host.Apply(ctx, seg)
}

func (m *machine) changePeers(id topology.NetworkID, before, after []topology.Peer) error {
	seg := topology.Segment{Network: id}
	if applied, ok := m.applied.Load(id); ok {
		seg = applied.(topology.Segment)
	}
	return m.ChangePeers(m.t.Context(), seg, before, after)
}

// apply fails the test if Apply does, or if it says otherwise than expected
// whether it changed anything.
func (m *machine) apply(seg topology.Segment, wantChange bool) {
	m.t.Helper()
	changed, err := m.Apply(m.t.Context(), seg)
	if err != nil {
		m.t.Fatal(err)
	}
	if changed != wantChange {
		m.t.Fatalf("Apply(%+v) changed = %v, want %v", seg, changed, wantChange)
	}
}

// network is an id that is made of one digit pair.
func network(n int) topology.NetworkID {
	return topology.NetworkID(strings.Repeat(fmt.Sprintf("%02x", n), 32))
}

func prefixes(list ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

// segment is a network on a host whose tunnel address is vtep.
func segment(n int, vni topology.VNI, vtep string, pools ...string) topology.Segment {
	seg := topology.Segment{Network: network(n), VNI: vni, Port: 4789, MTU: 1450, Pools: prefixes(pools...)}
	if vtep != "" {
		seg.VTEP = netip.MustParseAddr(vtep)
	}
	return seg
}

// shared is a network that other hosts may have a part of.
func shared(seg topology.Segment) topology.Segment {
	seg.Subnets = prefixes("10.9.0.0/16")
	if slices.ContainsFunc(seg.Pools, func(p netip.Prefix) bool { return p.Addr().Is6() }) {
		seg.Subnets = append(seg.Subnets, netip.MustParsePrefix("fd00:9::/32"))
	}
	return seg
}

// dump is the state of a tenant namespace as ip and sysctl tell it: what the
// kernel puts into every namespace by itself is left out.
func dump(ns *netnstest.Namespace) string {
	var b strings.Builder
	dumpLinks(&b, ns)
	dumpRoutes(&b, ns)
	for _, name := range []string{"ip_unprivileged_port_start", "ping_group_range", "ip_nonlocal_bind"} {
		fmt.Fprintf(&b, "%s %s\n", name, sysctl(ns, "net/ipv4/"+name))
	}
	fmt.Fprintf(&b, "ip6_nonlocal_bind %s\n", sysctl(ns, "net/ipv6/ip_nonlocal_bind"))
	for _, of := range []string{"all", "default", "lo"} {
		fmt.Fprintf(&b, "disable_ipv6 %s %s\n", of, sysctl(ns, "net/ipv6/conf/"+of+"/disable_ipv6"))
	}
	return b.String()
}

func sysctl(ns *netnstest.Namespace, name string) string {
	return strings.Join(strings.Fields(ns.Run("cat", "/proc/sys/"+name)), " ")
}

func dumpLinks(b *strings.Builder, ns *netnstest.Namespace) {
	var links []struct {
		Ifname, Address string
		Flags           []string
		Mtu             int
		Addr_info       []struct {
			Local     string
			Prefixlen int
		}
		Linkinfo struct {
			Info_kind string
			Info_data struct {
				Id, Port int
				Local    string
				Local6   string
				Learning bool
			}
		}
	}
	decode(ns, &links, "-d", "address", "show")
	for _, l := range links {
		state := "down"
		if slices.Contains(l.Flags, "UP") {
			state = "up"
		}
		fmt.Fprintf(b, "link %s %s", l.Ifname, state)
		if info := l.Linkinfo; info.Info_kind == "vxlan" {
			fmt.Fprintf(b, " mtu %d %s vxlan %d %s%s port %d learning=%v", l.Mtu, l.Address,
				info.Info_data.Id, info.Info_data.Local, info.Info_data.Local6, info.Info_data.Port, info.Info_data.Learning)
		}
		for _, a := range l.Addr_info {
			fmt.Fprintf(b, " %s/%d", a.Local, a.Prefixlen)
		}
		b.WriteByte('\n')
	}
}

func dumpRoutes(b *strings.Builder, ns *netnstest.Namespace) {
	for _, family := range []string{"-4", "-6"} {
		var routes []struct {
			Type, Dst, Dev, Table, Protocol, Gateway string
		}
		decode(ns, &routes, family, "route", "show", "table", "all")
		for _, r := range routes {
			if r.Protocol == "kernel" || r.Dst == "ff00::/8" {
				continue
			}
			fmt.Fprintf(b, "route %s %s %s %s\n", r.Type, r.Dst, r.Dev, r.Table)
		}
	}
}

// decode runs ip with JSON output.
func decode(ns *netnstest.Namespace, into any, args ...string) {
	out := ns.Run("ip", append([]string{"-j"}, args...)...)
	if strings.TrimSpace(out) == "" {
		return
	}
	if err := json.Unmarshal([]byte(out), into); err != nil {
		panic(fmt.Sprintf("ip %v: %v in %q", args, err, out))
	}
}

// linksNamed are the names of links that start with prefix.
func linksNamed(ns *netnstest.Namespace, prefix string) []string {
	var links []struct{ Ifname string }
	decode(ns, &links, "link", "show")
	var found []string
	for _, l := range links {
		if strings.HasPrefix(l.Ifname, prefix) {
			found = append(found, l.Ifname)
		}
	}
	return found
}
