package etcd

import (
	"context"
	"fmt"
	"net/netip"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/particle-net/particle/control"
	"github.com/particle-net/particle/control/blocks"
	"github.com/particle-net/particle/topology"
)

// What hosts vouch for is apart from claims: two may remember different owners of
// one block, and as long as neither has come, it is neither's. It is a set, so the
// order in which they come decides nothing. It ends as claims do, with its owner's
// word or with the owner.

// Vouch implements control.Allocator.
func (s *Store) Vouch(ctx context.Context, n control.Network, r control.Route, owner control.Node) error {
	owner.ID = r.Node
	known := false // the store has had the owner since the first attempt
	return s.do(ctx, "vouch for", r.Prefix.String(), func(ctx context.Context) error {
		got, _, err := s.read(ctx, append(s.asking(n.ID),
			clientv3.OpGet(s.k.claim(n.ID, r.Prefix)), clientv3.OpGet(s.k.vouched(n.ID, r.Prefix, r.Node)), clientv3.OpGet(s.k.info(r.Node)))...)
		if err != nil {
			return err
		}
		mod, err := s.mayVouch(n, r, got)
		if err != nil {
			return err
		}
		claimed, ok := parseHolding(got[3])
		removed := known && len(got[5].Kvs) == 0
		if ok && claimed.Node == r.Node || len(got[4].Kvs) > 0 || removed {
			return nil
		}
		known = len(got[5].Kvs) > 0
		// The owner's record is written even if it is there: who removes the owner
		// has to see that there is more to remove.
		info := encode(owner)
		if known {
			info = string(got[5].Kvs[0].Value)
		}
		value := encode(holding{Node: r.Node, VTEP: r.VTEP, MAC: r.MAC, Port: r.Port})
		return s.swap(ctx,
			[]clientv3.Cmp{unchanged(s.k.spec(n.ID), mod), asRead(s.k.claim(n.ID, r.Prefix), got[3]), asRead(s.k.info(r.Node), got[5])},
			clientv3.OpPut(s.k.vouched(n.ID, r.Prefix, r.Node), value), clientv3.OpPut(s.k.info(r.Node), info))
	})
}

// mayVouch says why a host cannot vouch for a route, if it cannot; mod is the
// revision of the network's record. got are the answers to asking.
func (s *Store) mayVouch(n control.Network, r control.Route, got []*clientv3.GetResponse) (mod int64, err error) {
	now, mod, err := s.parseSpec(n.ID, got[0])
	if err != nil {
		return 0, err
	}
	if err := now.Recognise(n); err != nil {
		return 0, err
	}
	if err := blocks.Fits(now, r.Prefix); err != nil {
		return 0, fmt.Errorf("%w: %w", control.ErrTaken, err)
	}
	if len(got[1].Kvs)+len(got[2].Kvs) == 0 && r.Node != s.self().ID {
		return 0, control.ErrSettled
	}
	return mod, nil
}

// asRead holds while a key is as it was read, or absent if it was.
func asRead(key string, got *clientv3.GetResponse) clientv3.Cmp {
	if len(got.Kvs) == 0 {
		return absent(key)
	}
	return unchanged(key, got.Kvs[0].ModRevision)
}

func (k keys) vouchers(id topology.SharedID) string { return k.net(id) + "vouched/" }

func (k keys) vouched(id topology.SharedID, p netip.Prefix, owner topology.NodeID) string {
	return k.vouchers(id) + hexBlock(p) + "/" + string(owner)
}

// noVoucher holds while nobody vouches for anything in a block.
func (k keys) noVoucher(id topology.SharedID, block netip.Prefix) clientv3.Cmp {
	// A dash comes after the address, and a dot after a dash.
	return absent(k.vouchers(id) + hexAddr(block.Masked().Addr())).WithRange(k.vouchers(id) + hexAddr(blocks.Last(block)) + ".")
}

// noVoucherFor holds while nobody vouches for this very block or address.
func (k keys) noVoucherFor(id topology.SharedID, p netip.Prefix) clientv3.Cmp {
	return noneUnder(k.vouchers(id) + hexBlock(p) + "/")
}

// vouchedTaken tells for whom others vouch, of an address or the block around it.
func (s *Store) vouchedTaken(ctx context.Context, addr netip.Addr, got []*clientv3.GetResponse) error {
	for _, g := range got {
		if h, ok := parseHolding(g); ok {
			return s.addressTaken(ctx, addr, h, ", which has not come back since the store has lost what it had")
		}
	}
	return errAgain
}

// parseVouched reads a key and its value.
func (k keys) parseVouched(key, value string) (id topology.SharedID, p netip.Prefix, h holding, ok bool) {
	if id, p, ok = k.parseKey(key, "vouched"); !ok {
		return id, p, h, false
	}
	h, err := readHolding(value)
	return id, p, h, err == nil
}
