package fabric_test

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"

	"github.com/particle-net/particle/fabric"
)

// join does what our runtime does for `docker run --network container:X`.
func (w *world) join(f *fabric.Fabric, c, host string, pid int) error {
	w.t.Helper()
	w.processes[pid] = uint64(pid) * 10
	return f.Claim(ctx, fabric.ClaimSpec{Container: containerID(c), Name: "c" + c, Network: netID("a"), Pid: pid,
		Cgroup: "/docker/" + c, Join: containerID(host)})
}

// holders tells who uses the addresses of network a: "10.77.0.2: c1 c2".
func holders(f *fabric.Fabric) []string {
	var lines []string
	for _, e := range f.View().Networks[0].Endpoints {
		line := e.IPv4.String() + ":"
		if e.Pid != 0 {
			line += " " + e.Name
		}
		for _, g := range e.Guests {
			line += " " + g.Name
		}
		lines = append(lines, line)
	}
	return lines
}

func expectHolders(t *testing.T, f *fabric.Fabric, want ...string) {
	t.Helper()
	if diff := cmp.Diff(want, holders(f)); diff != "" {
		t.Fatalf("holders: -want +got\n%s", diff)
	}
}

// mustBeTaken asks as Docker 29 does, which names the container. Older ones
// don't; see TestHostComesBackToItsGuests.
func mustBeTaken(t *testing.T, f *fabric.Fabric, p fabric.Pool, a netip.Addr) {
	t.Helper()
	if _, err := f.RequestAddress(ctx, fabric.AddressSpec{Pool: p.ID, Addr: a, Name: "other"}); err == nil {
		t.Fatalf("%s was given out while it is used", a)
	}
}

func mustBeFree(t *testing.T, f *fabric.Fabric, p fabric.Pool, a netip.Addr) {
	t.Helper()
	if _, err := f.RequestAddress(ctx, fabric.AddressSpec{Pool: p.ID, Addr: a}); err != nil {
		t.Fatal(err)
	}
	if err := f.ReleaseAddress(ctx, p.ID, a); err != nil {
		t.Fatal(err)
	}
}

func TestGuestsKeepTheAddress(t *testing.T) {
	w := newWorld(t)
	f := w.open()
	p := w.create(f, netID("a"), "jobs", "10.77.0.0/24")
	a := w.start(f, netID("a"), p, "1", 101)
	for _, err := range []error{
		w.join(f, "2", "1", 102),
		w.join(f, "3", "2", 103), // a guest of a guest is the same host's
		w.join(f, "2", "1", 102), // the claim comes twice
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	expectHolders(t, f, "10.77.0.2: c1 c3 c2")
	f = w.reopen()
	w.stop(f, p, "1", 101, a)
	expectHolders(t, f, "10.77.0.2: c3 c2")
	if len(w.sandboxes) != 0 {
		t.Errorf("the key of a container that is gone is still bound: %v", w.sandboxes)
	}
	_, err := f.RequestAddress(ctx, fabric.AddressSpec{Pool: p.ID, Addr: a, Name: "other"})
	if err == nil || !strings.Contains(err.Error(), "container c3 as a guest of c1 holds it; remove that container") {
		t.Errorf("the address was given out, or: %v", err)
	}
	// The host comes again, with another address; the guests keep the old one.
	if b := w.startAs(f, netID("a"), fabric.AddressSpec{Pool: p.ID}, "f", "1", 111); b == a {
		t.Fatal("the guests' address was given out")
	}
	if err := w.join(f, "4", "1", 104); err != nil {
		t.Fatal(err)
	}
	expectHolders(t, f, "10.77.0.2: c3 c2", "10.77.0.3: c1 c4")
	delete(w.processes, 103)
	if err := f.Release(ctx, containerID("3")); err != nil {
		t.Fatal(err)
	}
	expectHolders(t, f, "10.77.0.2: c2", "10.77.0.3: c1 c4")
	mustBeTaken(t, f, p, a)
	delete(w.processes, 102)
	if err := f.Release(ctx, containerID("2")); err != nil {
		t.Fatal(err)
	}
	expectHolders(t, f, "10.77.0.3: c1 c4")
	mustBeFree(t, f, p, a)
}

// A host with a fixed address has it again although its guests kept it; nobody
// else has.
func TestHostComesBackToItsGuests(t *testing.T) {
	w := newWorld(t)
	f := w.open()
	p := w.create(f, netID("a"), "jobs", "10.77.0.0/24")
	wish := fabric.AddressSpec{Pool: p.ID, Addr: netip.MustParseAddr("10.77.0.9")}
	w.startAs(f, netID("a"), wish, "1", "1", 101)
	if err := w.join(f, "2", "1", 102); err != nil {
		t.Fatal(err)
	}
	mustBeTaken(t, f, p, wish.Addr)
	w.stop(f, p, "1", 101, wish.Addr)
	named := wish
	named.Name = "c7" // from Docker 29 on
	if _, err := f.RequestAddress(ctx, named); err == nil || !strings.Contains(err.Error(), "container c2 as a guest of c1 holds it") {
		t.Errorf("another container was given the address, or: %v", err)
	}
	if _, err := f.RequestAddress(ctx, wish); err != nil {
		t.Fatal(err)
	}
	mustBeTaken(t, f, p, wish.Addr) // by the container that Docker asked for
	f = w.reopen()
	if err := f.CreateEndpoint(ctx, fabric.EndpointSpec{ID: epID("e"), Network: netID("a"), IPv4: wish.Addr}); err != nil {
		t.Fatal(err)
	}
	if err := f.Join(ctx, netID("a"), epID("e"), "/var/run/docker/netns/e"); err != nil {
		t.Fatal(err)
	}
	w.processes[107] = 1
	err := f.Claim(ctx, fabric.ClaimSpec{Container: containerID("7"), Name: "c7", Network: netID("a"), Pid: 107, Hostname: "h7",
		Hosts: []fabric.HostLine{{Addr: wish.Addr, Names: []string{"h7"}}}})
	if want := "claim the address of container c7: the address is taken: container c2 as a guest of c1 holds it; remove that container or choose another --ip"; err == nil || err.Error() != want {
		t.Fatalf("another container has the guests' address, or: %v", err)
	}
	for _, err := range []error{f.Leave(ctx, epID("e")), f.DeleteEndpoint(ctx, epID("e")), f.ReleaseAddress(ctx, p.ID, wish.Addr)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	expectHolders(t, f, "10.77.0.9: c2")
	w.startAs(f, netID("a"), wish, "f", "1", 111)
	expectHolders(t, f, "10.77.0.9: c1 c2")
	f = w.reopen()
	w.stop(f, p, "f", 111, wish.Addr)
	if err := f.Release(ctx, containerID("1")); err != nil {
		t.Fatal(err)
	}
	expectHolders(t, f, "10.77.0.9: c2")
	delete(w.processes, 102)
	if err := f.Release(ctx, containerID("2")); err != nil {
		t.Fatal(err)
	}
	expectHolders(t, f)
	mustBeFree(t, f, p, wish.Addr)
}

// Docker 29 and later ask for an address by the container's name, which may be another by
// now than it was at the start.
func TestRenamedHostComesBackToItsGuests(t *testing.T) {
	w := newWorld(t)
	f := w.open()
	p := w.create(f, netID("a"), "jobs", "10.77.0.0/24")
	wish := fabric.AddressSpec{Pool: p.ID, Addr: netip.MustParseAddr("10.77.0.9"), Name: "c1"}
	w.startAs(f, netID("a"), wish, "1", "1", 101)
	if err := w.join(f, "2", "1", 102); err != nil {
		t.Fatal(err)
	}
	f.ContainerRenamed(containerID("1"), "web")
	f.ContainerRenamed(containerID("2"), "side")
	f.ContainerRenamed(containerID("3"), "stranger")
	expectHolders(t, f, "10.77.0.9: web side")
	w.stop(f, p, "1", 101, wish.Addr)
	f = w.reopen()
	if _, err := f.RequestAddress(ctx, wish); err == nil || !strings.Contains(err.Error(), "container side as a guest of web holds it") {
		t.Errorf("another container was given the address, or: %v", err)
	}
	wish.Name = "web"
	if _, err := f.RequestAddress(ctx, wish); err != nil {
		t.Fatal(err)
	}
	if err := f.CreateEndpoint(ctx, fabric.EndpointSpec{ID: epID("e"), Network: netID("a"), IPv4: wish.Addr}); err != nil {
		t.Fatal(err)
	}
	if err := f.Join(ctx, netID("a"), epID("e"), "/var/run/docker/netns/e"); err != nil {
		t.Fatal(err)
	}
	w.processes[111] = 1
	err := f.Claim(ctx, fabric.ClaimSpec{Container: containerID("1"), Name: "web", Network: netID("a"), Pid: 111, Hostname: "h1",
		Hosts: []fabric.HostLine{{Addr: wish.Addr, Names: []string{"h1"}}}})
	if err != nil {
		t.Fatal(err)
	}
	expectHolders(t, f, "10.77.0.9: web side")
}

// Of two addresses, one is fixed; the guests keep both.
func TestHostComesBackToOneOfTwoAddresses(t *testing.T) {
	w := newWorld(t)
	f := w.open()
	four, six := netip.MustParsePrefix("10.77.0.0/24"), netip.MustParsePrefix("fd00:77::/64")
	err := f.CreateNetwork(ctx, fabric.NetworkSpec{ID: netID("a"), Subnets: []fabric.Subnet{{Subnet: four}, {Subnet: six}}})
	if err != nil {
		t.Fatal(err)
	}
	connect := func(ep, v4, v6 string, pid int) {
		t.Helper()
		spec := fabric.EndpointSpec{ID: epID(ep), Network: netID("a"), IPv4: netip.MustParseAddr(v4), IPv6: netip.MustParseAddr(v6)}
		if err := f.CreateEndpoint(ctx, spec); err != nil {
			t.Fatal(err)
		}
		if err := f.Join(ctx, netID("a"), epID(ep), "/var/run/docker/netns/"+ep); err != nil {
			t.Fatal(err)
		}
		w.processes[pid] = 1
		claim := fabric.ClaimSpec{Container: containerID("1"), Name: "c1", Network: netID("a"), Pid: pid, Hostname: "h",
			Hosts: []fabric.HostLine{{Addr: spec.IPv4, Names: []string{"h"}}, {Addr: spec.IPv6, Names: []string{"h"}}}}
		if err := f.Claim(ctx, claim); err != nil {
			t.Fatal(err)
		}
	}
	connect("1", "10.77.0.9", "fd00:77::9", 101)
	if err := w.join(f, "2", "1", 102); err != nil {
		t.Fatal(err)
	}
	delete(w.processes, 101)
	for _, err := range []error{f.Leave(ctx, epID("1")), f.DeleteEndpoint(ctx, epID("1"))} {
		if err != nil {
			t.Fatal(err)
		}
	}
	connect("3", "10.77.0.9", "fd00:77::a", 103)
	f = w.reopen()
	expectHolders(t, f, "invalid IP: c2", "10.77.0.9: c1 c2")
	err = f.CreateEndpoint(ctx, fabric.EndpointSpec{ID: epID("4"), Network: netID("a"), IPv4: netip.MustParseAddr("10.77.0.9")})
	if !errors.Is(err, fabric.ErrAddressTaken) {
		t.Errorf("the address of a live container: %v", err)
	}
	delete(w.processes, 102)
	if err := pass(ctx, f); err != nil {
		t.Fatal(err)
	}
	expectHolders(t, f, "10.77.0.9: c1")
}

// The runtime's word that a guest is gone may be lost, as may Docker's calls.
func TestGuestsThatEndUnseen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		f := w.open()
		p := w.create(f, netID("a"), "jobs", "10.77.0.0/24")
		a, b := w.start(f, netID("a"), p, "1", 101), w.start(f, netID("a"), p, "2", 102)
		for _, err := range []error{w.join(f, "3", "1", 103), w.join(f, "4", "2", 104)} {
			if err != nil {
				t.Fatal(err)
			}
		}
		w.stop(f, p, "1", 101, a) // a guest survives, with Docker's knowledge
		delete(w.processes, 102)  // one survives, and Docker has told nothing
		delete(w.endpoints, epID("2"))
		past(t, f)
		expectHolders(t, f, "10.77.0.2: c3", "10.77.0.3: c4")
		mustBeTaken(t, f, p, a)
		mustBeTaken(t, f, p, b)
		if err := f.DeleteNetwork(ctx, netID("a")); err != nil {
			t.Fatal(err)
		}
		if len(w.segments) != 1 {
			t.Fatal("the namespace went while guests live in it")
		}
		f = w.reopen()
		delete(w.processes, 103)
		delete(w.processes, 104)
		w.networks = nil
		past(t, f)
		if len(w.segments) != 0 || len(f.View().Networks) != 0 || len(w.sandboxes) != 0 {
			t.Errorf("left behind: %v %v %v", w.segments, f.View().Networks, w.sandboxes)
		}
	})
}

func TestGuestOfNobodyIsRefused(t *testing.T) {
	w := newWorld(t)
	f := w.open()
	p := w.create(f, netID("a"), "jobs", "10.77.0.0/24")
	a := w.start(f, netID("a"), p, "1", 101)
	if err := w.join(f, "2", "1", 102); err != nil {
		t.Fatal(err)
	}
	w.stop(f, p, "1", 101, a)
	for host, why := range map[string]string{"1": "it has ended", "9": "it was never there"} {
		err := w.join(f, "3", host, 103)
		want := "share the address of container " + containerID(host).Short() + ": this network has no such endpoint for it; start that container, then container c3"
		if !errors.Is(err, fabric.ErrNoEndpoint) || err.Error() != want {
			t.Errorf("%s: %v, want %s", why, err, want)
		}
	}
	expectHolders(t, f, "10.77.0.2: c2")
}

// A hosts file may be written to by who shares it. It does not lead to the endpoint of
// another container that has ended, and that Docker has not deleted yet.
func TestEndpointOfAnotherIsNotClaimed(t *testing.T) {
	w := newWorld(t)
	f := w.open()
	p := w.create(f, netID("a"), "jobs", "10.77.0.0/24")
	others := w.start(f, netID("a"), p, "1", 101)
	delete(w.processes, 101)
	got, err := f.RequestAddress(ctx, fabric.AddressSpec{Pool: p.ID})
	if err != nil {
		t.Fatal(err)
	}
	own := got.Addr()
	if err := f.CreateEndpoint(ctx, fabric.EndpointSpec{ID: epID("2"), Network: netID("a"), IPv4: own}); err != nil {
		t.Fatal(err)
	}
	if err := f.Join(ctx, netID("a"), epID("2"), "/var/run/docker/netns/2"); err != nil {
		t.Fatal(err)
	}
	w.processes[102] = 1
	err = f.Claim(ctx, fabric.ClaimSpec{Container: containerID("2"), Name: "c2", Network: netID("a"), Pid: 102, Hostname: "h2",
		Hosts: []fabric.HostLine{{Addr: own, Names: []string{"h2"}}, {Addr: others, Names: []string{"h2"}}}})
	if err != nil {
		t.Fatal(err)
	}
	expectHolders(t, f, others.String()+": c1", own.String()+": c2")
}
