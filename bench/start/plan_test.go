package main

import (
	"io"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// A variant that always came after the same other one would inherit its aftermath,
// such as namespaces the kernel is still destroying.
func TestEveryVariantTakesEveryTurn(t *testing.T) {
	p := plan{variants: []variant{variantHost, variantBridge, variantParticle}}
	at := map[variant]map[int]int{}
	for round := range 6 {
		order := p.order(round)
		if len(order) != 3 {
			t.Fatalf("round %d has %v", round, order)
		}
		for turn, v := range order {
			if at[v] == nil {
				at[v] = map[int]int{}
			}
			at[v][turn]++
		}
	}
	even := map[int]int{0: 2, 1: 2, 2: 2}
	want := map[variant]map[int]int{variantHost: even, variantBridge: even, variantParticle: even}
	if diff := cmp.Diff(want, at); diff != "" {
		t.Errorf("turns of each variant (-want +got):\n%s", diff)
	}
	if want := []variant{variantHost, variantBridge, variantParticle}; !cmp.Equal(p.variants, want) {
		t.Errorf("order changed the plan to %v", p.variants)
	}
}

func TestFlags(t *testing.T) {
	o, err := parseFlags([]string{"-variants", "particle, bridge"}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if want := []variant{variantHost, variantParticle, variantBridge}; !cmp.Equal(o.variants, want) {
		t.Errorf("variants %v, want %v: ratios need host mode", o.variants, want)
	}
	if o.n != 100 || o.c != 8 || o.rounds != 5 {
		t.Errorf("%d containers, %d at a time, %d rounds; want 100, 8, 5", o.n, o.c, o.rounds)
	}
	if o, err = parseFlags(nil, io.Discard); err != nil {
		t.Fatal(err)
	}
	if want := []variant{variantHost, variantBridge, variantParticle, variantOwn, variantOverlay}; !cmp.Equal(o.variants, want) {
		t.Errorf("variants %v, want %v", o.variants, want)
	}
	o, err = parseFlags([]string{"-demo", "-rounds", "3", "-variants", "overlay"}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if want := []variant{variantHost, variantBridge, variantParticle}; !cmp.Equal(o.variants, want) || o.rounds != 1 {
		t.Errorf("the demonstration has %d rounds of %v, want 1 of %v", o.rounds, o.variants, want)
	}
	for _, args := range [][]string{{"-n", "0"}, {"-c", "0"}, {"-rounds", "0"}, {"-variants", "macvlan"}, {"-variants", ""}, {"more"}} {
		if _, err := parseFlags(args, io.Discard); err == nil {
			t.Errorf("%q is taken", args)
		}
	}
}

func TestLoopbackAddressesAreDistinct(t *testing.T) {
	seen := map[string]int{}
	for i := 1; i <= 10000; i++ {
		a := loopback(i)
		if other, ok := seen[a.String()]; ok || !a.IsLoopback() {
			t.Fatalf("container %d gets %s, as %d", i, a, other)
		}
		seen[a.String()] = i
	}
}
