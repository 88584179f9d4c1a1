package fabric_test

import (
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"

	"github.com/particle-net/particle/fabric"
)

// twins makes two networks of one subnet, a and b, at the same moment: nothing
// tells yet which of the two pools is whose.
func (w *world) twins(f *fabric.Fabric, subnet netip.Prefix, aux ...netip.Addr) []fabric.Pool {
	w.t.Helper()
	var pools []fabric.Pool
	for range 2 {
		p, err := f.RequestPool(ctx, fabric.PoolSpec{Subnet: subnet})
		if err != nil {
			w.t.Fatal(err)
		}
		if _, err := f.RequestAddress(ctx, fabric.AddressSpec{Pool: p.ID, Gateway: true}); err != nil {
			w.t.Fatal(err)
		}
		pools = append(pools, p)
	}
	for i, c := range []string{"a", "b"} {
		if i == 1 { // Docker reserves them just before it creates the network
			for _, a := range aux {
				for _, p := range pools {
					if _, err := f.RequestAddress(ctx, fabric.AddressSpec{Pool: p.ID, Addr: a}); err != nil {
						w.t.Fatal(err)
					}
				}
			}
		}
		spec := fabric.NetworkSpec{ID: netID(c), Subnets: []fabric.Subnet{{Subnet: subnet, Managed: true, Gateway: subnet.Addr().Next(), Aux: aux}}}
		if err := f.CreateNetwork(ctx, spec); err != nil {
			w.t.Fatal(err)
		}
		w.networks = append(w.networks, fabric.EngineNetwork{ID: netID(c), Name: c, Ours: true})
	}
	return pools
}

var twinSubnet = netip.MustParsePrefix("10.77.0.0/24")

// Docker says that it has deleted a container whose process lives.
func (w *world) forget(f *fabric.Fabric, p fabric.Pool, ep string, a netip.Addr) {
	w.t.Helper()
	for _, err := range []error{f.DeleteEndpoint(ctx, epID(ep)), f.ReleaseAddress(ctx, p.ID, a)} {
		if err != nil {
			w.t.Fatal(err)
		}
	}
}

// An address by wish is a container's, although it comes before anything has
// told whose the pool is.
func TestWishBeforeThePoolIsKnown(t *testing.T) {
	w := newWorld(t)
	f := w.open()
	pools := w.twins(f, twinSubnet)
	wish := netip.MustParseAddr("10.77.0.9")
	w.startAs(f, netID("a"), fabric.AddressSpec{Pool: pools[1].ID, Addr: wish}, "1", "1", 101)
	for _, n := range f.View().Networks {
		if n.ID == netID("a") && (n.Pools[0].ID != pools[1].ID || len(n.Pools[0].Reserved) != 1) {
			t.Errorf("it has %+v, want %s with its gateway alone", n.Pools, pools[1].ID)
		}
	}
	w.forget(f, pools[1], "1", wish)
	mustBeTaken(t, f, pools[1], wish)
	f = w.reopen()
	mustBeTaken(t, f, pools[1], wish)
	delete(w.processes, 101)
	if err := pass(ctx, f); err != nil {
		t.Fatal(err)
	}
	mustBeFree(t, f, pools[1], wish)
}

// The same wish in both: their leases stay open, and held, until another
// container tells.
func TestSameWishInBothPools(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		f := w.open()
		pools := w.twins(f, twinSubnet)
		wish := netip.MustParseAddr("10.77.0.9")
		for _, p := range pools {
			if _, err := f.RequestAddress(ctx, fabric.AddressSpec{Pool: p.ID, Addr: wish}); err != nil {
				t.Fatal(err)
			}
		}
		for i, c := range []string{"a", "b"} {
			w.connect(f, netID(c), c, wish, 101+i)
		}
		w.forget(f, pools[0], "a", wish)
		mustBeTaken(t, f, pools[0], wish)
		past(t, f)
		mustBeTaken(t, f, pools[0], wish)
		w.start(f, netID("b"), pools[1], "3", 103) // tells
		delete(w.processes, 101)
		past(t, f)
		mustBeFree(t, f, pools[0], wish)
		mustBeTaken(t, f, pools[1], wish)
	})
}

// Both end before anything has told.
func TestSameWishInBothPoolsEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		f := w.open()
		pools := w.twins(f, twinSubnet)
		wish := netip.MustParseAddr("10.77.0.9")
		for _, p := range pools {
			if _, err := f.RequestAddress(ctx, fabric.AddressSpec{Pool: p.ID, Addr: wish}); err != nil {
				t.Fatal(err)
			}
		}
		for i, c := range []string{"a", "b"} {
			w.connect(f, netID(c), c, wish, 101+i)
		}
		for i, c := range []string{"a", "b"} {
			w.stop(f, pools[i], c, 101+i, wish)
		}
		past(t, f)
		for _, p := range pools {
			mustBeFree(t, f, p, wish)
		}
	})
}

// Auxiliary addresses are kept with the pool, whenever it is told whose it is.
func TestAuxiliaryAddressesOfTwins(t *testing.T) {
	w := newWorld(t)
	f := w.open()
	aux := netip.MustParseAddr("10.77.0.2")
	pools := w.twins(f, twinSubnet, aux)
	for i, c := range []string{"a", "b"} {
		if got := w.start(f, netID(c), pools[i], c, 101+i); got == aux {
			t.Errorf("a container has the auxiliary address")
		}
		for _, reserved := range []netip.Addr{aux, twinSubnet.Addr().Next()} {
			_, err := f.RequestAddress(ctx, fabric.AddressSpec{Pool: pools[i].ID, Addr: reserved})
			if err == nil || !strings.Contains(err.Error(), "as the network's gateway or an auxiliary address; choose another --ip") {
				t.Errorf("%s: %v", reserved, err)
			}
		}
	}
	f = w.reopen()
	for _, n := range f.View().Networks {
		want := []netip.Addr{twinSubnet.Addr().Next(), aux}
		if diff := cmp.Diff(want, n.Pools[0].Reserved, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
			t.Errorf("reserved: -want +got\n%s", diff)
		}
		if used := n.Pools[0].Used; used != 3 {
			t.Errorf("%d addresses are held, want 3", used)
		}
	}
}
