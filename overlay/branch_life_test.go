package overlay_test

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/particle-net/particle/internal/netnstest"
	"github.com/particle-net/particle/overlay"
	"github.com/particle-net/particle/topology"
)

// A container that is started again may have its old endpoint, and another one
// may have its address.
func TestBranchFollowsItsContainer(t *testing.T) {
	t.Parallel()
	m := newMachine(t, "")
	m.apply(segment(1, 0, "", "10.9.0.0/24", "fd00:9::/64"), true)
	old := m.branch(1, 2)
	shared := place{"shared", m.tenant(network(1)), netip.MustParseAddr("10.9.0.9")}
	again := branched{netnstest.New(t), old.Branch}
	// A pair of another network, whose ends have the same numbers as the old one's.
	netnstest.Connect(again.Namespace, "eth0", "", netnstest.New(t), "br0", "")
	again.Branch.Namespace = again.Path()
	m.attach(again.Branch)
	converse(t, shared, place{"again", again.Namespace, again.IPv4})
	if links := linksNamed(old.Namespace, "eth"); len(links) > 0 {
		t.Errorf("left in the old namespace: %v", links)
	}
	another := branched{netnstest.New(t), old.Branch}
	another.Endpoint, another.Branch.Namespace = endpoint(7), another.Path()
	m.attach(another.Branch)
	converse(t, shared, place{"another", another.Namespace, another.IPv4})
	shared.addr = netip.MustParseAddr("fd00:9::9")
	converse(t, shared, place{"another", another.Namespace, another.IPv6})
}

func TestBranchBesideAnotherNetwork(t *testing.T) {
	t.Parallel()
	m := newMachine(t, "")
	m.apply(segment(1, 0, "", "10.9.0.0/24"), true)
	bridge, container := netnstest.New(t), netnstest.New(t)
	netnstest.Connect(container, "eth0", "172.18.0.2/16", bridge, "br0", "172.18.0.1/16")
	bridge.Run("ip", "address", "add", outside+"/32", "dev", "lo")
	serve(t, listenTCP(t, bridge, outside+":80"), "bridge")
	b := topology.Branch{Network: network(1), Endpoint: endpoint(2), Namespace: container.Path(), Link: "eth%d", MTU: 1450,
		IPv4: netip.MustParseAddr("10.9.0.2"), Subnets: prefixes("10.9.0.0/16")}
	m.attach(b)
	container.Run("ip", "route", "add", "default", "via", "172.18.0.1") // after ours, and before it is
	m.attach(b)
	converse(t, place{"container", container, b.IPv4}, place{"shared", m.tenant(network(1)), netip.MustParseAddr("10.9.0.9")})
	if got, err := ask(container, "", outside+":80"); err != nil || got != "bridge sees 172.18.0.2" {
		t.Errorf("got %q, %v", got, err)
	}
	if links := linksNamed(container, "eth"); !slices.Equal(links, []string{"eth0", "eth1"}) {
		t.Errorf("links %v", links)
	}
}

// Of two networks the one that was connected first is the way out, and the other when it
// has gone, whichever goes.
func TestBranchesOfTwoNetworks(t *testing.T) {
	t.Parallel()
	m := newMachine(t, "")
	resolver := prefixes("169.254.0.53/32", "fd00:53::/64")
	var both [2]topology.Branch
	container := netnstest.New(t)
	for i := range both {
		m.apply(segment(i+1, 0, "", fmt.Sprintf("10.%d.0.0/24", i+8), fmt.Sprintf("fd00:%d::/64", i+8)), true)
		both[i] = topology.Branch{Network: network(i + 1), Endpoint: endpoint(i + 1), Namespace: container.Path(), Link: "eth%d", MTU: 1450,
			IPv4: netip.MustParseAddr(fmt.Sprintf("10.%d.0.2", i+8)), IPv6: netip.MustParseAddr(fmt.Sprintf("fd00:%d::2", i+8)), Subnets: resolver}
	}
	leads := func(link string) {
		t.Helper()
		for _, to := range []string{outside, "169.254.0.53", "2001:db8::1", "fd00:53::1"} {
			if route := container.Run("ip", "route", "get", to); !strings.Contains(route, "dev "+link+" ") {
				t.Errorf("to %s: %s, want by %s", to, strings.TrimSpace(route), link)
			}
		}
	}
	for _, gone := range []int{1, 0} {
		m.attach(both[0])
		m.attach(both[1])
		m.attach(both[0])
		m.attach(both[1])
		leads("eth0")
		m.detach(gone+1, both[gone].Endpoint)
		leads(fmt.Sprintf("eth%d", 1-gone))
	}
	if routes := container.Run("sh", "-c", "ip route; ip -6 route"); !strings.Contains(routes, "default") {
		t.Errorf("no way out: %s", routes)
	}
	m.detach(2, both[1].Endpoint)
	both[0].Internal = true
	m.attach(both[0])
	if routes := container.Run("sh", "-c", "ip route; ip -6 route"); strings.Contains(routes, "default") {
		t.Errorf("an internal network is a way out: %s", routes)
	}
}

// Docker gives names to the links of other networks without looking, so until it
// has done that ours must not be in the way.
func TestBranchIsRenamed(t *testing.T) {
	t.Parallel()
	m := newMachine(t, "")
	m.apply(segment(1, 0, "", "10.9.0.0/24", "fd00:9::/64"), true)
	own := branched{netnstest.New(t), topology.Branch{Network: network(1), Endpoint: endpoint(2), Link: "particle%d", MTU: 1450,
		IPv4: netip.MustParseAddr("10.9.0.2"), IPv6: netip.MustParseAddr("fd00:9::2")}}
	own.Branch.Namespace = own.Path()
	want := func(names ...string) {
		t.Helper()
		for range 2 {
			m.attach(own.Branch)
		}
		links := append(linksNamed(own.Namespace, "eth"), linksNamed(own.Namespace, "particle")...)
		if slices.Sort(links); !slices.Equal(links, names) {
			t.Errorf("links %v, want %v", links, names)
		}
		for shared, a := range map[string]netip.Addr{"10.9.0.9": own.IPv4, "fd00:9::9": own.IPv6} {
			converse(t, place{"own", own.Namespace, a}, place{"shared", m.tenant(network(1)), netip.MustParseAddr(shared)})
		}
	}
	want("particle0")
	netnstest.Connect(own.Namespace, "eth0", "", netnstest.New(t), "br0", "")
	own.Link = "eth%d"
	want("eth0", "eth1")
	own.Link = "lan"
	want("eth0")
	if links := linksNamed(own.Namespace, "lan"); !slices.Equal(links, []string{"lan"}) {
		t.Errorf("links %v", links)
	}
}

func TestSandboxKeyIsRebound(t *testing.T) {
	t.Parallel()
	m := newMachine(t, "")
	m.apply(segment(1, 0, "", "10.9.0.0/24"), true)
	container, key := netnstest.New(t), filepath.Join(netnstest.RunDir(t), "0123456789ab")
	if err := m.Expose(network(1), key); err != nil { // by us, at Join
		t.Fatal(err)
	}
	m.Run("mount", "--bind", container.Path(), key) // by Docker's hook, later
	for _, source := range []string{container.Path(), container.Path(), key} {
		if err := m.Rebind(source, key); err != nil {
			t.Fatal(err)
		}
		if mounts := mountsBelow(t, key); len(mounts) != 1 {
			t.Errorf("mounts on the key: %v", mounts)
		}
		if inside, outside := netnstest.At(t, key).Run("readlink", "/proc/self/ns/net"), container.Run("readlink", "/proc/self/ns/net"); inside != outside {
			t.Errorf("the key holds %s, want %s", inside, outside)
		}
	}
	if err := m.Conceal(key); err != nil {
		t.Fatal(err)
	}
}

func TestBranchesAreRemovedTogether(t *testing.T) {
	t.Parallel()
	m := newMachine(t, "")
	m.apply(segment(1, 0, "", "10.9.0.0/24", "fd00:9::/64"), true)
	ns := m.tenant(network(1))
	clean := dump(ns)
	const all = 12
	var made []branched
	for i := range all {
		made = append(made, m.branch(1, i+2))
	}
	m.lists(made)
	gone, stay := made[:all/2], made[all/2:]
	var ids []topology.EndpointID
	for _, b := range gone {
		ids = append(ids, b.Endpoint)
	}
	for range 2 { // already gone is success
		m.detach(1, ids...)
	}
	m.lists(stay)
	for _, b := range gone {
		if links := linksNamed(b.Namespace, "eth"); len(links) > 0 {
			t.Errorf("left in a container: %v", links)
		}
	}
	converse(t, place{"shared", ns, netip.MustParseAddr("10.9.0.2")}, place{"own", stay[0].Namespace, stay[0].IPv4})
	for _, b := range stay {
		m.detach(1, b.Endpoint)
	}
	m.lists(nil)
	if diff := cmp.Diff(clean, dump(ns)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// lists fails the test unless the branches of network 1, read back, are these.
func (m *machine) lists(want []branched) {
	m.t.Helper()
	found, err := m.Branches(m.t.Context(), network(1))
	if err != nil {
		m.t.Fatal(err)
	}
	describe := func(b topology.Branch) string {
		return fmt.Sprint(b.Network.Short(), " ", b.Endpoint.Short(), " ", b.Addresses(), " ", b.MTU)
	}
	var have, expected []string
	for _, b := range found {
		have = append(have, describe(b))
	}
	for _, b := range want {
		expected = append(expected, describe(b.Branch))
	}
	slices.Sort(have)
	slices.Sort(expected)
	if diff := cmp.Diff(expected, have); diff != "" {
		m.t.Errorf("Branches (-want +got):\n%s", diff)
	}
}

// As all else of a network is, without a container that comes.
func TestBranchRulesAreRepaired(t *testing.T) {
	t.Parallel()
	m := newMachine(t, "")
	seg := segment(1, 0, "", "10.9.0.0/24")
	m.apply(seg, true)
	m.branch4(1, 2)
	rules := func() string {
		return m.tenant(network(1)).Run("nft", "-s", "list", "table", "inet", "particle-branches")
	}
	sound := rules()
	m.apply(seg, false)
	m.tenant(network(1)).Run("nft", "delete", "table", "inet", "particle-branches")
	m.apply(seg, true)
	if diff := cmp.Diff(sound, rules()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestNetworkGoesWithItsBranches(t *testing.T) {
	t.Parallel()
	m, _ := routed(t)
	m.opts.AcceptEvery = time.Hour
	m.restart()
	m.tenantWithUplink(1)
	own := m.branch4(1, 2)
	if err := m.Remove(t.Context(), network(1)); err != nil {
		t.Fatal(err)
	}
	if links := linksNamed(own.Namespace, "eth"); len(links) > 0 {
		t.Errorf("left in the container: %v", links)
	}
	m.detach(1, own.Endpoint)
	m.apply(segment(1, 0, "", "10.9.0.0/24"), true)
	m.attach(own.Branch)
	if tables := m.tenant(network(1)).Run("nft", "list", "tables"); tables == "" {
		t.Error("the network made anew is without rules")
	}
	converse(t, place{"own", own.Namespace, own.IPv4}, place{"shared", m.tenant(network(1)), netip.MustParseAddr("10.9.0.9")})
}

func TestBranchRefusals(t *testing.T) {
	t.Parallel()
	m := newMachine(t, "")
	m.apply(segment(1, 0, "", "10.9.0.0/24"), true)
	m.apply(segment(3, 0, "", "10.9.0.0/24"), true)
	good := topology.Branch{Network: network(1), Endpoint: endpoint(2), Namespace: netnstest.New(t).Path(), Link: "eth%d", MTU: 1450,
		IPv4: netip.MustParseAddr("10.9.0.2")}
	for name, c := range map[string]struct {
		change func(*topology.Branch)
		cause  error
		text   string
	}{
		"no network":         {func(b *topology.Branch) { b.Network = network(2) }, overlay.ErrNoNetwork, ""},
		"no container":       {func(b *topology.Branch) { b.Namespace = "/proc/0/ns/net" }, overlay.ErrNoContainer, ""},
		"no address":         {func(b *topology.Branch) { b.IPv4 = netip.Addr{} }, nil, "no address"},
		"address of no pool": {func(b *topology.Branch) { b.IPv4 = netip.MustParseAddr("10.8.0.2") }, nil, "in no pool"},
		"no MTU":             {func(b *topology.Branch) { b.MTU = 0 }, nil, "MTU"},
		"no name":            {func(b *topology.Branch) { b.Link = "" }, nil, "no name"},
		"a format":           {func(b *topology.Branch) { b.Link = "eth%s" }, nil, "no name"},
		"the host":           {func(b *topology.Branch) { b.Namespace = m.Path() }, nil, "the host's network namespace"},
		"the tenant":         {func(b *topology.Branch) { b.Namespace = m.opts.NamespaceDir + "/" + string(network(1)) }, nil, "shares the namespace"},
		"another tenant":     {func(b *topology.Branch) { b.Namespace = m.opts.NamespaceDir + "/" + string(network(3)) }, nil, "shares the namespace"},
	} {
		b := good
		c.change(&b)
		err := m.ApplyBranch(t.Context(), b)
		if err == nil || c.cause != nil && !errors.Is(err, c.cause) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, ns := range []*netnstest.Namespace{m.Namespace, m.tenant(network(1)), m.tenant(network(3))} {
		if links := append(linksNamed(ns, "pb"), linksNamed(ns, "eth")...); len(links) > 0 {
			t.Errorf("left: %v", links)
		}
	}
	if _, err := m.Branches(t.Context(), network(2)); !errors.Is(err, overlay.ErrNoNetwork) {
		t.Errorf("Branches of no network: %v", err)
	}
	m.detach(2, endpoint(2))
}

// What is taken for granted of a network ends when the network changes.
func TestBranchOfAnotherPool(t *testing.T) {
	t.Parallel()
	m := newMachine(t, "", func(o *overlay.Options) { o.AcceptEvery = time.Hour })
	m.apply(segment(1, 0, "", "10.9.0.0/24", "fd00:9::/64"), true)
	m.branch(1, 2)
	late := m.branch(1, 3).Branch
	late.IPv4 = netip.MustParseAddr("10.10.0.3")
	if err := m.ApplyBranch(t.Context(), late); err == nil {
		t.Error("an address of no pool was connected")
	}
	m.apply(segment(1, 0, "", "10.9.0.0/24", "10.10.0.0/24", "fd00:9::/64"), true)
	m.attach(late)
}

// What a branch needs of the tenant namespace beside its route is missed, too.
func TestBranchDriftIsSeen(t *testing.T) {
	t.Parallel()
	m := newMachine(t, "", func(o *overlay.Options) { o.AcceptEvery = time.Hour })
	seg := segment(1, 0, "", "10.9.0.0/24", "fd00:9::/64")
	m.apply(seg, true)
	own := m.branch(1, 2)
	for range 2 {
		m.apply(seg, false)
	}
	ns := m.tenant(network(1))
	for _, setting := range []string{"/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv6/conf/all/forwarding"} {
		ns.Run("sh", "-c", "echo 0 > "+setting)
		m.apply(seg, true)
		if got := strings.TrimSpace(ns.Run("cat", setting)); got != "1" {
			t.Errorf("%s is %s", setting, got)
		}
		m.apply(seg, false)
	}
	pb := "pb" + endpoint(2).Short()
	for _, drift := range []string{"neighbour del 10.9.0.2", "neighbour del fd00:9::2", "link set mtu 1300"} {
		ns.Run("sh", "-c", "ip "+drift+" dev "+pb)
		found, err := m.Branches(t.Context(), network(1))
		if err != nil || len(found) != 1 {
			t.Fatalf("%v, %v", found, err)
		}
		if b := found[0]; b.IPv4 == own.IPv4 && b.IPv6 == own.IPv6 && b.MTU == own.MTU {
			t.Errorf("after %q it is as it should be: %+v", drift, b)
		}
		m.attach(own.Branch)
		if found, err = m.Branches(t.Context(), network(1)); err != nil || found[0].IPv4 != own.IPv4 || found[0].IPv6 != own.IPv6 || found[0].MTU != own.MTU {
			t.Errorf("connected again: %+v, %v", found, err)
		}
	}
}
