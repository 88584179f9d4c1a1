package fabric_test

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/particle-net/particle/fabric"
	"github.com/particle-net/particle/ipam/pool"
)

// past lets everything that may be in the making count as broken off.
func past(t *testing.T, f *fabric.Fabric) {
	t.Helper()
	for range 2 { // the first pass only suspects
		if err := pass(ctx, f); err != nil {
			t.Fatal(err)
		}
		<-time.After(2 * time.Minute) // of the bubble's clock
	}
	if err := pass(ctx, f); err != nil {
		t.Fatal(err)
	}
}

func TestKillOfThePluginKeepsWhatLives(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		f := w.open()
		p := w.create(f, netID("a"), "jobs", "10.77.0.0/24")
		live, dead := w.start(f, netID("a"), p, "1", 101), w.start(f, netID("a"), p, "2", 102)
		// The second container ends while nobody listens.
		w.crash()
		delete(w.processes, 102)
		delete(w.endpoints, epID("2"))
		f = w.open()
		if _, known := w.segments[netID("a")]; !known {
			t.Error("the network was not rebuilt")
		}
		past(t, f)
		view := f.View().Networks[0]
		if len(view.Endpoints) != 1 || view.Endpoints[0].IPv4 != live {
			t.Errorf("endpoints: %+v", view.Endpoints)
		}
		if used := view.Pools[0].Used; used != 2 {
			t.Errorf("%d addresses are held, want the gateway's and the live container's", used)
		}
		if _, err := f.RequestAddress(ctx, fabric.AddressSpec{Pool: p.ID, Addr: live}); err == nil {
			t.Error("the live container's address was given out")
		}
		if _, err := f.RequestAddress(ctx, fabric.AddressSpec{Pool: p.ID, Addr: dead}); err != nil {
			t.Errorf("the dead container's address is not free: %v", err)
		}
	})
}

// After a restart Docker may delete the endpoints of containers that live.
func TestAddressOfALiveProcessStaysHeld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		f := w.open()
		p := w.create(f, netID("a"), "jobs", "10.77.0.0/24")
		a := w.start(f, netID("a"), p, "1", 101)
		for _, err := range []error{f.Leave(ctx, epID("1")), f.DeleteEndpoint(ctx, epID("1")), f.ReleaseAddress(ctx, p.ID, a)} {
			if err != nil {
				t.Fatal(err)
			}
		}
		if _, err := f.RequestAddress(ctx, fabric.AddressSpec{Pool: p.ID, Addr: a}); err == nil {
			t.Fatal("given out while its process lives")
		}
		if err := f.DeleteNetwork(ctx, netID("a")); err != nil {
			t.Fatal(err)
		}
		if len(w.segments) != 1 {
			t.Fatal("the namespace went while a process lives in it")
		}
		w.networks = nil
		w.create(f, netID("b"), "jobs", "10.77.0.0/24")
		if place, _, err := f.Place(ctx, []fabric.Ref{{Name: "jobs"}}, false); err != nil || place.Network != netID("b") {
			t.Fatalf("the next network of the name: placed on %s, %v", place.Network.Short(), err)
		}
		f = w.reopen()
		delete(w.endpoints, epID("1"))
		delete(w.processes, 101)
		if err := pass(ctx, f); err != nil {
			t.Fatal(err)
		}
		if _, there := w.segments[netID("a")]; there || len(f.View().Networks) != 1 || len(w.sandboxes) != 0 {
			t.Errorf("left behind: %v %v", w.segments, w.sandboxes)
		}
	})
}

// A lease stays held from DeleteEndpoint until ReleaseAddress: another container
// may start between the two.
func TestReleaseOfAnAddressMayComeLate(t *testing.T) {
	w := newWorld(t)
	f := w.open()
	p := w.create(f, netID("a"), "jobs", "10.77.0.0/30") // the gateway and one more
	a := w.start(f, netID("a"), p, "1", 101)
	delete(w.processes, 101)
	if err := f.DeleteEndpoint(ctx, epID("1")); err != nil {
		t.Fatal(err)
	}
	if got, err := f.RequestAddress(ctx, fabric.AddressSpec{Pool: p.ID}); err == nil {
		t.Fatalf("%s was given out before Docker released it", got)
	}
	if err := f.ReleaseAddress(ctx, p.ID, a); err != nil {
		t.Fatal(err)
	}
	if got, err := f.RequestAddress(ctx, fabric.AddressSpec{Pool: p.ID}); err != nil || got.Addr() != a {
		t.Fatalf("%v, %v", got, err)
	}
}

// Docker broke off after each of the calls that make an endpoint.
func TestBrokenOffStartsLeaveNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		f := w.open()
		p := w.create(f, netID("a"), "jobs", "10.77.0.0/24")
		for i, c := range []string{"1", "2", "3"} {
			a, err := f.RequestAddress(ctx, fabric.AddressSpec{Pool: p.ID})
			if err != nil {
				t.Fatal(err)
			}
			if i > 0 {
				if err := f.CreateEndpoint(ctx, fabric.EndpointSpec{ID: epID(c), Network: netID("a"), IPv4: a.Addr()}); err != nil {
					t.Fatal(err)
				}
			}
			if i > 1 {
				if err := f.Join(ctx, netID("a"), epID(c), "/var/run/docker/netns/"+c); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := pass(ctx, f); err != nil {
			t.Fatal(err)
		}
		if used := f.View().Networks[0].Pools[0].Used; used != 4 {
			t.Errorf("%d addresses held; what may be in the making was swept", used)
		}
		w.resolvConf[containerID("9")] = true
		past(t, f)
		view := f.View().Networks[0]
		if len(view.Endpoints) != 0 || view.Pools[0].Used != 1 || len(w.sandboxes) != 0 || len(w.resolvConf) != 0 {
			t.Errorf("left behind: %+v, %d addresses, %v, %v", view.Endpoints, view.Pools[0].Used, w.sandboxes, w.resolvConf)
		}
	})
}

// Docker ignores a failed delete and forgets the network.
func TestNetworkThatDockerForgotGoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		f := w.open()
		w.create(f, netID("a"), "jobs", "10.77.0.0/24")
		w.networks = nil
		w.engineErr = errors.New("daemon is booting")
		<-time.After(2 * time.Minute) // of the bubble's clock
		if err := pass(ctx, f); err == nil || len(w.segments) != 1 {
			t.Fatalf("swept on Docker's silence: %v", err)
		}
		w.engineErr = nil
		if err := pass(ctx, f); err != nil || len(w.segments) != 0 {
			t.Fatalf("%v, left behind: %v", err, w.segments)
		}
	})
}

// Docker asked for a pool and broke off before it made the network.
func TestPoolWithoutNetworkGoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		f := w.open()
		bound := w.create(f, netID("a"), "jobs", "10.77.0.0/24")
		orphan, err := f.RequestPool(ctx, fabric.PoolSpec{Subnet: netip.MustParsePrefix("10.77.0.0/24")})
		if err != nil {
			t.Fatal(err)
		}
		past(t, f)
		if _, err := f.RequestAddress(ctx, fabric.AddressSpec{Pool: orphan.ID}); !errors.Is(err, fabric.ErrNoPool) {
			t.Errorf("the orphan is still there: %v", err)
		}
		f = w.reopen()
		if _, err := f.RequestAddress(ctx, fabric.AddressSpec{Pool: bound.ID}); err != nil {
			t.Errorf("the network's own pool went with it: %v", err)
		}
	})
}

func TestDriftIsRepairedAndCounted(t *testing.T) {
	w := newWorld(t)
	f := w.open()
	w.create(f, netID("a"), "jobs", "10.77.0.0/24")
	before := f.View().Repairs
	delete(w.segments, netID("a"))
	w.engineErr = errors.New("Docker is asked")
	if err := f.Repair(ctx); err != nil || len(w.segments) != 1 {
		t.Fatal(err, w.segments)
	}
	if got := f.View().Repairs - before; got != 1 {
		t.Errorf("%d repairs counted", got)
	}
}

func TestOrderOfReleaseOutlivesARestart(t *testing.T) {
	w := newWorld(t)
	f := w.open()
	p := w.create(f, netID("a"), "jobs", "10.77.0.0/29") // .1 is the gateway's, .2 to .6 are left
	var held []netip.Addr
	for range 5 {
		a, err := f.RequestAddress(ctx, fabric.AddressSpec{Pool: p.ID})
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, a.Addr())
	}
	order := []int{3, 0, 4, 1, 2}
	for _, i := range order {
		if err := f.ReleaseAddress(ctx, p.ID, held[i]); err != nil {
			t.Fatal(err)
		}
	}
	f = w.reopen()
	for _, i := range order {
		if a, err := f.RequestAddress(ctx, fabric.AddressSpec{Pool: p.ID}); err != nil || a.Addr() != held[i] {
			t.Fatalf("got %v (%v), want %s, the one released longest ago", a, err, held[i])
		}
	}
}

// After a crash Docker may have forgotten an endpoint without telling us, and
// gives its address to the next container.
func TestAddressOfADeadHolderGoesToTheNext(t *testing.T) {
	w := newWorld(t)
	f := w.open()
	id := netID("a")
	subnet := netip.MustParsePrefix("172.20.0.0/16") // from Docker's own IPAM
	if err := f.CreateNetwork(ctx, fabric.NetworkSpec{ID: id, Subnets: []fabric.Subnet{{Subnet: subnet}}}); err != nil {
		t.Fatal(err)
	}
	a := netip.MustParseAddr("172.20.0.2")
	for i, c := range []string{"1", "2"} {
		if err := f.CreateEndpoint(ctx, fabric.EndpointSpec{ID: epID(c), Network: id, IPv4: a}); err != nil {
			t.Fatalf("container %d: %v", i+1, err)
		}
		if err := f.Join(ctx, id, epID(c), "/var/run/docker/netns/"+c); err != nil {
			t.Fatal(err)
		}
		w.processes[100+i] = 7
		claim := fabric.ClaimSpec{Container: containerID(c), Name: "c" + c, Network: id, Pid: 100 + i, Hostname: "h",
			Hosts: []fabric.HostLine{{Addr: a, Names: []string{"h"}}}}
		if err := f.Claim(ctx, claim); err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			delete(w.processes, 100) // and no call from Docker
		}
	}
	if got := f.View().Networks[0].Endpoints; len(got) != 1 || got[0].Name != "c2" || len(w.sandboxes) != 1 {
		t.Errorf("endpoints %+v, sandboxes %v", got, w.sandboxes)
	}
	if err := f.CreateEndpoint(ctx, fabric.EndpointSpec{ID: epID("3"), Network: id, IPv4: a}); !errors.Is(err, fabric.ErrAddressTaken) {
		t.Errorf("the address of a live container: %v", err)
	}
}

// Docker accepts connections while it boots and answers them at the end.
func TestSilenceOfDockerStopsNoNetwork(t *testing.T) {
	w := newWorld(t)
	f := w.open()
	w.create(f, netID("a"), "jobs", "10.77.0.0/24")
	over, cancel := context.WithCancel(ctx)
	cancel()
	w.engineErr, w.applyErr = over.Err(), over.Err()
	if err := pass(over, f); err == nil {
		t.Error("Docker's silence is not told")
	}
	if problem := f.View().Networks[0].Problem; problem != "" {
		t.Errorf("the network counts as broken: %s", problem)
	}
	// A real problem is tried again when a container comes.
	w.engineErr, w.applyErr = nil, errKernel
	if err := pass(ctx, f); !errors.Is(err, errKernel) {
		t.Error(err)
	}
	if _, _, err := f.Place(ctx, []fabric.Ref{{Name: "jobs"}}, false); !errors.Is(err, errKernel) {
		t.Errorf("placed on a network that is not up: %v", err)
	}
	w.applyErr = nil
	if _, member, err := f.Place(ctx, []fabric.Ref{{Name: "jobs"}}, false); err != nil || !member {
		t.Errorf("not placed although all is well again: %v", err)
	}
}

// A network of another driver may have its addresses from our IPAM.
func TestPoolOfAForeignNetworkStays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		f := w.open()
		subnet := netip.MustParsePrefix("10.77.0.0/24")
		p, err := f.RequestPool(ctx, fabric.PoolSpec{Subnet: subnet})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.RequestAddress(ctx, fabric.AddressSpec{Pool: p.ID, Gateway: true}); err != nil {
			t.Fatal(err)
		}
		w.networks = append(w.networks, fabric.EngineNetwork{ID: netID("f"), Name: "bridged", Pools: []netip.Prefix{subnet}})
		// One of ours with the same subnet, but with Docker's own IPAM.
		if err := f.CreateNetwork(ctx, fabric.NetworkSpec{ID: netID("a"), Subnets: []fabric.Subnet{{Subnet: subnet, Gateway: netip.MustParseAddr("10.77.0.1")}}}); err != nil {
			t.Fatal(err)
		}
		w.networks = append(w.networks, fabric.EngineNetwork{ID: netID("a"), Name: "jobs", Ours: true})
		held, err := f.RequestAddress(ctx, fabric.AddressSpec{Pool: p.ID})
		if err != nil {
			t.Fatal(err)
		}
		past(t, f)
		if _, err := f.RequestAddress(ctx, fabric.AddressSpec{Pool: p.ID, Addr: held.Addr()}); !errors.Is(err, pool.ErrTaken) {
			t.Errorf("the bridged container's address: %v", err)
		}
	})
}
