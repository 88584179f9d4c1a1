package pool_test

import (
	"net/netip"
	"testing"

	"github.com/particle-net/particle/ipam/pool"
)

// A pool that never runs out of fresh addresses must not remember every one.
func TestHugePoolForgets(t *testing.T) {
	p, err := pool.New(pool.Config{Subnet: netip.MustParsePrefix("fd00::/64")})
	if err != nil {
		t.Fatal(err)
	}
	var first netip.Addr
	for i := range 1<<16 + 1 {
		a, err := p.Any()
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			first = a
		} else if i == 1<<16 && a != first {
			t.Errorf("with %d waiting got %s, want %s, released longest ago", i, a, first)
		}
		p.Release(a)
	}
	if _, released := p.Snapshot(); len(released) != 1<<16 {
		t.Errorf("%d released addresses are remembered", len(released))
	}
}
