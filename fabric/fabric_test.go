package fabric_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/particle-net/particle/fabric"
	"github.com/particle-net/particle/ipam/pool"
	"github.com/particle-net/particle/topology"
)

var ctx = context.Background()

func TestOneContainersLife(t *testing.T) {
	w := newWorld(t)
	f := w.open()
	p := w.create(f, netID("a"), "jobs", "10.77.0.0/16")
	first := w.start(f, netID("a"), p, "1", 101)
	if first != netip.MustParseAddr("10.77.0.2") {
		t.Errorf("first container has %s, want the address after the gateway's", first)
	}
	if w.sandboxes["/var/run/docker/netns/1"] != fabric.SandboxTenant {
		t.Error("Docker up to 27 finds no namespace at the sandbox key after a restart")
	}
	view := f.View().Networks[0]
	if len(view.Endpoints) != 1 || view.Endpoints[0].State() != "running" || view.Endpoints[0].Name != "c1" {
		t.Errorf("status shows %+v", view.Endpoints)
	}
	w.stop(f, p, "1", 101, first)
	if len(w.sandboxes) != 0 {
		t.Errorf("left behind: %v", w.sandboxes)
	}
	if second := w.start(f, netID("a"), p, "2", 102); second == first {
		t.Error("a released address is given out again while never-used ones are left")
	}
}

func TestTenantsMayHoldTheSameSubnet(t *testing.T) {
	w := newWorld(t)
	f := w.open()
	pa := w.create(f, netID("a"), "a", "10.77.0.0/16")
	pb := w.create(f, netID("b"), "b", "10.77.0.0/16")
	a, b := w.start(f, netID("a"), pa, "1", 101), w.start(f, netID("b"), pb, "2", 102)
	if a != b {
		t.Errorf("tenants are not independent: %s and %s", a, b)
	}
	if va, vb := w.segments[netID("a")].VNI, w.segments[netID("b")].VNI; va == vb {
		t.Errorf("both have VNI %d", va)
	}
	w.stop(f, pa, "1", 101, a)
	if got := f.View().Networks[1].Endpoints; len(got) != 1 {
		t.Errorf("stopping in one tenant touched the other: %v", got)
	}
}

// Two networks with one subnet made at the same time cannot be told apart until
// their endpoints come; no address may be lost or doubled meanwhile.
func TestInterleavedCreationOfEqualSubnets(t *testing.T) {
	w := newWorld(t)
	f := w.open()
	subnet := netip.MustParsePrefix("10.77.0.0/16")
	var pools []fabric.Pool
	for range 2 {
		p, err := f.RequestPool(ctx, fabric.PoolSpec{Subnet: subnet})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.RequestAddress(ctx, fabric.AddressSpec{Pool: p.ID, Gateway: true}); err != nil {
			t.Fatal(err)
		}
		pools = append(pools, p)
	}
	for i, c := range []string{"b", "a"} { // created in the other order
		id := netID(c)
		spec := fabric.NetworkSpec{ID: id, Subnets: []fabric.Subnet{{Subnet: subnet, Managed: true, Gateway: netip.MustParseAddr("10.77.0.1")}}}
		if err := f.CreateNetwork(ctx, spec); err != nil {
			t.Fatal(i, err)
		}
		w.networks = append(w.networks, fabric.EngineNetwork{ID: id, Name: c, Ours: true})
	}
	a := w.start(f, netID("a"), pools[0], "1", 101)
	b := w.start(f, netID("b"), pools[1], "2", 102)
	f = w.reopen()
	if err := pass(ctx, f); err != nil {
		t.Fatal(err)
	}
	for i, held := range []netip.Addr{a, b} {
		if _, err := f.RequestAddress(ctx, fabric.AddressSpec{Pool: pools[i].ID, Addr: held}); !errors.Is(err, pool.ErrTaken) && err == nil {
			t.Errorf("%s of pool %d was given out twice", held, i)
		}
	}
}

func TestEveryCallMayComeTwice(t *testing.T) {
	w := newWorld(t)
	f := w.open()
	p := w.create(f, netID("a"), "jobs", "10.77.0.0/16")
	again := fabric.NetworkSpec{ID: netID("a"), Subnets: []fabric.Subnet{{Subnet: p.Subnet}}}
	if err := f.CreateNetwork(ctx, again); err != nil {
		t.Errorf("create again: %v", err)
	}
	a := w.start(f, netID("a"), p, "1", 101)
	if err := f.CreateEndpoint(ctx, fabric.EndpointSpec{ID: epID("1"), Network: netID("a"), IPv4: a}); err != nil {
		t.Errorf("create endpoint again: %v", err)
	}
	if err := f.Join(ctx, netID("a"), epID("1"), "/var/run/docker/netns/1"); err != nil {
		t.Errorf("join again: %v", err)
	}
	for range 2 {
		w.stop(f, p, "1", 101, a)
		if err := f.ReleasePool(ctx, p.ID); err != nil {
			t.Error(err)
		}
		if err := f.DeleteNetwork(ctx, netID("a")); err != nil {
			t.Error(err)
		}
	}
	if len(w.segments) != 0 || len(f.View().Networks) != 0 || len(w.published) != 0 {
		t.Errorf("left behind: %v, %v, %v", w.segments, f.View().Networks, w.published)
	}
}

func TestErrorsSayWhatToDo(t *testing.T) {
	w := newWorld(t)
	f := w.open()
	p := w.create(f, netID("a"), "jobs", "10.77.0.0/29")
	a := w.start(f, netID("a"), p, "1", 101)
	vni := f.View().Networks[0].VNI
	subnets := []fabric.Subnet{{Subnet: netip.MustParsePrefix("10.9.0.0/24")}}
	for name, c := range map[string]struct {
		do   func() error
		want []string
	}{
		"VNI taken": {func() error {
			return f.CreateNetwork(ctx, fabric.NetworkSpec{ID: netID("b"), VNI: vni, Subnets: subnets})
		}, []string{"taken by network jobs", "-o particle.vni=N"}},
		"MTU too large": {func() error {
			return f.CreateNetwork(ctx, fabric.NetworkSpec{ID: netID("b"), MTU: 1500, Subnets: subnets})
		}, []string{"1280 to 1450", "-o mtu=N"}},
		"no subnet": {func() error { return f.CreateNetwork(ctx, fabric.NetworkSpec{ID: netID("b")}) }, []string{"no address range"}},
		"uplink range": {func() error {
			return f.CreateNetwork(ctx, fabric.NetworkSpec{ID: netID("b"), Subnets: []fabric.Subnet{{Subnet: netip.MustParsePrefix("169.254.0.0/16")}}})
		}, []string{"overlaps 169.254.192.0/18", "another --subnet"}},
		"address held": {func() error {
			_, err := f.RequestAddress(ctx, fabric.AddressSpec{Pool: p.ID, Addr: a})
			return err
		}, []string{"container c1 holds it", "another --ip"}},
		"unknown pool": {func() error {
			_, err := f.RequestAddress(ctx, fabric.AddressSpec{Pool: "gone"})
			return err
		}, []string{"no such address pool", "create it anew"}},
		"unknown network": {func() error {
			return f.CreateEndpoint(ctx, fabric.EndpointSpec{ID: epID("9"), Network: netID("c"), IPv4: a})
		}, []string{"no such particle network"}},
		"address of another endpoint": {func() error {
			return f.CreateEndpoint(ctx, fabric.EndpointSpec{ID: epID("9"), Network: netID("a"), IPv4: a})
		}, []string{"held by endpoint", "container c1"}},
		"unknown endpoint": {func() error { return f.Join(ctx, netID("a"), epID("9"), "/var/run/docker/netns/9") },
			[]string{"no such endpoint", "start the container again"}},
	} {
		err := c.do()
		if err == nil {
			t.Errorf("%s: no error", name)
			continue
		}
		for _, want := range c.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %q lacks %q", name, err, want)
			}
		}
	}
	for range 4 { // .3 to .6; .7 is the broadcast address
		if _, err := f.RequestAddress(ctx, fabric.AddressSpec{Pool: p.ID}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := f.RequestAddress(ctx, fabric.AddressSpec{Pool: p.ID}); !errors.Is(err, pool.ErrExhausted) {
		t.Errorf("exhaustion: %v", err)
	}
}

func TestFailedCreationLeavesNothing(t *testing.T) {
	w := newWorld(t)
	f := w.open()
	w.applyErr = errKernel
	spec := fabric.NetworkSpec{ID: netID("a"), Subnets: []fabric.Subnet{{Subnet: netip.MustParsePrefix("10.9.0.0/24")}}}
	if err := f.CreateNetwork(ctx, spec); !errors.Is(err, errKernel) {
		t.Fatal(err)
	}
	w.applyErr = nil
	f = w.reopen()
	if n := f.View().Networks; len(n) != 0 {
		t.Errorf("a network that could not be made is on record: %v", n)
	}
	if err := f.CreateNetwork(ctx, spec); err != nil {
		t.Errorf("its creation cannot be repeated: %v", err)
	}
}

func TestPlacement(t *testing.T) {
	w := newWorld(t)
	f := w.open()
	p := w.create(f, netID("a"), "jobs", "10.77.0.0/16")
	w.networks = append(w.networks, fabric.EngineNetwork{ID: netID("f"), Name: "foreign"}, fabric.EngineNetwork{ID: netID("e"), Name: "aaaaaa"})
	for name, c := range map[string]struct {
		refs   []fabric.Ref
		member bool
	}{
		"by name":              {[]fabric.Ref{{Name: "jobs"}}, true},
		"by id":                {[]fabric.Ref{{Name: string(netID("a"))}}, true},
		"by start of id":       {[]fabric.Ref{{Name: "aaaaaaaa"}}, true},
		"stale name, known id": {[]fabric.Ref{{Name: "x", ID: string(netID("a"))}}, true},
		"foreign":              {[]fabric.Ref{{Name: "foreign"}}, false},
		// Docker prefers a name to the start of an id.
		"foreign name that starts our id": {[]fabric.Ref{{Name: "aaaaaa"}}, false},
		"none":                            {nil, false},
	} {
		got, member, err := f.Place(ctx, c.refs, false)
		if err != nil || member != c.member {
			t.Errorf("%s: member %v, err %v", name, member, err)
		}
		if member && got.Namespace != "/run/particle/netns/"+string(netID("a")) {
			t.Errorf("%s: namespace %s", name, got.Namespace)
		}
	}
	if len(w.uplinks) != 1 {
		t.Errorf("uplinks: %v", w.uplinks)
	}
	if _, _, err := f.Place(ctx, []fabric.Ref{{Name: "jobs"}, {Name: "foreign"}}, false); err == nil {
		t.Error("a second network was accepted")
	}
	w.create(f, netID("b"), "more", "10.78.0.0/16")
	if p, _, err := f.Place(ctx, []fabric.Ref{{Name: "jobs"}, {Name: "foreign"}}, true); err != nil || p.Network != netID("a") {
		t.Errorf("a namespace of its own, on two networks: %+v, %v", p, err)
	}
	if _, _, err := f.Place(ctx, []fabric.Ref{{Name: "jobs"}, {Name: "more"}}, true); err == nil || !strings.Contains(err.Error(), "is a particle network, too") {
		t.Errorf("two particle networks: %v", err)
	}
	_ = p
}

// A network's name comes after its creation; a container that is faster makes
// us ask Docker, and if Docker does not answer it must not start anywhere.
func TestPlacementBeforeTheNameIsKnown(t *testing.T) {
	w := newWorld(t)
	f := w.open()
	spec := fabric.NetworkSpec{ID: netID("a"), Internal: true, Subnets: []fabric.Subnet{{Subnet: netip.MustParsePrefix("10.9.0.0/24")}}}
	if err := f.CreateNetwork(ctx, spec); err != nil {
		t.Fatal(err)
	}
	w.engineErr = errors.New("daemon is booting")
	if _, _, err := f.Place(ctx, []fabric.Ref{{Name: "jobs"}}, false); err == nil {
		t.Error("placed without knowing where")
	}
	w.engineErr = nil
	w.networks = []fabric.EngineNetwork{{ID: netID("a"), Name: "jobs", Ours: true}}
	if _, member, err := f.Place(ctx, []fabric.Ref{{Name: "jobs"}}, false); !member || err != nil {
		t.Errorf("member %v, err %v", member, err)
	}
	w.lookups = 0
	f = w.reopen()
	if _, member, err := f.Place(ctx, []fabric.Ref{{Name: "jobs"}}, false); !member || err != nil || w.lookups != 0 {
		t.Errorf("after a restart: member %v, err %v, asked Docker %d times", member, err, w.lookups)
	}
	if len(w.uplinks) != 0 {
		t.Error("an internal network has a way out")
	}
}

// --add-host lines stand before the own line and may name addresses that wait
// for their own container.
func TestClaimFindsTheOwnLine(t *testing.T) {
	w := newWorld(t)
	f := w.open()
	p := w.create(f, netID("a"), "jobs", "10.77.0.0/16")
	addrs := map[string]netip.Addr{}
	for _, c := range []string{"1", "2"} {
		a, err := f.RequestAddress(ctx, fabric.AddressSpec{Pool: p.ID, Name: "c" + c})
		if err != nil {
			t.Fatal(err)
		}
		addrs[c] = a.Addr()
		if err := f.CreateEndpoint(ctx, fabric.EndpointSpec{ID: epID(c), Network: netID("a"), IPv4: a.Addr()}); err != nil {
			t.Fatal(err)
		}
		if err := f.Join(ctx, netID("a"), epID(c), "/var/run/docker/netns/"+c); err != nil {
			t.Fatal(err)
		}
	}
	w.processes[101] = 1
	claim := fabric.ClaimSpec{Container: containerID("2"), Name: "c2", Network: netID("a"), Pid: 101, Hostname: "same", Hosts: []fabric.HostLine{
		{Addr: netip.MustParseAddr("127.0.0.1"), Names: []string{"localhost"}},
		{Addr: addrs["1"], Names: []string{"same"}}, // --add-host
		{Addr: addrs["2"], Names: []string{"same"}},
	}}
	if err := f.Claim(ctx, claim); err != nil {
		t.Fatal(err)
	}
	for _, e := range f.View().Networks[0].Endpoints {
		if want := (e.ID == epID("2")); (e.Container != "") != want {
			t.Errorf("endpoint %s is claimed by %q", e.ID.Short(), e.Name)
		}
	}
	claim.Hosts = claim.Hosts[:2] // only another container's address
	if err := f.Claim(ctx, claim); err == nil {
		t.Error("claimed the address of another container")
	}
	claim.Pid = 999
	if err := f.Claim(ctx, claim); err == nil {
		t.Error("a process that does not exist claimed an address")
	}
}

// manyBlocks are more than a benchmark uses up.
func manyBlocks() []netip.Prefix {
	all := make([]netip.Prefix, 256)
	for i := range all {
		all[i] = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 1, byte(i), 0}), 24)
	}
	return all
}

// BenchmarkConnect times what the plugin itself does for one container's start,
// without sockets and mounts; see BenchmarkPluginCalls of package integration.
func BenchmarkConnect(b *testing.B) {
	for _, c := range []struct {
		held   int
		blocks []netip.Prefix
	}{{0, nil}, {10_000, nil}, {10_000, manyBlocks()}} {
		b.Run(fmt.Sprintf("held=%d/blocks=%d", c.held, len(c.blocks)), func(b *testing.B) {
			w, held := newWorld(b), c.held
			w.cluster = &cluster{away: c.blocks == nil, answer: fabric.Shared{VNI: 77, Claims: c.blocks}}
			f := w.open()
			p := w.create(f, netID("a"), "jobs", "10.0.0.0/8")
			connect := func(i int) {
				id := topology.EndpointID(fmt.Sprintf("%064x", i))
				a, err := f.RequestAddress(ctx, fabric.AddressSpec{Pool: p.ID})
				if err != nil {
					b.Fatal(err)
				}
				if err := f.CreateEndpoint(ctx, fabric.EndpointSpec{ID: id, Network: netID("a"), IPv4: a.Addr()}); err != nil {
					b.Fatal(err)
				}
				if err := f.Join(ctx, netID("a"), id, "/var/run/docker/netns/"+string(id[:12])); err != nil {
					b.Fatal(err)
				}
			}
			for i := range held {
				connect(i)
			}
			times := make([]time.Duration, b.N)
			b.ResetTimer()
			for i := range b.N {
				began := time.Now()
				connect(held + i)
				times[i] = time.Since(began)
			}
			slices.Sort(times)
			b.ReportMetric(float64(times[b.N/2].Microseconds()), "p50-us")
			b.ReportMetric(float64(times[b.N*99/100].Microseconds()), "p99-us")
		})
	}
}

// The removal of a network was lost, and Docker has made the next of its name.
func TestPlacementAsksDockerWhichOfTwo(t *testing.T) {
	w := newWorld(t)
	f := w.open()
	w.create(f, netID("a"), "jobs", "10.77.0.0/16")
	w.networks = nil
	w.create(f, netID("b"), "jobs", "10.77.0.0/16")
	for range 50 {
		if p, _, err := f.Place(ctx, []fabric.Ref{{Name: "jobs"}}, false); err != nil || p.Network != netID("b") {
			t.Fatalf("placed on %s, %v", p.Network.Short(), err)
		}
	}
}

// A host's address may come after the plugin's start, and change.
func TestUnderlayIsFollowed(t *testing.T) {
	w := newWorld(t)
	f := w.open()
	w.create(f, netID("a"), "jobs", "10.77.0.0/16")
	u := f.View().Underlay
	if f.SetUnderlay(u) {
		t.Error("the same underlay counts as a change")
	}
	u.VTEP = netip.MustParseAddr("192.0.2.77")
	if !f.SetUnderlay(u) {
		t.Error("the change was not seen")
	}
	if _, _, err := f.Place(ctx, []fabric.Ref{{Name: "jobs"}}, false); err != nil {
		t.Fatal(err)
	}
	if got := w.segments[netID("a")].VTEP; got != u.VTEP {
		t.Errorf("a container was placed while its network still uses %s", got)
	}
}
