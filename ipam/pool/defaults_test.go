package pool_test

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/particle-net/particle/ipam/pool"
)

var (
	v4cut = pool.Cut{Base: netip.MustParsePrefix("10.128.0.0/9"), Bits: 20}
	v6cut = pool.Cut{Base: netip.MustParsePrefix("fd9e:2f5c:e1d7::/48"), Bits: 64}
)

func nobody(netip.Prefix) bool { return false }

func TestDefaultsGoRound(t *testing.T) {
	for _, c := range []struct {
		v6                  bool
		base                netip.Prefix
		count               int
		first, second, last string
	}{
		{false, v4cut.Base, 2048, "10.128.0.0/20", "10.128.16.0/20", "10.255.240.0/20"},
		{true, v6cut.Base, 65536, "fd9e:2f5c:e1d7::/64", "fd9e:2f5c:e1d7:1::/64", "fd9e:2f5c:e1d7:ffff::/64"},
	} {
		d, err := pool.NewDefaults(v4cut, v6cut)
		if err != nil {
			t.Fatal(err)
		}
		seen := map[netip.Prefix]bool{}
		var got []netip.Prefix
		for range c.count {
			p, err := d.Next(c.v6, nobody)
			if err != nil {
				t.Fatal(err)
			}
			if seen[p] || !c.base.Contains(p.Addr()) || p != p.Masked() {
				t.Fatalf("%s is no new subnet of %s", p, c.base)
			}
			seen[p] = true
			got = append(got, p)
		}
		if got[0].String() != c.first || got[1].String() != c.second || got[c.count-1].String() != c.last {
			t.Errorf("starts %s, %s and ends %s", got[0], got[1], got[c.count-1])
		}
		if p, err := d.Next(c.v6, nobody); err != nil || p != got[0] {
			t.Errorf("after the last comes %s, %v, want the first again", p, err)
		}
	}
}

// Docker refuses what overlaps a host route, holds it while it asks again, and
// releases all refused subnets at the end.
func TestDefaultsWithARefusingDocker(t *testing.T) {
	d, err := pool.NewDefaults(v4cut, v6cut)
	if err != nil {
		t.Fatal(err)
	}
	route := netip.MustParsePrefix("10.128.0.0/14")
	choose := func() (netip.Prefix, int) {
		refused := map[netip.Prefix]bool{}
		for asked := 1; ; asked++ {
			p, err := d.Next(false, func(p netip.Prefix) bool { return refused[p] })
			if err != nil {
				t.Fatal(err)
			}
			if !route.Overlaps(p) {
				return p, asked
			}
			refused[p] = true
		}
	}
	one, asked := choose()
	if one.String() != "10.132.0.0/20" || asked != 65 {
		t.Errorf("first choice %s after %d questions", one, asked)
	}
	if two, asked := choose(); two.String() != "10.132.16.0/20" || asked != 1 {
		t.Errorf("second choice %s after %d questions: refused subnets were offered again", two, asked)
	}
}

func TestDefaultsSkipWhatIsInUse(t *testing.T) {
	d, err := pool.NewDefaults(pool.Cut{Base: netip.MustParsePrefix("10.0.0.0/30"), Bits: 32}, pool.Cut{})
	if err != nil {
		t.Fatal(err)
	}
	calls := 0
	onlyThird := func(p netip.Prefix) bool { calls++; return p.String() != "10.0.0.2/32" }
	for range 2 {
		if p, err := d.Next(false, onlyThird); err != nil || p.String() != "10.0.0.2/32" {
			t.Errorf("Next = %s, %v", p, err)
		}
	}
	calls = 0
	if _, err := d.Next(false, func(netip.Prefix) bool { calls++; return true }); !errors.Is(err, pool.ErrNoSubnet) || calls != 4 {
		t.Errorf("with all in use: %v after %d questions", err, calls)
	}
	if _, err := d.Next(true, nobody); !errors.Is(err, pool.ErrNoSubnet) {
		t.Errorf("without an IPv6 base: %v", err)
	}
}

func TestNewDefaultsRefuses(t *testing.T) {
	prefix := netip.MustParsePrefix
	for name, cuts := range map[string][2]pool.Cut{
		"families exchanged":       {v6cut, v4cut},
		"subnet wider than base":   {{Base: prefix("10.0.0.0/16"), Bits: 8}, v6cut},
		"longer than an address":   {{Base: prefix("10.0.0.0/30"), Bits: 33}, v6cut},
		"more than can be walked":  {v4cut, {Base: prefix("fd00::/8"), Bits: 64}},
		"base without a length":    {{Bits: 20}, v6cut},
		"IPv4 written as IPv6":     {v4cut, {Base: prefix("::ffff:10.0.0.0/112"), Bits: 120}},
		"IPv4 as IPv6 in IPv4 cut": {{Base: prefix("::ffff:10.0.0.0/112"), Bits: 120}, v6cut},
	} {
		if _, err := pool.NewDefaults(cuts[0], cuts[1]); !errors.Is(err, pool.ErrConfig) {
			t.Errorf("%s: NewDefaults: %v, want ErrConfig", name, err)
		}
	}
}
