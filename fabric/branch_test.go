package fabric_test

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/particle-net/particle/fabric"
	"github.com/particle-net/particle/topology"
)

const key1 = "/var/run/docker/netns/1"

// prepare makes a network and an endpoint on it that Docker is about to join.
func prepare(t *testing.T) (*world, *fabric.Fabric, fabric.Pool, netip.Addr) {
	t.Helper()
	w := newWorld(t)
	f := w.open()
	p := w.create(f, netID("a"), "jobs", "10.77.0.0/16")
	return w, f, p, w.endpoint(f, p, "1")
}

func (w *world) endpoint(f *fabric.Fabric, p fabric.Pool, ep string) netip.Addr {
	w.t.Helper()
	a, err := f.RequestAddress(ctx, fabric.AddressSpec{Pool: p.ID})
	if err != nil {
		w.t.Fatal(err)
	}
	err = f.CreateEndpoint(ctx, fabric.EndpointSpec{ID: epID(ep), Network: netID("a"), IPv4: a.Addr(), MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}})
	if err != nil {
		w.t.Fatal(err)
	}
	w.endpoints[epID(ep)] = fabric.EngineContainer{ID: containerID(ep), Name: "c" + ep}
	return a.Addr()
}

func (w *world) joined(f *fabric.Fabric, ep string) {
	w.t.Helper()
	if err := f.Join(ctx, netID("a"), epID(ep), "/var/run/docker/netns/"+ep); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) claimOwn(f *fabric.Fabric, c string, pid int, a netip.Addr) error {
	w.processes[pid] = uint64(pid) * 10
	return f.Claim(ctx, fabric.ClaimSpec{Container: containerID(c), Name: "c" + c, Network: netID("a"), Pid: pid, Hostname: "h" + c, Own: true, Reason: "--privileged",
		Hosts: []fabric.HostLine{{Addr: a, Names: []string{"h" + c}}}})
}

// explained fails the test unless endpoint 1 has a namespace of its own for this reason,
// also for a plugin that comes back.
func (w *world) explained(f *fabric.Fabric, reason string) *fabric.Fabric {
	w.t.Helper()
	for range 2 {
		if got := f.View().Networks[0].Endpoints[0].Reason; got != reason {
			w.t.Errorf("it has a namespace of its own because of %q, want %q", got, reason)
		}
		f = w.reopen()
	}
	return f
}

// wants fails the test unless endpoint 1 has a branch into this namespace.
func (w *world) wants(namespace, link string) {
	w.t.Helper()
	b, ok := w.branches[epID("1")]
	if !ok || b.Namespace != namespace || b.Link != link || b.Network != netID("a") || b.MTU != 1450 || b.IPv4.String() != "10.77.0.2" ||
		b.MAC.String() != "02:00:00:00:00:01" || len(b.Subnets) != 2 || b.Subnets[0].String() != "10.77.0.0/16" || b.Subnets[1].String() != "169.254.0.53/32" {
		w.t.Errorf("branch %+v, want one into %s as %s", b, namespace, link)
	}
}

// Docker up to 27: Join, the hook that binds the container's namespace, claim.
func TestOwnNamespaceUnderOldDocker(t *testing.T) {
	w, f, p, a := prepare(t)
	w.joined(f, "1")
	if len(w.branches) != 0 || w.sandboxes[key1] != fabric.SandboxTenant {
		t.Errorf("before the hook: %v, %v", w.branches, w.sandboxes)
	}
	w.sandboxes[key1] = fabric.SandboxForeign
	if err := w.claimOwn(f, "1", 101, a); err != nil {
		t.Fatal(err)
	}
	w.wants("/proc/101/ns/net", "eth%d")
	if !slices.Equal(w.guarded, []topology.EndpointID{epID("1")}) {
		t.Errorf("guarded branches %v", w.guarded)
	}
	if w.restored[key1] != "/proc/101/ns/net" {
		t.Errorf("the key holds %q", w.restored[key1])
	}
	view := f.View().Networks[0].Endpoints[0]
	if view.State() != "running" || view.Link == "" || view.Exposed {
		t.Errorf("status shows %+v", view)
	}
	w.stop(f, p, "1", 101, a)
	if len(w.branches) != 0 || w.sandboxes[key1] != fabric.SandboxForeign { // Docker's to undo
		t.Errorf("left: %v, %v", w.branches, w.sandboxes)
	}
}

// Docker 28 and later: the container's namespace, Join, claim.
func TestOwnNamespaceUnderNewDocker(t *testing.T) {
	w, f, p, a := prepare(t)
	w.sandboxes[key1] = fabric.SandboxForeign
	w.joined(f, "1")
	w.wants("/host"+key1, "particle%d")
	f = w.explained(f, "another runtime, or docker network connect while it ran")
	if len(w.uplinks) != 1 { // another runtime places nothing
		t.Error("no uplink")
	}
	if err := w.claimOwn(f, "1", 101, a); err != nil {
		t.Fatal(err)
	}
	w.wants("/proc/101/ns/net", "eth%d")
	f = w.explained(f, "--privileged")
	if len(w.restored) != 0 {
		t.Error("the key was bound again")
	}
	w.stop(f, p, "1", 101, a)
	if len(w.branches) != 0 {
		t.Errorf("left: %v", w.branches)
	}
}

// No start of a container claims what it was connected to while it ran, and Docker alone
// knows who that is.
func TestConnectedWhileItRanHasAName(t *testing.T) {
	w, f, p, a := prepare(t)
	w.sandboxes[key1] = fabric.SandboxForeign
	w.joined(f, "1")
	for _, known := range []bool{false, true} { // Docker lists it a moment later
		holder := w.endpoints[epID("1")]
		if !known {
			delete(w.endpoints, epID("1"))
		}
		if err := f.Reconcile(ctx); err != nil {
			t.Fatal(err)
		}
		w.endpoints[epID("1")] = holder
	}
	_, err := f.RequestAddress(ctx, fabric.AddressSpec{Pool: p.ID, Addr: a})
	if err == nil || !strings.Contains(err.Error(), "container c1 holds it") {
		t.Errorf("got %v", err)
	}
	if got := f.View().Networks[0].Endpoints[0].Name; got != "c1" {
		t.Errorf("the status names %q", got)
	}
}

func TestFailedBranch(t *testing.T) {
	w, f, _, a := prepare(t)
	w.branchErr = errKernel
	w.sandboxes[key1] = fabric.SandboxForeign
	if err := f.Join(ctx, netID("a"), epID("1"), key1); !errors.Is(err, errKernel) {
		t.Errorf("Join: %v", err)
	}
	if err := w.claimOwn(f, "1", 101, a); !errors.Is(err, errKernel) {
		t.Errorf("Claim: %v", err)
	}
	w.branchErr = nil
	if err := f.DeleteEndpoint(ctx, epID("1")); err != nil || len(w.branches) != 0 || len(f.View().Networks[0].Endpoints) != 0 {
		t.Errorf("%v, %v", err, w.branches)
	}
}

// docker network disconnect of a running container takes its link away, and so
// the address is free.
func TestOwnNamespaceIsDisconnectedAtOnce(t *testing.T) {
	w, f, p, a := prepare(t)
	w.sandboxes[key1] = fabric.SandboxForeign
	w.joined(f, "1")
	if err := w.claimOwn(f, "1", 101, a); err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{f.Leave(ctx, epID("1")), f.DeleteEndpoint(ctx, epID("1")), f.ReleaseAddress(ctx, p.ID, a)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if _, err := f.RequestAddress(ctx, fabric.AddressSpec{Pool: p.ID, Addr: a}); err != nil || len(w.branches) != 0 {
		t.Errorf("%v, %v", err, w.branches)
	}
}

// Docker up to 27 joins a container before its runtime runs, so one of another
// runtime gets an address first and a namespace later.
func TestContainerOfAnotherRuntimeIsConnected(t *testing.T) {
	w, f, _, _ := prepare(t)
	w.joined(f, "1")
	if err := pass(ctx, f); err != nil || len(w.branches) != 0 {
		t.Fatal("a container that is being made was connected", err)
	}
	w.sandboxes[key1] = fabric.SandboxForeign
	for range 2 {
		if err := pass(ctx, f); err != nil {
			t.Fatal(err)
		}
		w.wants("/host"+key1, "particle%d")
		if got := f.View().Networks[0].Endpoints[0].Reason; got != "another runtime" {
			t.Errorf("the reason is %q", got)
		}
		if w.restored[key1] != "/host"+key1 || f.View().Repairs != 1 {
			t.Errorf("the key holds %q, %d repairs", w.restored[key1], f.View().Repairs)
		}
	}
}

// The kernel may lose a branch, and the plugin its memory of one.
func TestBranchesAreRepaired(t *testing.T) {
	w, f, p, a := prepare(t)
	w.sandboxes[key1] = fabric.SandboxForeign
	w.joined(f, "1")
	if err := w.claimOwn(f, "1", 101, a); err != nil {
		t.Fatal(err)
	}
	w.endpoint(f, p, "2")
	w.sandboxes["/var/run/docker/netns/2"] = fabric.SandboxForeign
	w.joined(f, "2")
	f = w.reopen()
	for _, lost := range []string{"1", "2"} {
		before, repairs := w.branches[epID(lost)], f.View().Repairs
		delete(w.branches, epID(lost))
		if err := pass(ctx, f); err != nil {
			t.Fatal(err)
		}
		if got := w.branches[epID(lost)]; got.Namespace != before.Namespace || got.Link != before.Link || f.View().Repairs != repairs+1 {
			t.Errorf("branch %+v, want %+v", got, before)
		}
	}
	stray := topology.Branch{Network: netID("a"), Endpoint: epID("9"), IPv4: netip.MustParseAddr("10.77.0.9")}
	w.branches[stray.Endpoint] = stray
	if err := pass(ctx, f); err != nil || len(w.branches) != 2 {
		t.Errorf("%v, %v", w.branches, err)
	}
	// What has ended is not made again.
	delete(w.processes, 101)
	delete(w.branches, epID("1"))
	w.sandboxes[key1] = fabric.SandboxAbsent
	if err := pass(ctx, f); err != nil || len(w.branches) != 1 {
		t.Errorf("%v, %v", w.branches, err)
	}
}

// Branches of a network without any endpoint are of a run that lost its records.
func TestForgottenBranchesGo(t *testing.T) {
	w := newWorld(t)
	f := w.open()
	w.create(f, netID("a"), "jobs", "10.77.0.0/16")
	w.branches[epID("9")] = topology.Branch{Network: netID("a"), Endpoint: epID("9")}
	if err := pass(ctx, f); err != nil || len(w.branches) != 0 {
		t.Errorf("%v, %v", w.branches, err)
	}
}

func TestBranchesLeaveTogether(t *testing.T) {
	w, f, p, _ := prepare(t)
	const names = "123456789"
	for _, c := range names {
		if c != '1' {
			w.endpoint(f, p, string(c))
		}
		w.sandboxes["/var/run/docker/netns/"+string(c)] = fabric.SandboxForeign
		w.joined(f, string(c))
	}
	// The first waits in the kernel until all others have come.
	entered, go1 := make(chan struct{}), make(chan struct{})
	var once sync.Once
	w.removing = func() {
		once.Do(func() {
			close(entered)
			<-go1
		})
	}
	var done sync.WaitGroup
	remove := func(c string) {
		done.Go(func() {
			if err := f.DeleteEndpoint(ctx, epID(c)); err != nil {
				t.Error(err)
			}
		})
	}
	remove("1")
	<-entered
	for _, c := range names[1:] {
		remove(string(c))
	}
	fabric.AwaitDepartures(f, netID("a"), len(names)-1)
	close(go1)
	done.Wait()
	if got := w.removals; len(got) != 2 || got[0] != 1 || got[1] != len(names)-1 {
		t.Errorf("removed in batches of %v", got)
	}
	if len(w.branches) != 0 || len(f.View().Networks[0].Endpoints) != 0 {
		t.Errorf("left: %v", w.branches)
	}
}

// A container may change from the shared namespace to one of its own between two
// starts, when it is connected to another network; its guests stay where they are.
func TestOwnNamespaceTakesNoAddressFromGuests(t *testing.T) {
	w := newWorld(t)
	f := w.open()
	p := w.create(f, netID("a"), "jobs", "10.77.0.0/16")
	a := w.start(f, netID("a"), p, "1", 101)
	if err := w.join(f, "2", "1", 102); err != nil {
		t.Fatal(err)
	}
	w.stop(f, p, "1", 101, a)
	if _, err := f.RequestAddress(ctx, fabric.AddressSpec{Pool: p.ID, Addr: a, Name: "c1"}); err != nil {
		t.Fatal(err)
	}
	if err := f.CreateEndpoint(ctx, fabric.EndpointSpec{ID: epID("5"), Network: netID("a"), IPv4: a}); err != nil {
		t.Fatal(err)
	}
	w.sandboxes["/var/run/docker/netns/5"] = fabric.SandboxForeign
	err := f.Join(ctx, netID("a"), epID("5"), "/var/run/docker/netns/5")
	if !errors.Is(err, fabric.ErrAddressTaken) || !strings.Contains(err.Error(), "container c2 shares it") || len(w.branches) != 0 {
		t.Errorf("%v, %v", err, w.branches)
	}
}

// The guard has nothing to do with it.
func TestOwnNamespaceIsNotAdmitted(t *testing.T) {
	w, f, _, a := prepare(t)
	w.joined(f, "1")
	w.sandboxes[key1] = fabric.SandboxForeign
	if err := w.claimOwn(f, "1", 101, a); err != nil {
		t.Fatal(err)
	}
	if err := pass(ctx, f); err != nil || len(w.admitted) != 0 {
		t.Errorf("admitted %v, %v", w.admitted, err)
	}
}

func TestPlacementExplainsNamespaces(t *testing.T) {
	_, f, _, _ := prepare(t)
	_, _, err := f.Place(ctx, []fabric.Ref{{Name: "jobs"}, {Name: "other"}}, false)
	if err == nil || !strings.Contains(err.Error(), "particle.namespace=own") {
		t.Errorf("%v", err)
	}
}

// The branch of a container that is disconnected while it runs is not taken for one that
// has gone by itself: its address is another's soon.
func TestDisconnectedWhileRepaired(t *testing.T) {
	w, f, p, a := prepare(t)
	w.sandboxes[key1] = fabric.SandboxForeign
	w.joined(f, "1")
	if err := w.claimOwn(f, "1", 101, a); err != nil {
		t.Fatal(err)
	}
	repaired := make(chan error, 1)
	w.removed = func() {
		w.removed = nil
		repaired <- f.Repair(ctx)
	}
	if err := errors.Join(f.Leave(ctx, epID("1")), f.DeleteEndpoint(ctx, epID("1")), <-repaired, f.ReleaseAddress(ctx, p.ID, a)); err != nil {
		t.Fatal(err)
	}
	if err := f.Repair(ctx); err != nil {
		t.Fatal(err)
	}
	if len(w.branches) != 0 {
		t.Errorf("left: %v", w.branches)
	}
}

// Nor does one stay that is made while its endpoint goes.
func TestDisconnectedWhileConnected(t *testing.T) {
	w, f, _, a := prepare(t)
	w.sandboxes[key1] = fabric.SandboxForeign
	w.applying = func() {
		w.applying = nil
		if err := f.DeleteEndpoint(ctx, epID("1")); err != nil {
			t.Error(err)
		}
	}
	if err := f.Join(ctx, netID("a"), epID("1"), key1); !errors.Is(err, fabric.ErrNoEndpoint) {
		t.Errorf("joined an endpoint that is gone, with %s: %v", a, err)
	}
	if len(w.branches) != 0 {
		t.Errorf("left: %v", w.branches)
	}
}

// Nor of one that Docker does not know any more, and that goes therefore.
func TestRetiredWhileRepaired(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, f, _, a := prepare(t)
		w.sandboxes[key1] = fabric.SandboxForeign
		w.joined(f, "1")
		if err := w.claimOwn(f, "1", 101, a); err != nil {
			t.Fatal(err)
		}
		delete(w.processes, 101)
		delete(w.endpoints, epID("1"))
		w.removed = func() {
			w.removed = nil
			if err := f.Repair(ctx); err != nil {
				t.Error(err)
			}
		}
		past(t, f)
		if n := len(f.View().Networks[0].Endpoints); n != 0 || len(w.branches) != 0 {
			t.Errorf("left: %d endpoints, %v", n, w.branches)
		}
	})
}

// A branch of another MTU than its network's is put right.
func TestBranchOfAnotherMTU(t *testing.T) {
	w, f, _, a := prepare(t)
	w.sandboxes[key1] = fabric.SandboxForeign
	w.joined(f, "1")
	if err := w.claimOwn(f, "1", 101, a); err != nil {
		t.Fatal(err)
	}
	b := w.branches[epID("1")]
	b.MTU = 1300
	w.branches[epID("1")] = b
	if err := f.Repair(ctx); err != nil {
		t.Fatal(err)
	}
	w.wants("/proc/101/ns/net", "eth%d")
}
