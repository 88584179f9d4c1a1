package pool

import (
	"fmt"
	"net/netip"
)

// Cut is a prefix to be cut into subnets of equal size.
type Cut struct {
	Base netip.Prefix // host bits are ignored
	Bits int          // length of each subnet's prefix, at most 20 more than Base's
}

// maxCutBits bounds the search of Next: a million subnets.
const maxCutBits = 20

// Defaults chooses a subnet where the user names none. It is not safe for
// concurrent use: the caller locks.
//
// Docker compares a subnet it did not choose with the host's routes and name
// servers and asks again until one does not overlap; only then does it release
// the rejected ones. Defaults therefore goes round: it returns to a subnet only
// when it has passed all the others, so rejected subnets are not offered again
// at once, nor is the subnet of a network just removed.
type Defaults struct {
	v4, v6 wheel
}

type wheel struct {
	Cut
	count, next int
}

// NewDefaults returns a chooser that starts with the first subnet of each cut.
// A zero Cut means that its family has no default subnets.
func NewDefaults(v4, v6 Cut) (*Defaults, error) {
	d := &Defaults{}
	for _, c := range []struct {
		cut  Cut
		is4  bool
		into *wheel
	}{{v4, true, &d.v4}, {v6, false, &d.v6}} {
		if c.cut == (Cut{}) {
			continue
		}
		base, n := c.cut.Base.Masked(), c.cut.Bits-c.cut.Base.Bits()
		if !base.IsValid() || base.Addr().Is4() != c.is4 || base.Addr().Is4In6() ||
			n < 0 || n > maxCutBits || c.cut.Bits > base.Addr().BitLen() {
			return nil, refuse("open default subnets", c.cut.Base.String(),
				fmt.Errorf("%w: cannot be cut into subnets of length %d", ErrConfig, c.cut.Bits))
		}
		*c.into = wheel{Cut: Cut{Base: base, Bits: c.cut.Bits}, count: 1 << n}
	}
	return d, nil
}

// Next returns the next subnet for which inUse is false. It calls inUse at
// most once for each subnet, and fails with ErrNoSubnet if all are in use.
func (d *Defaults) Next(v6 bool, inUse func(netip.Prefix) bool) (netip.Prefix, error) {
	w := &d.v4
	if v6 {
		w = &d.v6
	}
	for range w.count {
		subnet := cut(w.Base, w.Bits, w.next)
		w.next = (w.next + 1) % w.count
		if !inUse(subnet) {
			return subnet, nil
		}
	}
	on := "of " + w.Base.String()
	if w.count == 0 {
		on = map[bool]string{false: "for IPv4", true: "for IPv6"}[v6]
	}
	return netip.Prefix{}, refuse("choose subnet", on, ErrNoSubnet)
}
