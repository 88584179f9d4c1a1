package fabric_test

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/particle-net/particle/fabric"
)

// A network whose guard answers system calls is nothing to the one in the kernel,
// whoever has chosen so; the runtime is told what to hold its containers to.
func TestSupervisedNetworks(t *testing.T) {
	for name, c := range map[string]struct{ host, network fabric.GuardMode }{
		"by the host":    {fabric.GuardSeccomp, ""},
		"by the network": {fabric.GuardBPF, fabric.GuardSeccomp},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.guardMode, w.ask = c.host, c.network
			f := w.open()
			pool := w.create(f, netID("a"), "jobs", "10.77.0.0/24")
			place, ok, err := f.Place(context.Background(), []fabric.Ref{{Name: "jobs"}}, false)
			if err != nil || !ok || !place.Supervised {
				t.Fatalf("placed %+v, %v, %v", place, ok, err)
			}
			if own, _, err := f.Place(context.Background(), []fabric.Ref{{Name: "jobs"}}, true); err != nil || own.Supervised {
				t.Errorf("a namespace of its own: %+v, %v", own, err)
			}
			address := w.start(f, netID("a"), pool, "1", 11)
			if id, ok := f.Supervised(containerID("1")); !ok || id.IPv4 != address || id.Slot == 0 || id.Network != netID("a") {
				t.Errorf("supervised as %+v, %v", id, ok)
			}
			f = w.reopen() // the choice is the network's, and kept
			if err := pass(context.Background(), f); err != nil {
				t.Fatal(err)
			}
			if _, ok := f.Supervised(containerID("1")); !ok || len(w.admitted) > 0 || len(w.protected) > 0 {
				t.Errorf("the guard in the kernel admits %v and protects %v", w.admitted, w.protected)
			}
		})
	}
}

// A container that comes back while a guest still has its former address is held to the one
// that it has got since.
func TestSupervisedByTheAddressOfNow(t *testing.T) {
	w := newWorld(t)
	w.guardMode = fabric.GuardSeccomp
	f := w.open()
	pool := w.create(f, netID("a"), "jobs", "10.77.0.0/24")
	before := w.start(f, netID("a"), pool, "1", 11)
	if err := w.join(f, "2", "1", 12); err != nil {
		t.Fatal(err)
	}
	w.stop(f, pool, "1", 11, before)
	now := w.startAs(f, netID("a"), fabric.AddressSpec{Pool: pool.ID}, "f", "1", 13)
	for c, want := range map[string]netip.Addr{"1": now, "2": before} {
		if id, ok := f.Supervised(containerID(c)); !ok || id.IPv4 != want || now == before {
			t.Errorf("container %s is held to %+v, %v; want %s", c, id, ok, want)
		}
	}
}

func TestOthersAreNotSupervised(t *testing.T) {
	w := newWorld(t)
	w.guardMode = fabric.GuardBPF
	f := w.open()
	p := w.create(f, netID("a"), "jobs", "10.77.0.0/24")
	w.start(f, netID("a"), p, "1", 11)
	place, _, err := f.Place(context.Background(), []fabric.Ref{{Name: "jobs"}}, false)
	if _, ok := f.Supervised(containerID("1")); ok || err != nil || place.Supervised {
		t.Errorf("supervised: %v, %+v, %v", ok, place, err)
	}
}

// Nobody is let into a shared namespace without the guard that the network must have.
func TestNoGuardNoContainer(t *testing.T) {
	for name, c := range map[string]struct {
		host, network fabric.GuardMode
		noSeccomp     error
		want          string
	}{
		"neither":              {fabric.GuardSeccomp, "", errors.New("no such call"), "guard addresses on network jobs: no such call"},
		"asked, and not there": {fabric.GuardBPF, fabric.GuardSeccomp, errors.New("no such call"), "no such call"},
		"eBPF is not in use":   {fabric.GuardSeccomp, fabric.GuardBPF, nil, "it was created with particle.guard=bpf, and this host has the guard seccomp"},
	} {
		w := newWorld(t)
		w.guardMode, w.ask, w.noSeccomp = c.host, c.network, c.noSeccomp
		f := w.open()
		w.create(f, netID("a"), "jobs", "10.77.0.0/24")
		if _, _, err := f.Place(context.Background(), []fabric.Ref{{Name: "jobs"}}, false); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
		if _, ok, err := f.Place(context.Background(), []fabric.Ref{{Name: "jobs"}}, true); err != nil || !ok {
			t.Errorf("%s: a namespace of its own: %v", name, err)
		}
	}
}
