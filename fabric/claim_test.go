package fabric_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/particle-net/particle/fabric"
)

// While the kernel gets a block, a container starts from what is left of the last one.
// That is no word about the new one, which is said when that is nearly used up, too.
func TestLowIsToldOfTheBlockThatComes(t *testing.T) {
	w, c, f, p := shared(t, "10.77.0.16/28")
	subnet := netip.MustParsePrefix("10.77.0.0/24")
	request := func(many int) {
		t.Helper()
		for range many {
			if _, err := f.RequestAddress(ctx, fabric.AddressSpec{Pool: p.ID}); err != nil {
				t.Fatal(err)
			}
		}
	}
	request(8)
	if len(c.low) != 1 || !f.NeedsBlock(sharedID, subnet) {
		t.Errorf("Low was called %d times with 7 of 15 left; needed: %t", len(c.low), f.NeedsBlock(sharedID, subnet))
	}
	w.applied = func(int) { request(1) }
	if err := f.SetClaims(ctx, sharedID, prefixes("10.77.0.16/28", "10.77.0.128/28")); err != nil {
		t.Fatal(err)
	}
	w.applied = nil
	if len(c.low) != 1 || f.NeedsBlock(sharedID, subnet) {
		t.Errorf("Low was called %d times, before the new block serves; needed: %t", len(c.low), f.NeedsBlock(sharedID, subnet))
	}
	request(20)
	if len(c.low) != 2 || !f.NeedsBlock(sharedID, subnet) {
		t.Errorf("Low was called %d times with one address left; needed: %t", len(c.low), f.NeedsBlock(sharedID, subnet))
	}
}

// Containers end before the cluster has come to claim another block. Those that follow
// them have it told again.
func TestLowIsToldAnewWhereNoneWasNeeded(t *testing.T) {
	_, c, f, p := shared(t, "10.77.0.16/28")
	var last netip.Prefix
	for i := range 9 {
		a, err := f.RequestAddress(ctx, fabric.AddressSpec{Pool: p.ID})
		if err != nil {
			t.Fatal(err)
		}
		if last = a; i == 7 && len(c.low) != 1 {
			t.Errorf("Low was called %d times with 7 of 15 left", len(c.low))
		}
	}
	for _, a := range []netip.Addr{last.Addr(), last.Addr().Prev()} {
		if err := f.ReleaseAddress(ctx, p.ID, a); err != nil {
			t.Fatal(err)
		}
	}
	if f.NeedsBlock(sharedID, netip.MustParsePrefix("10.77.0.0/24")) {
		t.Error("8 of 15 are left, and another block is needed")
	}
	if _, err := f.RequestAddress(ctx, fabric.AddressSpec{Pool: p.ID}); err != nil || len(c.low) != 2 {
		t.Errorf("%v; Low was called %d times", err, len(c.low))
	}
}

// A block that the kernel does not have is handed out by nobody, however often it is
// tried, and serves as soon as it is there.
func TestBlockThatTheKernelRefuses(t *testing.T) {
	w, _, f, p := shared(t, "10.77.0.16/30")
	for range 3 {
		if _, err := f.RequestAddress(ctx, fabric.AddressSpec{Pool: p.ID}); err != nil {
			t.Fatal(err)
		}
	}
	w.applyErr = errKernel
	for range 2 {
		if err := f.SetClaims(ctx, sharedID, prefixes("10.77.0.16/30", "10.77.0.128/30")); !errors.Is(err, errKernel) {
			t.Errorf("got %v", err)
		}
		if a, err := f.RequestAddress(ctx, fabric.AddressSpec{Pool: p.ID}); err == nil {
			t.Errorf("%s is handed out, and is not local", a)
		}
	}
	w.applyErr = nil
	// The caller's time is over before the kernel has the block.
	given, over := context.WithCancel(ctx)
	w.applied = func(int) { over(); w.applyErr = given.Err() }
	if err := f.SetClaims(given, sharedID, prefixes("10.77.0.16/30", "10.77.0.128/30", "10.77.0.132/30")); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	w.applied, w.applyErr = nil, nil
	if err := f.SetClaims(ctx, sharedID, prefixes("10.77.0.16/30", "10.77.0.128/30", "10.77.0.132/30")); err != nil {
		t.Fatal(err)
	}
	for range 6 {
		if _, err := f.RequestAddress(ctx, fabric.AddressSpec{Pool: p.ID}); err != nil {
			t.Error(err)
		}
	}
}

// A block that this host has lost is another's, also as long as that cannot be written
// down. It is as soon as it can, whoever comes first.
func TestLostBlockWhileTheDiskIsFull(t *testing.T) {
	for name, again := range map[string]func(f *fabric.Fabric) error{
		"told again": func(f *fabric.Fabric) error {
			return f.SetClaims(ctx, sharedID, prefixes("10.77.0.16/30"))
		},
		"found": func(f *fabric.Fabric) error { return pass(ctx, f) },
	} {
		t.Run(name, func(t *testing.T) {
			w, _, f, p := shared(t, "10.77.0.16/30", "10.77.0.128/28")
			var kept netip.Addr
			for i := range 4 { // the last one of the block that is lost
				kept = w.start(f, netID("a"), p, fmt.Sprint(i), 100+i)
			}
			full := func(when string) {
				t.Helper()
				if a, err := f.RequestAddress(ctx, fabric.AddressSpec{Pool: p.ID}); err == nil {
					t.Errorf("%s: got %s", when, a)
				}
				if got := w.pools(netID("a")); got != "10.77.0.16/30 10.77.0.128/28" {
					t.Errorf("%s: local: %s; containers have addresses of both", when, got)
				}
			}
			w.diskErr = errDisk
			for range 2 {
				err := f.SetClaims(ctx, sharedID, prefixes("10.77.0.16/30", "10.77.0.32/30"))
				if !errors.Is(err, errDisk) {
					t.Errorf("got %v", err)
				}
				full("not written")
				if err := pass(ctx, f); !errors.Is(err, errDisk) {
					t.Errorf("got %v", err)
				}
				full("not written, and repaired")
				if err := f.SetClaims(ctx, sharedID, prefixes("10.77.0.16/30")); !errors.Is(err, errDisk) { // or the next block would be claimed
					t.Errorf("what is not written is well: %v", err)
				}
			}
			for range 2 {
				if got := f.Shared()[0].Claims; !slices.Equal(got, prefixes("10.77.0.16/30")) {
					t.Errorf("claims %v", got)
				}
				f = w.reopen()
				full("not written, and the plugin killed")
			}
			w.diskErr = nil
			if err := again(f); err != nil {
				t.Fatal(err)
			}
			f = w.reopen()
			full("after a restart")
			if got := f.Shared()[0]; !slices.Equal(got.Claims, prefixes("10.77.0.16/30")) || !slices.Equal(got.Leaving, prefixes("10.77.0.128/28")) {
				t.Errorf("claims %v, leaving %v", got.Claims, got.Leaving)
			}
			w.stop(f, p, "3", 103, kept)
			if err := pass(ctx, f); err != nil || w.pools(netID("a")) != "10.77.0.16/30" {
				t.Errorf("%v; local: %s", err, w.pools(netID("a")))
			}
		})
	}
}
