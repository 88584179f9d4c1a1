package fabric_test

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"github.com/particle-net/particle/fabric"
	"github.com/particle-net/particle/topology"
)

// walker does to one host what users, the cluster and accidents do, in any order,
// and knows which addresses it may expect.
type walker struct {
	w      *world
	c      *cluster
	f      *fabric.Fabric
	p      fabric.Pool
	blocks []netip.Prefix
	held   map[string]netip.Addr // by container
	single map[string]bool       // of those, the ones that were claimed for themselves
	serial int
}

func (k *walker) run(t *rapid.T, wish netip.Addr) {
	k.serial++
	name := fmt.Sprintf("%03x", k.serial)
	got, err := k.f.RequestAddress(ctx, fabric.AddressSpec{Pool: k.p.ID, Addr: wish})
	if err != nil {
		return
	}
	a := got.Addr()
	if !k.inBlock(a) && !wish.IsValid() {
		t.Fatalf("%s is of no block of %v", a, k.blocks)
	}
	k.single[name] = !k.inBlock(a)
	for other, b := range k.held {
		if a == b {
			t.Fatalf("%s is held by %s already", a, other)
		}
	}
	k.w.connectAs(k.f, netID("a"), "0"+name, name, a, 1000+k.serial)
	k.held[name] = a
}

func (k *walker) inBlock(a netip.Addr) bool {
	return slices.ContainsFunc(k.blocks, func(b netip.Prefix) bool { return b.Contains(a) })
}

func (k *walker) end(t *rapid.T) {
	if len(k.held) == 0 {
		return
	}
	var names []string
	for name := range k.held {
		names = append(names, name)
	}
	slices.Sort(names)
	name := rapid.SampledFrom(names).Draw(t, "container")
	a := k.held[name]
	delete(k.held, name)
	var pid int
	fmt.Sscanf(name, "%x", &pid)
	delete(k.w.processes, 1000+pid)
	ep := "0" + name
	delete(k.w.endpoints, epID(ep))
	for _, err := range []error{
		k.f.Release(ctx, containerID(name)), k.f.Leave(ctx, epID(ep)), k.f.DeleteEndpoint(ctx, epID(ep)), k.f.ReleaseAddress(ctx, k.p.ID, a),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
}

// check compares the kernel with what is held.
func (k *walker) check(t *rapid.T) {
	local := k.w.segments[netID("a")].Pools
	for name, a := range k.held {
		if !slices.ContainsFunc(local, func(p netip.Prefix) bool { return p.Contains(a) }) {
			t.Fatalf("%s of container %s is not local: %v", a, name, local)
		}
		if k.single[name] && !k.c.owned[a] {
			t.Fatalf("%s of container %s is not claimed", a, name)
		}
	}
	for _, p := range local {
		if p.IsSingleIP() && p != netip.MustParsePrefix("169.254.0.53/32") && !k.used(p.Addr()) {
			t.Fatalf("%s is local, and nobody's", p)
		}
	}
	for a := range k.c.owned {
		if !k.used(a) {
			t.Fatalf("%s is claimed, and nobody's", a)
		}
	}
}

func (k *walker) used(a netip.Addr) bool {
	for _, b := range k.held {
		if a == b {
			return true
		}
	}
	return false
}

// Whatever happens, a container's address is local, one of this host's, and its
// own.
func TestSharedNetworkInAnyOrder(t *testing.T) {
	cuts := prefixes("10.77.0.16/30", "10.77.0.20/30", "10.77.0.24/30", "10.77.0.28/30")
	rapid.Check(t, func(rt *rapid.T) {
		w, c, f, p := shared(t, "10.77.0.16/30")
		defer w.crash() // thousands of them would be open else
		k := &walker{w: w, c: c, f: f, p: p, blocks: cuts[:1], held: map[string]netip.Addr{}, single: map[string]bool{}}
		rt.Repeat(map[string]func(*rapid.T){
			"run": func(rt *rapid.T) { k.run(rt, netip.Addr{}) },
			"run --ip": func(rt *rapid.T) {
				k.run(rt, netip.AddrFrom4([4]byte{10, 77, 0, rapid.SampledFrom([]byte{17, 21, 25, 29, 200, 201}).Draw(rt, "ip")}))
			},
			"end": k.end,
			"claims": func(rt *rapid.T) {
				var list []netip.Prefix
				for _, b := range cuts {
					if rapid.Bool().Draw(rt, b.String()) {
						list = append(list, b)
					}
				}
				if err := k.f.SetClaims(ctx, sharedID, list); err != nil {
					rt.Fatal(err)
				}
				k.blocks = list
			},
			"reconcile": func(rt *rapid.T) {
				if err := pass(ctx, k.f); err != nil {
					rt.Fatal(err)
				}
			},
			"kill": func(*rapid.T) { k.f = k.w.reopen() },
			"store": func(rt *rapid.T) {
				c.err = nil
				if rapid.Bool().Draw(rt, "dead") {
					c.err = errKernel
				}
			},
			"": k.check,
		})
	})
}

// The calls of Docker, of the cluster and of Reconcile come all at once.
func TestSharedNetworkFromAllSides(t *testing.T) {
	_, c, f, p := shared(t, "10.77.0.16/28")
	var group sync.WaitGroup
	for _, side := range []func(i int) error{
		func(int) error {
			a, err := f.RequestAddress(ctx, fabric.AddressSpec{Pool: p.ID})
			if err != nil {
				return err
			}
			return f.ReleaseAddress(ctx, p.ID, a.Addr())
		},
		func(i int) error {
			a := netip.AddrFrom4([4]byte{10, 77, 0, byte(200 + i%3)})
			if _, err := f.RequestAddress(ctx, fabric.AddressSpec{Pool: p.ID, Addr: a}); err != nil {
				return err
			}
			return f.ReleaseAddress(ctx, p.ID, a)
		},
		func(i int) error {
			return f.SetClaims(ctx, sharedID, prefixes("10.77.0.16/28", "10.77.0.32/28", "10.77.0.64/28")[:1+i%3])
		},
		func(i int) error {
			return f.SetPeers(ctx, sharedID, []topology.Peer{peer(byte(2+i%3), "10.77.0.128/28")})
		},
		func(int) error { return pass(ctx, f) },
		func(int) error { f.Shared(); f.View(); return nil },
	} {
		group.Go(func() {
			for i := range 30 {
				if err := side(i); err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
	if len(c.owned) != 0 {
		t.Errorf("claimed still: %v", c.owned)
	}
}
