// Package blocks holds the arithmetic of a shared network: how its subnets are
// cut into blocks, which addresses the network keeps for itself, and which VNI
// and which block to try first. It is pure computation, the same for every store,
// so that two stores never read one record differently.
package blocks

import (
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"

	"github.com/particle-net/particle/control"
	"github.com/particle-net/particle/topology"
)

// LeastVNI is the first VNI that is chosen for a user who names none. Those
// below are left to people and to hosts that are in no cluster.
const LeastVNI topology.VNI = 1 << 20

// Check says what is wrong with a network's record, if anything: an id that
// could not be a key, a VNI out of range, no subnet, subnets that overlap, or
// blocks that are no proper part of their range.
func Check(n control.Network) error {
	if _, err := topology.ParseSharedID(string(n.ID)); err != nil {
		return err
	}
	if n.VNI > topology.MaxVNI {
		return fmt.Errorf("VNI %d is not from 1 to %d", n.VNI, topology.MaxVNI)
	}
	for i, s := range n.Subnets {
		r := Range(s)
		switch {
		case !s.Prefix.IsValid() || s.Prefix != s.Prefix.Masked():
			return fmt.Errorf("%s is no subnet", s.Prefix)
		case r != r.Masked() || r.Bits() < s.Prefix.Bits() || !s.Prefix.Contains(r.Addr()):
			return fmt.Errorf("the range %s is not in the subnet %s", r, s.Prefix)
		case s.Block < r.Bits() || s.Block >= r.Addr().BitLen():
			return fmt.Errorf("blocks of /%d are not from /%d to /%d, as the range %s needs", s.Block, r.Bits(), r.Addr().BitLen()-1, r)
		}
		for _, t := range n.Subnets[:i] {
			if t.Prefix.Overlaps(s.Prefix) {
				return fmt.Errorf("the subnets %s and %s overlap", t.Prefix, s.Prefix)
			}
		}
	}
	return nil
}

// Range is what blocks of the subnet are cut from.
func Range(s control.Subnet) netip.Prefix {
	if s.Range.IsValid() {
		return s.Range
	}
	return s.Prefix
}

// Of is the network's subnet that holds the address.
func Of(n control.Network, addr netip.Addr) (s control.Subnet, ok bool) {
	i := slices.IndexFunc(n.Subnets, func(s control.Subnet) bool { return s.Prefix.Contains(addr) })
	if i < 0 {
		return control.Subnet{}, false
	}
	return n.Subnets[i], true
}

// Covering is the block that holds the address; ok is false if none can.
func Covering(s control.Subnet, addr netip.Addr) (block netip.Prefix, ok bool) {
	if !Range(s).Contains(addr) {
		return netip.Prefix{}, false
	}
	return netip.PrefixFrom(addr, s.Block).Masked(), true
}

// Fits says what is wrong with a claim of the network, if anything: it is
// neither a whole block of a subnet nor one address in it.
func Fits(n control.Network, p netip.Prefix) error {
	s, ok := Of(n, p.Addr())
	switch {
	case !p.IsValid() || !ok:
		return fmt.Errorf("%s is in none of the network's subnets", p)
	case p.IsSingleIP():
		return nil
	case p != p.Masked() || p.Bits() != s.Block || !Range(s).Contains(p.Addr()):
		return fmt.Errorf("%s is no block of %s, whose blocks are /%d", p, Range(s), s.Block)
	}
	return nil
}

// Reserved says for what the network keeps the address; empty if it does not.
func Reserved(s control.Subnet, addr netip.Addr) string {
	if addr == s.Gateway {
		return "it is the gateway"
	}
	for name, aux := range s.Aux {
		if addr == aux {
			return fmt.Sprintf("it is the auxiliary address %q", name)
		}
	}
	// As on any link: /31 and /127 have no addresses to spare (RFC 3021, RFC
	// 6164), and IPv6 knows no broadcast.
	if s.Prefix.Bits() >= addr.BitLen()-1 {
		return ""
	}
	switch {
	case addr == s.Prefix.Addr():
		return "it is the first of the subnet"
	case addr.Is4() && addr == Last(s.Prefix):
		return "it is the last of the subnet"
	}
	return ""
}

// Last is the highest address of a prefix.
func Last(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < 8*len(b); i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	last, _ := netip.AddrFromSlice(b)
	return last
}

// Unused lists, in order, the first blocks of the subnet that used does not
// know, at most limit of them. It asks used once for each block it passes, so it
// takes as long as there are used ones.
func Unused(s control.Subnet, limit int, used func(netip.Prefix) bool) []netip.Prefix {
	var out []netip.Prefix
	r := Range(s)
	for b := netip.PrefixFrom(r.Addr(), s.Block); len(out) < limit; {
		if !used(b) {
			out = append(out, b)
		}
		next := Last(b).Next()
		if !r.Contains(next) {
			break
		}
		b = netip.PrefixFrom(next, s.Block)
	}
	return out
}

// FirstVNI is where the search for a network's VNI begins. It comes from the id,
// so that hosts which ask at the same time hardly ever meet.
func FirstVNI(id topology.SharedID) topology.VNI {
	h := fnv.New64a()
	h.Write([]byte(id))
	sum := h.Sum(nil)
	return LeastVNI + topology.VNI(binary.BigEndian.Uint64(sum)%uint64(topology.MaxVNI-LeastVNI+1))
}

// NextVNI is the candidate after v; after the last comes the first.
func NextVNI(v topology.VNI) topology.VNI {
	if v >= topology.MaxVNI {
		return LeastVNI
	}
	return v + 1
}

// SameShape says whether two records are of networks that hosts would make
// alike: what a repeated registration is compared by.
func SameShape(a, b control.Network) bool {
	return a.ID == b.ID && a.MTU == b.MTU && a.Internal == b.Internal && a.Creator == b.Creator &&
		slices.EqualFunc(a.Subnets, b.Subnets, func(x, y control.Subnet) bool {
			return x.Prefix == y.Prefix && Range(x) == Range(y) && x.Gateway == y.Gateway && x.Block == y.Block
		})
}
