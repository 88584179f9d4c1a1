package etcd

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/particle-net/particle/control"
	"github.com/particle-net/particle/control/blocks"
	"github.com/particle-net/particle/topology"
)

// ClaimBlock implements control.Allocator.
func (s *Store) ClaimBlock(ctx context.Context, id topology.SharedID, subnet netip.Prefix) (control.Claim, error) {
	b := blockClaim{network: id, subnet: subnet, mine: s.hold(""), window: 1}
	err := s.do(ctx, "claim block of", subnet.String(), func(ctx context.Context) error { return s.attemptBlock(ctx, &b) })
	if err != nil {
		return control.Claim{}, err
	}
	return control.Claim{Network: id, Prefix: b.tried.prefix, Node: b.mine.Node}, nil
}

// blockClaim is one claim of a block, in as many attempts as it takes.
type blockClaim struct {
	network topology.SharedID
	subnet  netip.Prefix
	mine    holding
	tried   candidate // by an attempt whose answer was lost; after the last, what was got
	window  int       // from how many blocks to choose
}

// attemptBlock is one attempt.
func (s *Store) attemptBlock(ctx context.Context, b *blockClaim) error {
	if b.tried.prefix.IsValid() {
		if got, err := s.askAgain(ctx, b); err != nil || got {
			return err
		}
	}
	free, guard, err := s.freeBlocks(ctx, b.network, b.subnet, b.window)
	if err != nil {
		return err
	}
	b.tried = candidate{free[rand.IntN(len(free))], guard}
	got, err := s.takeBlock(ctx, b.network, b.tried, b.mine)
	if err != nil || got {
		return err
	}
	b.tried = candidate{}
	// The more hosts are at it, the wider they spread. A host on its own
	// gets the first block, which people like to see.
	b.window = min(64*b.window, 4096)
	return errAgain
}

// askAgain claims the same block again: the store tells whether it is ours already.
func (s *Store) askAgain(ctx context.Context, b *blockClaim) (got bool, err error) {
	now, _, err := s.read(ctx, s.asking(b.network)...)
	if err != nil {
		return false, err
	}
	_, _, err = s.granting(b.network, now)
	switch {
	case errors.Is(err, control.ErrSettling):
		return false, s.takeBack(ctx, s.k.block(b.network, b.tried.prefix), b.mine, err)
	case errors.Is(err, errRewound):
		return false, err // the store does not know it yet, and would grant what is another's
	}
	return s.takeBlock(ctx, b.network, b.tried, b.mine)
}

// takeBack undoes a claim that may have gone through while the store was set back to
// a time at which it was another's, which it does not know any more. It returns why.
func (s *Store) takeBack(ctx context.Context, key string, mine holding, why error) error {
	_, err := s.txn(ctx, []clientv3.Cmp{clientv3.Compare(clientv3.Value(key), "=", encode(mine))}, []clientv3.Op{clientv3.OpDelete(key)}, nil)
	return cmp.Or(err, why)
}

// candidate is a block that was free, and what else has to hold.
type candidate struct {
	prefix netip.Prefix
	guard  []clientv3.Cmp
}

// mostFreed is how many blocks of a subnet rest that were given up, while others were never
// owned. Each leaves a mark, and those of hosts that come and go for years would fill the
// store: a subnet of IPv6 never runs out of other blocks.
const mostFreed = 1024

// freeBlocks lists up to limit blocks that may be claimed: those given up beyond what may
// rest, oldest first, and then those never owned, in order, or else those given up.
// Never none of them without an error.
func (s *Store) freeBlocks(ctx context.Context, id topology.SharedID, subnet netip.Prefix, limit int) ([]netip.Prefix, []clientv3.Cmp, error) {
	below := []clientv3.OpOption{clientv3.WithPrefix(), clientv3.WithKeysOnly()}
	got, _, err := s.read(ctx, append(s.asking(id),
		clientv3.OpGet(s.k.blocks(id), below...), clientv3.OpGet(s.k.addrs(id), below...), clientv3.OpGet(s.k.freed(id), below...),
		clientv3.OpGet(s.k.vouchers(id), below...))...)
	if err != nil {
		return nil, nil, err
	}
	n, guard, err := s.granting(id, got[:3])
	if err != nil {
		return nil, nil, err
	}
	free, err := s.choose(n, subnet, limit, got[3:])
	return free, guard, err
}

// choose is the computation of freeBlocks: found are the keys of blocks, single
// addresses, blocks given up, and what is vouched for.
func (s *Store) choose(n control.Network, subnet netip.Prefix, limit int, found []*clientv3.GetResponse) ([]netip.Prefix, error) {
	id := n.ID
	i := slices.IndexFunc(n.Subnets, func(sub control.Subnet) bool { return sub.Prefix == subnet })
	if i < 0 {
		return nil, control.ErrNoNetwork
	}
	sub := n.Subnets[i]
	taken := map[netip.Prefix]bool{}
	for _, kv := range found[0].Kvs {
		p, _ := parsePrefix(string(kv.Key[len(s.k.blocks(id)):]))
		taken[p] = true
	}
	for _, kv := range slices.Concat(found[1].Kvs, found[3].Kvs) {
		_, p, _ := s.k.parseKey(string(kv.Key), "addrs", "vouched")
		if b, ok := blocks.Covering(sub, p.Addr()); ok {
			taken[b] = true
		}
	}
	freed := map[netip.Prefix]int64{}
	var waiting []netip.Prefix
	for _, kv := range found[2].Kvs {
		p, _ := parsePrefix(string(kv.Key[len(s.k.freed(id)):]))
		freed[p] = kv.ModRevision
		if !taken[p] && blocks.Fits(n, p) == nil && subnet.Contains(p.Addr()) {
			waiting = append(waiting, p)
		}
	}
	slices.SortFunc(waiting, func(a, b netip.Prefix) int { return cmp.Compare(freed[a], freed[b]) })
	free := slices.Clone(waiting[:min(limit, max(0, len(waiting)-mostFreed))])
	free = append(free, blocks.Unused(sub, limit-len(free), func(p netip.Prefix) bool { return taken[p] || freed[p] != 0 })...)
	if len(free) == 0 {
		free = waiting[:min(limit, len(waiting))]
	}
	if len(free) == 0 {
		return nil, control.ErrExhausted
	}
	return free, nil
}

// takeBlock claims one block if it is free and the network unchanged.
func (s *Store) takeBlock(ctx context.Context, id topology.SharedID, c candidate, mine holding) (got bool, err error) {
	key := s.k.block(id, c.prefix)
	r, err := s.txn(ctx,
		append([]clientv3.Cmp{absent(key), s.k.noneWithin(id, c.prefix), s.k.noVoucher(id, c.prefix)}, c.guard...),
		[]clientv3.Op{clientv3.OpPut(key, encode(mine)), clientv3.OpDelete(s.k.tombstone(id, c.prefix))},
		[]clientv3.Op{clientv3.OpGet(key)})
	if err != nil || r.Succeeded {
		return err == nil, err
	}
	h, _ := parseHolding(gets(r)[0])
	return h.Node == mine.Node && h.Op == mine.Op, nil
}

// parseHolding reads a claim; ok is false if there is none.
func parseHolding(got *clientv3.GetResponse) (h holding, ok bool) {
	if len(got.Kvs) == 0 {
		return holding{}, false
	}
	return holdingOf(got.Kvs[0]), true
}

// readHolding reads the value of a claim.
func readHolding(value string) (holding, error) {
	return record(holding{}, value, func(h holding) bool { return h.Node != "" })
}

// holdingOf reads a claim. A value that cannot be read is one all the same, of nobody we
// know.
func holdingOf(kv *mvccpb.KeyValue) (h holding) {
	_ = json.Unmarshal(kv.Value, &h)
	return h
}

// ClaimAddress implements control.Allocator.
func (s *Store) ClaimAddress(ctx context.Context, id topology.SharedID, addr netip.Addr, holder string) (control.Claim, error) {
	c := control.Claim{Network: id, Prefix: netip.PrefixFrom(addr, addr.BitLen()), Node: s.self().ID, Holder: holder}
	mine := s.hold(holder)
	err := s.do(ctx, "claim address", addr.String(), func(ctx context.Context) error { return s.attemptAddress(ctx, c, mine) })
	if err != nil {
		return control.Claim{}, err
	}
	return c, nil
}

func (s *Store) attemptAddress(ctx context.Context, c control.Claim, mine holding) error {
	addr := c.Prefix.Addr()
	key := s.k.addr(c.Network, addr)
	got, _, err := s.read(ctx, append(s.asking(c.Network), clientv3.OpGet(key))...)
	if err != nil {
		return err
	}
	n, guard, err := s.granting(c.Network, got[:3])
	if errors.Is(err, control.ErrSettling) {
		// What the store calls this host's from before may be what it has given back
		// since, and another has got.
		return s.takeBack(ctx, key, mine, err)
	}
	if err != nil {
		return err
	}
	if err := blocks.Fits(n, c.Prefix); err != nil {
		return badAddress(addr, err)
	}
	sub, _ := blocks.Of(n, addr)
	if why := blocks.Reserved(sub, addr); why != "" {
		return badAddress(addr, fmt.Errorf("%w: %s", control.ErrReserved, why))
	}
	return s.newAddress(ctx, c, sub, mine, guard)
}

// newAddress is takeAddress for one that nobody may vouch for, nor for the block
// around it.
func (s *Store) newAddress(ctx context.Context, c control.Claim, sub control.Subnet, mine holding, guard []clientv3.Cmp) error {
	vouched := []netip.Prefix{c.Prefix}
	if block, covered := blocks.Covering(sub, c.Prefix.Addr()); covered {
		vouched = append(vouched, block)
	}
	var reads []clientv3.Op
	for _, p := range vouched {
		guard = append(guard, s.k.noVoucherFor(c.Network, p))
		reads = append(reads, clientv3.OpGet(s.k.vouchers(c.Network)+hexBlock(p)+"/", clientv3.WithPrefix()))
	}
	err := s.takeAddress(ctx, c, sub, mine, guard)
	if err != errAgain {
		return err
	}
	got, _, err := s.read(ctx, reads...)
	if err != nil {
		return err
	}
	return s.vouchedTaken(ctx, c.Prefix.Addr(), got)
}

// takeAddress claims a single address while the guard holds.
func (s *Store) takeAddress(ctx context.Context, c control.Claim, sub control.Subnet, mine holding, guard []clientv3.Cmp) error {
	addr := c.Prefix.Addr()
	key := s.k.addr(c.Network, addr)
	cmps := append([]clientv3.Cmp{absent(key)}, guard...)
	reads := []clientv3.Op{clientv3.OpGet(key)}
	block, covered := blocks.Covering(sub, addr)
	if covered {
		cmps = append(cmps, absent(s.k.block(c.Network, block)))
		reads = append(reads, clientv3.OpGet(s.k.block(c.Network, block)))
	}
	r, err := s.txn(ctx, cmps, []clientv3.Op{clientv3.OpPut(key, encode(mine)), clientv3.OpDelete(s.k.vouched(c.Network, c.Prefix, mine.Node))}, reads)
	if err != nil || r.Succeeded {
		return err
	}
	got := gets(r)
	if h, ok := parseHolding(got[0]); ok {
		if h.Node == mine.Node && h.Holder == mine.Holder && h.VTEP == mine.VTEP && h.Port == mine.Port {
			return nil
		}
		if h.Node == mine.Node {
			return s.swap(ctx, []clientv3.Cmp{unchanged(key, got[0].Kvs[0].ModRevision)}, clientv3.OpPut(key, encode(mine)))
		}
		return s.addressTaken(ctx, addr, h, "")
	}
	if covered {
		if h, ok := parseHolding(got[1]); ok {
			return s.blockTaken(ctx, addr, h, block)
		}
	}
	return errAgain
}

// Restore implements control.Allocator. What is there is left as it is.
func (s *Store) Restore(ctx context.Context, n control.Network, c control.Claim) error {
	if err := blocks.Check(n); err != nil {
		return err
	}
	mine := s.hold(c.Holder)
	return s.do(ctx, "claim again", c.Prefix.String(), func(ctx context.Context) error {
		now, mod, err := s.spec(ctx, n.ID)
		if err == control.ErrNoNetwork {
			return s.restoreSpec(ctx, n)
		}
		if err != nil {
			return err
		}
		if err := now.Recognise(n); err != nil {
			return err
		}
		if err := blocks.Fits(now, c.Prefix); err != nil {
			return badAddress(c.Prefix.Addr(), fmt.Errorf("%w: %w", control.ErrTaken, err))
		}
		guard := unchanged(s.k.spec(n.ID), mod)
		if c.Single() {
			sub, _ := blocks.Of(now, c.Prefix.Addr())
			return s.restoreAddress(ctx, c, sub, mine, guard)
		}
		return s.restoreBlock(ctx, c, mine, guard)
	})
}

// restoreSpec registers a lost network, under its name if that is free, and has
// the caller go on.
func (s *Store) restoreSpec(ctx context.Context, n control.Network) error {
	spec, vni, name := s.k.spec(n.ID), s.k.vni(n.VNI), s.k.name(n.Name)
	got, _, err := s.read(ctx, clientv3.OpGet(vni), clientv3.OpGet(name))
	if err != nil {
		return err
	}
	if kvs := got[0].Kvs; len(kvs) > 0 && topology.SharedID(kvs[0].Value) != n.ID {
		return s.vniTaken(ctx, n.VNI, topology.SharedID(kvs[0].Value))
	}
	cmps := []clientv3.Cmp{absent(spec), absent(vni)}
	restored, err := s.forAWhile(ctx, s.k.restored(n.ID))
	if err != nil {
		return err
	}
	ops := []clientv3.Op{clientv3.OpPut(spec, encode(n)), clientv3.OpPut(vni, string(n.ID)), restored}
	if n.Name != "" && !n.Removed && len(got[1].Kvs) == 0 {
		cmps, ops = append(cmps, absent(name)), append(ops, clientv3.OpPut(name, string(n.ID)))
	}
	if err := s.swap(ctx, cmps, ops...); err != nil {
		return err
	}
	return errAgain // now for the claim itself
}

// restoreAddress is takeAddress, but that an address of a block of this host is there.
func (s *Store) restoreAddress(ctx context.Context, c control.Claim, sub control.Subnet, mine holding, guard clientv3.Cmp) error {
	err := s.takeAddress(ctx, c, sub, mine, []clientv3.Cmp{guard})
	block, covered := blocks.Covering(sub, c.Prefix.Addr())
	if !covered || !errors.Is(err, control.ErrTaken) {
		return err
	}
	got, _, e := s.read(ctx, clientv3.OpGet(s.k.block(c.Network, block)))
	if e != nil {
		return e
	}
	if h, ok := parseHolding(got[0]); ok && h.Node == mine.Node {
		return nil
	}
	return err
}

func (s *Store) restoreBlock(ctx context.Context, c control.Claim, mine holding, guard clientv3.Cmp) error {
	key := s.k.block(c.Network, c.Prefix)
	first, end := s.k.within(c.Network, c.Prefix)
	put := []clientv3.Op{clientv3.OpPut(key, encode(mine)), clientv3.OpDelete(s.k.tombstone(c.Network, c.Prefix)), clientv3.OpDelete(s.k.vouched(c.Network, c.Prefix, mine.Node))}
	r, err := s.txn(ctx,
		[]clientv3.Cmp{absent(key), s.k.noneWithin(c.Network, c.Prefix), guard}, put,
		[]clientv3.Op{clientv3.OpGet(key), clientv3.OpGet(first, clientv3.WithRange(end))})
	if err != nil || r.Succeeded {
		return err
	}
	got := gets(r)
	if h, ok := parseHolding(got[0]); ok {
		if h.Node == mine.Node {
			return nil
		}
		return s.blockTaken(ctx, c.Prefix.Addr(), h, c.Prefix)
	}
	for _, kv := range got[1].Kvs {
		h := holdingOf(kv)
		if h.Node != mine.Node {
			p, _ := parsePrefix(string(kv.Key[len(s.k.addrs(c.Network)):]))
			return s.addressTaken(ctx, p.Addr(), h, "")
		}
	}
	// This host's own addresses become a part of its block.
	own := got[1].Kvs
	if len(own) > chunk {
		last := string(own[chunk-1].Key) + "\x00"
		if err := s.swap(ctx, append(onlyThese(first, last, own[:chunk]), guard), clientv3.OpDelete(first, clientv3.WithRange(last))); err != nil {
			return err
		}
		return errAgain // now for the others
	}
	return s.swap(ctx,
		append(onlyThese(first, end, own), absent(key), guard),
		append(put, clientv3.OpDelete(first, clientv3.WithRange(end)))...)
}

// Release implements control.Allocator.
func (s *Store) Release(ctx context.Context, c control.Claim) error {
	return s.do(ctx, "release", c.Prefix.String(), func(ctx context.Context) error {
		me := s.self().ID
		keys := []string{s.k.claim(c.Network, c.Prefix), s.k.vouched(c.Network, c.Prefix, me)}
		got, _, err := s.read(ctx, clientv3.OpGet(keys[0]), clientv3.OpGet(keys[1]))
		if err != nil {
			return err
		}
		var mine []owned
		for i, key := range keys {
			if h, ok := parseHolding(got[i]); ok && h.Node == me {
				mine = append(mine, owned{holding: h, key: key, mod: got[i].Kvs[0].ModRevision, network: c.Network, prefix: c.Prefix})
			}
		}
		return s.drop(ctx, mine, nil)
	})
}
