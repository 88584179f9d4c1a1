package main

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestSources(t *testing.T) {
	got, err := parseSources("3 10.77.0.3 10.77.0.4 10.77.0.5", 3)
	want := []netip.Addr{netip.MustParseAddr("10.77.0.3"), netip.MustParseAddr("10.77.0.4"), netip.MustParseAddr("10.77.0.5")}
	if err != nil || !cmp.Equal(got, want, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })) {
		t.Errorf("%v, %v; want %v", got, err, want)
	}
	for _, line := range []string{
		"",
		"2 10.77.0.3 10.77.0.4",
		"3 10.77.0.3 10.77.0.4",
		"3 10.77.0.3 10.77.0.4 10.77.0.4",
		"3 10.77.0.3 10.77.0.4 here",
		"probe collect: 2 of 3 reported",
	} {
		if got, err := parseSources(line, 3); err == nil {
			t.Errorf("%q is taken for three containers at %v", line, got)
		}
	}
}
