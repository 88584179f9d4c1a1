package fabric_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/particle-net/particle/fabric"
	"github.com/particle-net/particle/topology"
)

// Other programs of the host make VXLAN devices too.
func TestForeignVNIsAreSteppedOver(t *testing.T) {
	w := newWorld(t)
	f := w.open()
	w.create(f, netID("a"), "first", "10.1.0.0/16")
	least := w.segments[netID("a")].VNI
	w.foreign = map[topology.VNI]bool{least + 1: true, least + 2: true}
	for c, subnet := range map[string]string{"b": "10.2.0.0/16", "c": "10.3.0.0/16"} {
		spec := fabric.NetworkSpec{ID: netID(c), Subnets: []fabric.Subnet{{Subnet: netip.MustParsePrefix(subnet)}}}
		if err := f.CreateNetwork(ctx, spec); err != nil {
			t.Fatal(err)
		}
	}
	b, c := w.segments[netID("b")].VNI, w.segments[netID("c")].VNI
	if min(b, c) != least+3 || max(b, c) != least+4 {
		t.Errorf("the networks have VNIs %d and %d, want the first two free ones, %d and %d", b, c, least+3, least+4)
	}
	w.segments = map[topology.NetworkID]topology.Segment{}
	w.reopen()
	if w.segments[netID("b")].VNI != b || w.segments[netID("c")].VNI != c {
		t.Errorf("after a restart the networks have VNIs %d and %d, want %d and %d",
			w.segments[netID("b")].VNI, w.segments[netID("c")].VNI, b, c)
	}
}

func TestForeignVNIThatWasAskedFor(t *testing.T) {
	w := newWorld(t)
	f := w.open()
	w.foreign = map[topology.VNI]bool{7: true}
	spec := fabric.NetworkSpec{ID: netID("a"), VNI: 7, Subnets: []fabric.Subnet{{Subnet: netip.MustParsePrefix("10.9.0.0/24")}}}
	if err := f.CreateNetwork(ctx, spec); !errors.Is(err, topology.ErrVNIInUse) || !strings.Contains(err.Error(), "VNI 7") {
		t.Errorf("got %v", err)
	}
	if n := f.View().Networks; len(n) != 0 || len(w.segments) != 0 {
		t.Errorf("left behind: %v, %v", n, w.segments)
	}
}

// The search ends with the caller's patience, and leaves nothing.
func TestNoVNIIsFree(t *testing.T) {
	w := newWorld(t)
	f := w.open()
	w.applyErr = topology.ErrVNIInUse
	bounded, cancel := context.WithCancel(ctx)
	w.applied = func(n int) {
		if n == 5 {
			cancel()
		}
	}
	spec := fabric.NetworkSpec{ID: netID("a"), Subnets: []fabric.Subnet{{Subnet: netip.MustParsePrefix("10.9.0.0/24")}}}
	if err := f.CreateNetwork(bounded, spec); !errors.Is(err, topology.ErrVNIInUse) {
		t.Errorf("got %v", err)
	}
	if n := f.View().Networks; len(n) != 0 || w.applies != 5 {
		t.Errorf("after %d attempts left behind: %v", w.applies, n)
	}
}

func TestUplinkHasTheFamiliesOfTheSubnets(t *testing.T) {
	w := newWorld(t)
	f := w.open()
	for c, subnets := range map[string][]fabric.Subnet{
		"a": {{Subnet: netip.MustParsePrefix("10.1.0.0/16")}},
		"b": {{Subnet: netip.MustParsePrefix("10.2.0.0/16")}, {Subnet: netip.MustParsePrefix("fd00:2::/64")}},
	} {
		if err := f.CreateNetwork(ctx, fabric.NetworkSpec{ID: netID(c), Subnets: subnets}); err != nil {
			t.Fatal(err)
		}
		f.NetworkSeen(netID(c), c)
		if _, _, err := f.Place(ctx, []fabric.Ref{{Name: c}}, false); err != nil {
			t.Fatal(err)
		}
		if u, want := w.uplinks[netID(c)], len(subnets) == 2; u.Host6.IsValid() != want || u.Tenant6.IsValid() != want {
			t.Errorf("network with %v has uplink %+v", subnets, u)
		}
	}
}

// "At most 8,190 networks on a host can have a way out."
func TestUplinksRunOut(t *testing.T) {
	w := newWorld(t)
	records := table[fabric.Network](w, w.store("durable.db"), "networks")
	for i := range 8190 - 1 {
		id := fmt.Sprintf("%064x", i)
		record := fabric.Network{ID: topology.NetworkID(id), VNI: topology.VNI(i + 1), MTU: 1450, Uplink: i, Created: time.Now()}
		if err := records.Put(id, record); err != nil {
			t.Fatal(err)
		}
	}
	w.crash()
	f := w.open()
	w.create(f, netID("a"), "last", "10.1.0.0/16")
	w.create(f, netID("b"), "late", "10.2.0.0/16")
	if _, _, err := f.Place(ctx, []fabric.Ref{{Name: "last"}}, false); err != nil {
		t.Error(err)
	}
	const want = "make uplink of network late: all 8190 uplinks of this host are taken; remove networks or create this one with --internal"
	if _, _, err := f.Place(ctx, []fabric.Ref{{Name: "late"}}, false); err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestSubnetsOfUplinksAreRefused(t *testing.T) {
	f := newWorld(t).open()
	for _, subnet := range []string{"169.254.200.0/24", "fdf0:cf12:e344::/80", "fdf0:cf12::/32"} {
		spec := fabric.NetworkSpec{ID: netID("a"), Subnets: []fabric.Subnet{{Subnet: netip.MustParsePrefix(subnet)}}}
		if err := f.CreateNetwork(ctx, spec); err == nil || !strings.Contains(err.Error(), "carries the networks' uplinks") {
			t.Errorf("%s: %v", subnet, err)
		}
	}
}

// Containers of such networks started, and none reached another.
func TestSubnetsThatContainersCannotHave(t *testing.T) {
	f := newWorld(t).open()
	for subnet, want := range map[string]string{
		"127.0.0.0/24": "loopback", "127.5.0.0/16": "loopback", "224.0.0.0/24": "multicast", "::1/128": "loopback", "fe80::/64": "link-local", "ff02::/64": "multicast",
	} {
		spec := fabric.NetworkSpec{ID: netID("a"), Subnets: []fabric.Subnet{{Subnet: netip.MustParsePrefix(subnet)}}}
		if err := f.CreateNetwork(ctx, spec); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", subnet, err)
		}
	}
}

// From Docker 28 on a container is placed before its endpoint keeps its network from being
// removed. It brings back nothing of one that is removed meanwhile, on disk neither.
func TestPlacedWhileNetworkIsRemoved(t *testing.T) {
	for name, ready := range map[string]bool{"ready": true, "to be applied": false} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			f := w.open()
			w.create(f, netID("a"), "jobs", "10.77.0.0/16")
			if !ready {
				f.SetUnderlay(topology.Underlay{MTU: 1400, Port: 4789})
			}
			placed := make(chan error, 1)
			w.demolish = func() {
				go func() {
					_, _, err := f.Place(ctx, []fabric.Ref{{Name: "jobs"}}, false)
					placed <- err
				}()
				time.Sleep(50 * time.Millisecond) // it waits for its turn by then
			}
			if err := f.DeleteNetwork(ctx, netID("a")); err != nil {
				t.Fatal(err)
			}
			if err := <-placed; !errors.Is(err, fabric.ErrNoNetwork) {
				t.Errorf("got %v", err)
			}
			if len(w.segments)+len(w.uplinks) != 0 {
				t.Errorf("left in the kernel: %v, %v", w.segments, w.uplinks)
			}
			if n := w.reopen().View().Networks; len(n) != 0 {
				t.Errorf("left on disk: %v", n)
			}
		})
	}
}

// Docker asks again for a network whose first creation is under way still, and fails. It is
// not told that it has what was taken away.
func TestCreatedAgainWhileItFails(t *testing.T) {
	w := newWorld(t)
	f := w.open()
	spec := fabric.NetworkSpec{ID: netID("a"), Subnets: []fabric.Subnet{{Subnet: netip.MustParsePrefix("10.77.0.0/16")}}}
	w.applyErr = errKernel
	again := make(chan error, 1)
	w.demolish = func() {
		w.applyErr = nil
		go func() { again <- f.CreateNetwork(ctx, spec) }()
		time.Sleep(50 * time.Millisecond) // it waits for its turn by then
	}
	if err := f.CreateNetwork(ctx, spec); !errors.Is(err, errKernel) {
		t.Errorf("got %v", err)
	}
	err := <-again
	if known := len(f.View().Networks); err == nil && known == 0 || len(w.segments) != known {
		t.Errorf("%v; on record are %d, in the kernel %d", err, known, len(w.segments))
	}
}
