package controltest

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"slices"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/particle-net/particle/control"
	"github.com/particle-net/particle/control/blocks"
	"github.com/particle-net/particle/topology"
)

// part is what was done with one thing that can be owned: a VNI, a name, or a
// block with the addresses in it.
type part struct {
	block netip.Prefix // invalid: a VNI or a name
	known []operation
	// unknown operations may have happened at any time after their call, or never.
	unknown []operation
}

// split sorts the operations by what they were about. An operation that may have
// been about any of several things is in the part of each.
func (h *History) split(ops []operation) map[string]*part {
	parts := map[string]*part{}
	at := func(name string, block netip.Prefix) *part {
		if parts[name] == nil {
			parts[name] = &part{block: block}
		}
		return parts[name]
	}
	block := func(id topology.SharedID, p netip.Prefix) *part {
		if sub, ok := blocks.Of(h.networks[id], p.Addr()); ok {
			if b, ok := blocks.Covering(sub, p.Addr()); ok {
				p = b
			}
		}
		return at(fmt.Sprintf("block %s of network %s", p, id.Short()), p)
	}
	for _, o := range ops {
		switch o.action {
		case claimNetwork:
			if o.vni != 0 {
				at(fmt.Sprintf("VNI %06x", uint32(o.vni)), netip.Prefix{}).add(o)
				continue
			}
			// It may have any of the first VNIs that are tried.
			for range 8 {
				if o.vni == 0 {
					o.vni = blocks.FirstVNI(o.network)
				} else {
					o.vni = blocks.NextVNI(o.vni)
				}
				at(fmt.Sprintf("VNI %06x", uint32(o.vni)), netip.Prefix{}).add(o)
			}
		case nameNetwork:
			at("name "+o.name, netip.Prefix{}).add(o)
		case claimBlock:
			if o.prefix.IsValid() {
				block(o.network, o.prefix).add(o)
				continue
			}
			for _, b := range h.all(o.network, o.subnet) {
				block(o.network, b).add(o)
			}
		default:
			block(o.network, o.prefix).add(o)
		}
	}
	return parts
}

// all lists the blocks of a subnet; only the first 4096 of a large one.
func (h *History) all(id topology.SharedID, subnet netip.Prefix) []netip.Prefix {
	sub, ok := blocks.Of(h.networks[id], subnet.Addr())
	if !ok {
		return nil
	}
	return blocks.Unused(sub, 4096, func(netip.Prefix) bool { return false })
}

func (p *part) add(o operation) {
	if o.unknown() {
		p.unknown = append(p.unknown, o)
	} else {
		p.known = append(p.known, o)
	}
}

// check looks for an order. It tries without the unknown operations first: it is
// a rare history that needs one, and each doubles the orders there are.
func (p *part) check(name string) error {
	for _, ops := range [][]operation{p.known, slices.Concat(p.known, p.unknown)} {
		switch porcupine.CheckOperationsTimeout(ownership(p.block), events(ops), time.Minute) {
		case porcupine.Ok:
			return nil
		case porcupine.Unknown:
			return fmt.Errorf("%s: the history of %d operations is too long to check within a minute", name, len(ops))
		}
	}
	return fmt.Errorf("%s: %w:\n%s", name, errOrder, list(slices.Concat(p.known, p.unknown)))
}

func events(ops []operation) []porcupine.Operation {
	out := make([]porcupine.Operation, len(ops))
	for i, o := range ops {
		out[i] = porcupine.Operation{Input: o, Call: o.call, Return: o.back}
		if o.unknown() {
			// At the end of all times it changes nothing any more, so this says
			// "never" as well.
			out[i].Return = math.MaxInt64
		}
	}
	return out
}

// owners is the state of a part: what is owned, by whom. A VNI and a name are
// owned by networks, under the zero prefix.
type owners map[netip.Prefix]string

// ownership is how a part behaves if each operation happens at once.
func ownership(block netip.Prefix) porcupine.Model {
	return porcupine.Model{
		Init: func() any { return owners{} },
		Step: func(state, input, _ any) (bool, any) {
			before, o := state.(owners), input.(operation)
			after, could := before.step(block, o)
			switch {
			case o.unknown():
				return true, after
			case o.err == nil:
				return could, after
			case errors.Is(o.err, control.ErrTaken), errors.Is(o.err, control.ErrExhausted):
				return !could, before
			}
			return true, before
		},
		Equal: func(a, b any) bool { return maps.Equal(a.(owners), b.(owners)) },
	}
}

// step is the state after an operation, and whether it could be granted; if not,
// the state is as before.
func (s owners) step(block netip.Prefix, o operation) (after owners, could bool) {
	who, what := string(o.node), o.prefix
	switch o.action {
	case claimNetwork, nameNetwork:
		who, what = string(o.network), netip.Prefix{}
		could = s[what] == "" || s[what] == who
	case claimBlock:
		what = block
		could = len(s) == 0
	case claimAddress:
		could = s[block] == "" && (s[what] == "" || s[what] == who)
	case release:
		if s[what] != who {
			return s, true
		}
		after = maps.Clone(s)
		delete(after, what)
		return after, true
	}
	if !could || s[what] == who {
		return s, could
	}
	after = maps.Clone(s)
	after[what] = who
	return after, true
}
