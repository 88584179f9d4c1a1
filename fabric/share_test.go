package fabric_test

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/particle-net/particle/control"
	"github.com/particle-net/particle/fabric"
	"github.com/particle-net/particle/topology"
)

func TestBlockSizes(t *testing.T) {
	for _, c := range []struct {
		cut        string
		wish, want int
	}{
		{"10.0.0.0/8", 0, 24}, {"10.0.0.0/16", 0, 24}, {"10.0.0.0/18", 0, 24}, {"10.0.0.0/20", 0, 26}, {"10.0.0.0/22", 0, 28},
		{"10.0.0.0/24", 0, 28}, {"10.0.0.0/28", 0, 28}, {"10.0.0.0/29", 0, 29}, {"10.0.0.0/16", 20, 20}, {"10.0.0.0/26", 24, 26},
		{"fd00::/48", 0, 112}, {"fd00::/64", 0, 112}, {"fd00::/110", 0, 116}, {"fd00::/120", 0, 124}, {"fd00::/126", 0, 126},
		{"fd00::/64", 80, 80}, {"fd00::/120", 126, 126}, {"fd00::/120", 112, 120},
	} {
		cut := netip.MustParsePrefix(c.cut)
		asked := fabric.BlockSizes{IPv4: c.wish, IPv6: 125} // of the other family nothing is asked
		if cut.Addr().Is6() {
			asked = fabric.BlockSizes{IPv4: 25, IPv6: c.wish}
		}
		if got := asked.Of(cut); got != c.want {
			t.Errorf("%+v of %s is %d, want %d", asked, c.cut, got, c.want)
		}
	}
}

// request does what Docker does before it creates a network.
func (w *world) request(f *fabric.Fabric, spec fabric.PoolSpec) (fabric.Pool, fabric.Subnet) {
	w.t.Helper()
	p, err := f.RequestPool(ctx, spec)
	if err != nil {
		w.t.Fatal(err)
	}
	gateway, err := f.RequestAddress(ctx, fabric.AddressSpec{Pool: p.ID, Gateway: true})
	if err != nil {
		w.t.Fatal(err)
	}
	return p, fabric.Subnet{Subnet: p.Subnet, Managed: true, Gateway: gateway.Addr()}
}

// inCluster is a world of a host in a cluster.
func inCluster(t testing.TB) (*world, *cluster, *fabric.Fabric) {
	w := newWorld(t)
	c := &cluster{answer: fabric.Shared{VNI: 77, MTU: 1400, Claims: prefixes("10.77.0.16/28")}}
	w.cluster = c
	return w, c, w.open()
}

var jobs = fabric.PoolSpec{Subnet: netip.MustParsePrefix("10.77.0.0/24")}

// nothingLeft fails the test if a network that could not be made has left a trace.
func (w *world) nothingLeft(f *fabric.Fabric) {
	w.t.Helper()
	if v := f.View().Networks; len(v) != 0 || len(w.segments) != 0 || len(w.published) != 0 || len(f.Shared()) != 0 {
		w.t.Errorf("left behind: %+v, %v, %v", v, w.segments, w.published)
	}
	if v := w.reopen().View().Networks; len(v) != 0 {
		w.t.Errorf("on disk: %+v", v)
	}
}

func TestStoreRefusesTheNetwork(t *testing.T) {
	w, c, f := inCluster(t)
	_, subnet := w.request(f, jobs)
	c.err = control.ErrTaken
	err := f.CreateNetwork(ctx, fabric.NetworkSpec{ID: netID("a"), Subnets: []fabric.Subnet{subnet}})
	if !errors.Is(err, control.ErrTaken) || !strings.Contains(err.Error(), "particle.scope=local") || !slices.Equal(c.unshared, []topology.SharedID{sharedID}) {
		t.Errorf("got %v, unshared %v", err, c.unshared)
	}
	w.nothingLeft(f)
}

func TestStoreIsDeadWhenANetworkIsMade(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, c, f := inCluster(t)
		_, subnet := w.request(f, jobs)
		c.dead = true
		began := time.Now()
		err := f.CreateNetwork(ctx, fabric.NetworkSpec{ID: netID("a"), Subnets: []fabric.Subnet{subnet}})
		if err == nil || time.Since(began) != 3*time.Second || len(c.unshared) != 1 {
			t.Errorf("after %s: %v, unshared %v", time.Since(began), err, c.unshared)
		}
		w.nothingLeft(f)
	})
}

func TestKernelRefusesTheSharedNetwork(t *testing.T) {
	for name, joined := range map[string]topology.SharedID{"new": "", "another host's": "bbbbbbbbbbbbbbbb"} {
		w, c, f := inCluster(t)
		_, subnet := w.request(f, fabric.PoolSpec{Subnet: jobs.Subnet, Shared: joined})
		w.foreign = map[topology.VNI]bool{77: true}
		err := f.CreateNetwork(ctx, fabric.NetworkSpec{ID: netID("a"), Shared: joined, Subnets: []fabric.Subnet{subnet}})
		if !errors.Is(err, topology.ErrVNIInUse) || !strings.Contains(err.Error(), "VNI 77") {
			t.Errorf("%s: got %v", name, err)
		}
		if unshared := len(c.unshared) == 1; unshared != (joined == "") {
			t.Errorf("%s: unshared %v", name, c.unshared)
		}
		w.nothingLeft(f)
	}
}

func TestVNIOfALocalNetwork(t *testing.T) {
	w, c, f := inCluster(t)
	c.away = true
	w.create(f, netID("b"), "mine", "10.1.0.0/24")
	c.away = false
	c.answer.VNI = w.segments[netID("b")].VNI
	_, subnet := w.request(f, jobs)
	err := f.CreateNetwork(ctx, fabric.NetworkSpec{ID: netID("a"), Subnets: []fabric.Subnet{subnet}})
	if !errors.Is(err, fabric.ErrVNITaken) || !strings.Contains(err.Error(), "mine") || len(c.unshared) != 1 {
		t.Errorf("got %v, unshared %v", err, c.unshared)
	}
	if n := f.Shared(); len(n) != 0 || len(w.segments) != 1 {
		t.Errorf("left behind: %+v", n)
	}
}

// What cannot be shared is refused with the way out of it, before the store is
// asked.
func TestRangesThatCannotBeShared(t *testing.T) {
	for name, c := range map[string]struct {
		ranged string
		block  int
		want   string
	}{
		"blocks larger than the range": {"10.77.0.0/28", 24, "not from 28 to 30, as blocks of the range 10.77.0.0/28 are"},
		"a range of one address":       {"10.77.0.5/32", 0, "share range 10.77.0.5/32: it has too few addresses"},
		"a range of two":               {"10.77.0.4/31", 0, "choose a larger --ip-range"},
	} {
		w, cl, f := inCluster(t)
		_, subnet := w.request(f, fabric.PoolSpec{Subnet: jobs.Subnet, Range: netip.MustParsePrefix(c.ranged)})
		spec := fabric.NetworkSpec{ID: netID("a"), Blocks: fabric.BlockSizes{IPv4: c.block}, Subnets: []fabric.Subnet{subnet}}
		if err := f.CreateNetwork(ctx, spec); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", name, err, c.want)
		}
		if len(cl.asked) != 0 {
			t.Errorf("%s: the store was asked", name)
		}
	}
}

// What cannot be shared is refused with the way out of it, before the store is
// asked.
func TestWhatCannotBeShared(t *testing.T) {
	subnet := fabric.Subnet{Subnet: jobs.Subnet, Managed: true}
	six := fabric.Subnet{Subnet: netip.MustParsePrefix("fd77::/64"), Managed: true}
	for name, c := range map[string]struct {
		away bool
		spec fabric.NetworkSpec
		want string
	}{
		"Docker's IPAM":      {false, fabric.NetworkSpec{Subnets: []fabric.Subnet{{Subnet: jobs.Subnet}}}, "pass --ipam-driver particle, or -o particle.scope=local"},
		"alone":              {true, fabric.NetworkSpec{Scope: fabric.ScopeCluster, Subnets: []fabric.Subnet{subnet}}, "in no cluster; run `particle cluster init`"},
		"another's, alone":   {true, fabric.NetworkSpec{Shared: sharedID, Subnets: []fabric.Subnet{subnet}}, "in no cluster"},
		"block, alone":       {true, fabric.NetworkSpec{Blocks: fabric.BlockSizes{IPv4: 26}, Subnets: []fabric.Subnet{subnet}}, "omit -o particle.block"},
		"local and shared":   {false, fabric.NetworkSpec{Scope: fabric.ScopeLocal, Shared: sharedID, Subnets: []fabric.Subnet{subnet}}, "omit one"},
		"block too large":    {false, fabric.NetworkSpec{Blocks: fabric.BlockSizes{IPv4: 23}, Subnets: []fabric.Subnet{subnet}}, "not from 24 to 30"},
		"block too small":    {false, fabric.NetworkSpec{Blocks: fabric.BlockSizes{IPv4: 31}, Subnets: []fabric.Subnet{subnet}}, "not from 24 to 30"},
		"IPv6 too large":     {false, fabric.NetworkSpec{Blocks: fabric.BlockSizes{IPv6: 47}, Subnets: []fabric.Subnet{subnet, six}}, "not from 64 to 126, as blocks of fd77::/64 are; pass -o particle.block6=N"},
		"no IPv6":            {false, fabric.NetworkSpec{Blocks: fabric.BlockSizes{IPv6: 80}, Subnets: []fabric.Subnet{subnet}}, "-o particle.block6=80: the network has no IPv6 subnet"},
		"no IPv4":            {false, fabric.NetworkSpec{Blocks: fabric.BlockSizes{IPv4: 26}, Subnets: []fabric.Subnet{six}}, "-o particle.block=26: the network has no IPv4 subnet"},
		"subnet too small":   {false, fabric.NetworkSpec{Subnets: []fabric.Subnet{{Subnet: netip.MustParsePrefix("10.0.0.0/31"), Managed: true}}}, "too few addresses"},
		"pool not on record": {false, fabric.NetworkSpec{Subnets: []fabric.Subnet{subnet}}, "0 address pools"},
	} {
		w, cl, f := inCluster(t)
		cl.away = c.away
		c.spec.ID = netID("a")
		if err := f.CreateNetwork(ctx, c.spec); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", name, err, c.want)
		}
		if len(cl.asked) != 0 {
			t.Errorf("%s: the store was asked", name)
		}
		w.nothingLeft(f)
	}
}

func TestNetworksOfThisHostAlone(t *testing.T) {
	w, c, f := inCluster(t)
	c.away = true
	p := w.create(f, netID("b"), "before", "10.1.0.0/24")
	c.away = false
	local := fabric.NetworkSpec{ID: netID("c"), Scope: fabric.ScopeLocal, Subnets: []fabric.Subnet{{Subnet: netip.MustParsePrefix("10.2.0.0/24")}}}
	if err := f.CreateNetwork(ctx, local); err != nil {
		t.Fatal(err)
	}
	f = w.reopen()
	if w.pools(netID("b")) != "10.1.0.0/24" || w.pools(netID("c")) != "10.2.0.0/24" || len(f.Shared()) != 0 || len(c.asked) != 0 {
		t.Errorf("local %s, %s; shared %v", w.pools(netID("b")), w.pools(netID("c")), f.Shared())
	}
	w.startAs(f, netID("b"), fabric.AddressSpec{Pool: p.ID, Addr: netip.MustParseAddr("10.1.0.200")}, "1", "1", 101)
	if err := f.DeleteNetwork(ctx, netID("c")); err != nil || len(c.claimed)+len(c.unshared) != 0 {
		t.Errorf("%v; claimed %v, unshared %v", err, c.claimed, c.unshared)
	}
}

// Another host's network of the same subnet must not get the pool of a user's, and
// the other way round.
func TestPoolThatIsNamedForItsNetwork(t *testing.T) {
	synctest.Test(t, namedPool)
}

func namedPool(t *testing.T) {
	w, c, f := inCluster(t)
	began := time.Now()
	theirs, subnet := w.request(f, fabric.PoolSpec{Subnet: jobs.Subnet, Shared: "bbbbbbbbbbbbbbbb"})
	mine, _ := w.request(f, fabric.PoolSpec{Subnet: jobs.Subnet, Range: netip.MustParsePrefix("10.77.0.0/25")})
	if time.Since(began) != 0 {
		t.Errorf("the one held up the other for %s", time.Since(began))
	}
	for _, id := range []string{"b", "a"} { // b's might be both pools, but for the name
		c.answer.VNI++
		spec := fabric.NetworkSpec{ID: netID(id), Subnets: []fabric.Subnet{subnet}}
		if id == "b" {
			spec.Shared = "bbbbbbbbbbbbbbbb"
		}
		if err := f.CreateNetwork(ctx, spec); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range []*fabric.Fabric{f, w.reopen()} {
		for _, n := range f.View().Networks {
			if want := map[topology.NetworkID]topology.PoolID{netID("a"): mine.ID, netID("b"): theirs.ID}[n.ID]; n.Pools[0].ID != want {
				t.Errorf("network %s has pool %s, want %s", n.ID.Short(), n.Pools[0].ID, want)
			}
		}
	}
	for _, s := range c.asked {
		if want := s.Network == netID("a"); (s.Ranges[0] == netip.MustParsePrefix("10.77.0.0/25")) != want {
			t.Errorf("network %s was asked with range %s", s.Network.Short(), s.Ranges[0])
		}
	}
}

func TestRemovedByAUser(t *testing.T) {
	for name, c := range map[string]struct {
		joined topology.SharedID
		name   string
		live   bool
		want   []topology.SharedID
	}{
		"made here":            {"", "jobs", false, []topology.SharedID{sharedID}},
		"made here, unnamed":   {"", "", false, []topology.SharedID{sharedID}},
		"containers live":      {"", "jobs", true, []topology.SharedID{sharedID}},
		"another host's":       {"bbbbbbbbbbbbbbbb", "jobs", false, []topology.SharedID{"bbbbbbbbbbbbbbbb"}},
		"Docker takes it back": {"bbbbbbbbbbbbbbbb", "", false, nil},
	} {
		w, cl, f := inCluster(t)
		p, subnet := w.request(f, fabric.PoolSpec{Subnet: jobs.Subnet, Shared: c.joined})
		if err := f.CreateNetwork(ctx, fabric.NetworkSpec{ID: netID("a"), Shared: c.joined, Subnets: []fabric.Subnet{subnet}}); err != nil {
			t.Fatal(err)
		}
		f.NetworkSeen(netID("a"), c.name)
		if c.live {
			w.start(f, netID("a"), p, "1", 101)
		}
		if err := f.DeleteNetwork(ctx, netID("a")); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(cl.unshared, c.want) {
			t.Errorf("%s: unshared %v, want %v", name, cl.unshared, c.want)
		}
		if list := f.Shared(); (len(list) == 1 && list[0].Doomed && list[0].Live) != c.live {
			t.Errorf("%s: still there: %+v", name, list)
		}
	}
}

// Docker has lost a network: the other hosts keep it.
func TestVanishedNetworkStaysTheClusters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, c, f, _ := shared(t, "10.77.0.16/28")
		w.networks = nil
		past(t, f)
		if len(w.segments) != 0 || len(c.unshared) != 0 {
			t.Errorf("kernel has %v, unshared %v", w.segments, c.unshared)
		}
	})
}

// A second pool of the same subnet waits until the first has found its network.
func TestPoolsOfOneSubnetComeInTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, _, f := inCluster(t)
		_, subnet := w.request(f, jobs)
		second := make(chan fabric.Pool)
		go func() {
			p, err := f.RequestPool(ctx, jobs)
			if err != nil {
				t.Error(err)
			}
			second <- p
		}()
		synctest.Wait()
		select {
		case <-second:
			t.Fatal("it did not wait")
		default:
		}
		began := time.Now()
		if err := f.CreateNetwork(ctx, fabric.NetworkSpec{ID: netID("a"), Subnets: []fabric.Subnet{subnet}}); err != nil {
			t.Fatal(err)
		}
		p := <-second
		if time.Since(began) != 0 {
			t.Errorf("it waited for %s longer", time.Since(began))
		}
		// Nobody comes for the second; the third waits no longer than that may take.
		if _, err := f.RequestPool(ctx, jobs); err != nil || time.Since(began) != 2*time.Second {
			t.Errorf("after %s: %v", time.Since(began), err)
		}
		if err := f.ReleasePool(ctx, p.ID); err != nil {
			t.Fatal(err)
		}
		began = time.Now()
		time.Sleep(2 * time.Second)
		if _, err := f.RequestPool(ctx, jobs); err != nil || time.Since(began) != 2*time.Second {
			t.Errorf("one of long ago held it up until %s: %v", time.Since(began), err)
		}
	})
}

// What Docker began and broke off a while ago is nobody's pool; what it began just
// now might be.
func TestPoolThatDockerHasGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, _, f := inCluster(t)
		w.request(f, jobs)
		time.Sleep(3 * time.Second)
		own, subnet := w.request(f, jobs)
		spec := fabric.NetworkSpec{ID: netID("a"), Subnets: []fabric.Subnet{subnet}}
		if err := f.CreateNetwork(ctx, spec); err == nil || !strings.Contains(err.Error(), "again in a minute") {
			t.Fatalf("got %v", err)
		}
		if err := f.ReleasePool(ctx, own.ID); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		own, _ = w.request(f, jobs)
		if err := f.CreateNetwork(ctx, spec); err != nil {
			t.Fatal(err)
		}
		if got := f.View().Networks[0].Pools[0].ID; got != own.ID {
			t.Errorf("it has pool %s, want %s", got, own.ID)
		}
	})
}

// Docker repeats a call whose answer it did not get.
func TestSharedNetworkIsMadeTwice(t *testing.T) {
	w, c, f := inCluster(t)
	p, subnet := w.request(f, jobs)
	for range 2 {
		if err := f.CreateNetwork(ctx, fabric.NetworkSpec{ID: netID("a"), Subnets: []fabric.Subnet{subnet}}); err != nil {
			t.Fatal(err)
		}
	}
	if len(c.asked) != 1 || f.View().Networks[0].Pools[0].ID != p.ID {
		t.Errorf("asked %d times; %+v", len(c.asked), f.View().Networks[0].Pools)
	}
}

// A kill in the middle of a creation, and Docker's call again.
func TestSharedNetworkIsCompleted(t *testing.T) {
	w, c, f := inCluster(t)
	p, subnet := w.request(f, jobs)
	w.applied = func(int) { w.crash() }
	spec := fabric.NetworkSpec{ID: netID("a"), Subnets: []fabric.Subnet{subnet}}
	if err := f.CreateNetwork(ctx, spec); err == nil {
		t.Fatal("created without a store")
	}
	w.applied = nil
	f = w.open()
	if _, err := f.RequestAddress(ctx, fabric.AddressSpec{Pool: p.ID}); err == nil || !strings.Contains(err.Error(), "create it anew") {
		t.Errorf("an address of a pool whose blocks are not known: %v", err)
	}
	if err := f.CreateNetwork(ctx, spec); err != nil {
		t.Fatal(err)
	}
	if a, err := f.RequestAddress(ctx, fabric.AddressSpec{Pool: p.ID}); err != nil || a.Addr() != netip.MustParseAddr("10.77.0.17") || len(c.asked) != 1 {
		t.Errorf("got %s, %v", a, err)
	}
}

// Docker releases a pool after its network is gone; meanwhile the next of its
// subnet may come.
func TestPoolOfARemovedNetwork(t *testing.T) {
	w, c, f, _ := shared(t, "10.77.0.16/28")
	if err := f.DeleteNetwork(ctx, netID("a")); err != nil {
		t.Fatal(err)
	}
	c.answer.VNI++
	p := w.create(f, netID("b"), "next", "10.77.0.0/24")
	if got := f.View().Networks[0].Pools[0].ID; got != p.ID {
		t.Errorf("it has pool %s, want %s", got, p.ID)
	}
}

func TestOrderOfReleaseInABlockOutlivesARestart(t *testing.T) {
	w, _, f, p := shared(t, "10.77.0.16/30")
	for i, c := range []string{"1", "2", "3"} {
		w.start(f, netID("a"), p, c, 101+i)
	}
	for _, c := range []string{"3", "1"} {
		w.stop(f, p, c, map[string]int{"3": 103, "1": 101}[c], netip.AddrFrom4([4]byte{10, 77, 0, 16 + c[0] - '0'}))
	}
	f = w.reopen()
	if a, err := f.RequestAddress(ctx, fabric.AddressSpec{Pool: p.ID}); err != nil || a.Addr() != netip.MustParseAddr("10.77.0.19") {
		t.Errorf("got %s, %v, want 10.77.0.19, the one released longest ago", a, err)
	}
}
