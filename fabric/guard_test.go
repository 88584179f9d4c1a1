package fabric_test

import (
	"context"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/particle-net/particle/fabric"
	"github.com/particle-net/particle/topology"
)

// admits compares the cgroups that the guard admits; the slots must be told
// apart, but their numbers are free.
func (w *world) admits(want map[string]netip.Addr) {
	w.t.Helper()
	all := map[topology.CgroupID]topology.Identity{}
	slots := map[topology.Slot]topology.Identity{}
	for cgroup, a := range want {
		all[cgroupID(cgroup)] = topology.Identity{Network: netID("a"), IPv4: a}
	}
	if diff := cmp.Diff(all, w.admitted, cmpopts.IgnoreFields(topology.Identity{}, "Slot"), cmpopts.EquateComparable(netip.Addr{})); diff != "" {
		w.t.Fatalf("the guard admits (-want +got):\n%s", diff)
	}
	for _, id := range w.admitted {
		if other, taken := slots[id.Slot]; id.Slot == 0 || taken && other.IPv4 != id.IPv4 {
			w.t.Fatalf("slot %d is that of %v and of %v", id.Slot, id, other)
		}
		slots[id.Slot] = id
	}
}

func TestGuardAdmitsWhoClaims(t *testing.T) {
	w := newWorld(t)
	f := w.open()
	p := w.create(f, netID("a"), "jobs", "10.77.0.0/24")
	if !w.protected[netID("a")] {
		t.Fatal("a network is not protected once it is made")
	}
	one, two := w.start(f, netID("a"), p, "1", 11), w.start(f, netID("a"), p, "2", 12)
	w.admits(map[string]netip.Addr{cgroupOf("1", 11): one, cgroupOf("2", 12): two})
	w.stop(f, p, "1", 11, one)
	w.admits(map[string]netip.Addr{cgroupOf("2", 12): two})
	three := w.start(f, netID("a"), p, "3", 13)
	f = w.reopen()
	four := w.start(f, netID("a"), p, "4", 14)
	w.admits(map[string]netip.Addr{cgroupOf("2", 12): two, cgroupOf("3", 13): three, cgroupOf("4", 14): four})
	for _, pid := range []int{12, 13, 14} {
		delete(w.processes, pid)
	}
	if err := f.DeleteNetwork(context.Background(), netID("a")); err != nil {
		t.Fatal(err)
	}
	w.admits(nil)
	if w.protected[netID("a")] {
		t.Error("a network that is gone is still protected")
	}
}

func TestClaimFailsWithoutTheGuard(t *testing.T) {
	w := newWorld(t)
	f := w.open()
	ctx := context.Background()
	p := w.create(f, netID("a"), "jobs", "10.77.0.0/24")
	a, err := f.RequestAddress(ctx, fabric.AddressSpec{Pool: p.ID})
	if err == nil {
		err = f.CreateEndpoint(ctx, fabric.EndpointSpec{ID: epID("1"), Network: netID("a"), IPv4: a.Addr()})
	}
	if err == nil {
		err = f.Join(ctx, netID("a"), epID("1"), "/var/run/docker/netns/1")
	}
	if err != nil {
		t.Fatal(err)
	}
	w.processes[11], w.guardErr = 110, errKernel
	claim := fabric.ClaimSpec{Container: containerID("1"), Name: "c1", Network: netID("a"), Pid: 11, Cgroup: "/docker/1", Hostname: "h1",
		Hosts: []fabric.HostLine{{Addr: a.Addr(), Names: []string{"h1"}}}}
	if err := f.Claim(ctx, claim); err == nil {
		t.Fatal("a container that the guard does not admit got its address")
	}
	if e := f.View().Networks[0].Endpoints[0]; e.Pid != 0 || e.Container != "" {
		t.Errorf("it is on record all the same: %+v", e)
	}
	w.guardErr = nil
	claim.Hostname = "other"
	if err := f.Claim(ctx, claim); err == nil {
		t.Fatal("a container got another's address")
	}
	w.admits(nil)
}

func TestRestartedContainerLeavesItsOldCgroup(t *testing.T) {
	w := newWorld(t)
	f := w.open()
	p := w.create(f, netID("a"), "jobs", "10.77.0.0/24")
	a := w.start(f, netID("a"), p, "1", 11)
	// The runtime's delete did not reach us, and Docker keeps the endpoint.
	delete(w.processes, 11)
	w.processes[12] = 120
	err := f.Claim(context.Background(), fabric.ClaimSpec{Container: containerID("1"), Name: "c1", Network: netID("a"), Pid: 12,
		Cgroup: cgroupOf("1", 12), Hostname: "h1", Hosts: []fabric.HostLine{{Addr: a, Names: []string{"h1"}}}})
	if err != nil {
		t.Fatal(err)
	}
	w.admits(map[string]netip.Addr{cgroupOf("1", 12): a})
}

func TestReconcileMendsTheGuard(t *testing.T) {
	w := newWorld(t)
	f := w.open()
	ctx := context.Background()
	p := w.create(f, netID("a"), "jobs", "10.77.0.0/24")
	one, two := w.start(f, netID("a"), p, "1", 11), w.start(f, netID("a"), p, "2", 12)
	delete(w.admitted, cgroupID(cgroupOf("1", 11)))
	w.admitted[cgroupID(cgroupOf("2", 12))] = topology.Identity{Network: netID("a"), IPv4: one}
	w.admitted[99] = topology.Identity{Network: netID("a"), IPv4: one}
	if err := pass(ctx, f); err != nil {
		t.Fatal(err)
	}
	w.admits(map[string]netip.Addr{cgroupOf("1", 11): one, cgroupOf("2", 12): two})
	if n := f.View().Repairs; n != 3 {
		t.Errorf("%d repairs counted, not 3", n)
	}
	delete(w.processes, 12) // nobody tells us
	if err := pass(ctx, f); err != nil {
		t.Fatal(err)
	}
	w.admits(map[string]netip.Addr{cgroupOf("1", 11): one})
}

func TestGuestsAreAdmittedAsTheirHost(t *testing.T) {
	w := newWorld(t)
	f := w.open()
	ctx := context.Background()
	p := w.create(f, netID("a"), "jobs", "10.77.0.0/24")
	a := w.start(f, netID("a"), p, "1", 11)
	w.processes[12] = 120
	err := f.Claim(ctx, fabric.ClaimSpec{Container: containerID("2"), Name: "c2", Network: netID("a"), Pid: 12,
		Cgroup: cgroupOf("2", 12), Join: containerID("1")})
	if err != nil {
		t.Fatal(err)
	}
	w.admits(map[string]netip.Addr{cgroupOf("1", 11): a, cgroupOf("2", 12): a})
	delete(w.processes, 11)
	if err := f.Release(ctx, containerID("1")); err != nil {
		t.Fatal(err)
	}
	w.admits(map[string]netip.Addr{cgroupOf("2", 12): a})
	delete(w.admitted, cgroupID(cgroupOf("2", 12)))
	if err := pass(ctx, f); err != nil {
		t.Fatal(err)
	}
	w.admits(map[string]netip.Addr{cgroupOf("2", 12): a})
	delete(w.processes, 12)
	if err := f.Release(ctx, containerID("2")); err != nil {
		t.Fatal(err)
	}
	w.admits(nil)
}

func TestSlotsComeRound(t *testing.T) {
	w := newWorld(t)
	f := w.open()
	p := w.create(f, netID("a"), "jobs", "10.77.0.0/24")
	seen := map[topology.Slot]bool{}
	for range 50 {
		a := w.start(f, netID("a"), p, "1", 11)
		slot := w.admitted[cgroupID(cgroupOf("1", 11))].Slot
		if seen[slot] {
			t.Fatalf("slot %d was given out again while others are unused", slot)
		}
		seen[slot] = true
		w.stop(f, p, "1", 11, a)
	}
}
