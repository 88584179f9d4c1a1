package controltest

import (
	"net"
	"net/netip"

	"github.com/particle-net/particle/control"
	"github.com/particle-net/particle/topology"
)

func (a *allocation) hosts(s Store) *Table[topology.NodeID, control.NodeState] {
	return Follow(a.t, s.WatchNodes(a.t.Context()), func(n control.NodeState) topology.NodeID { return n.ID })
}

func (a *allocation) wipe() {
	ctx := a.t.Context()
	w, nets, hosts := a.routes(a.b), a.networks(a.b), a.hosts(a.a)
	block := a.block(a.a)
	single, err := a.a.ClaimAddress(ctx, a.n.ID, netip.MustParseAddr("10.77.50.1"), "web")
	a.must(err)
	other := a.block(a.b)
	w.UntilHave(3)
	nets.UntilHave(1)
	before := w.Instance
	a.Wipe()
	w.Until("a list of the new store", func() bool { return w.Instance != before })
	if len(w.Have) > 0 {
		a.t.Errorf("a wiped store has routes: %v", w.Have)
	}
	for range 2 { // it may be repeated
		a.must(a.b.Restore(ctx, a.n, other))
		a.must(a.a.Restore(ctx, a.n, single))
		a.must(a.a.Restore(ctx, a.n, block))
	}
	a.refused("another host's block", a.b.Restore(ctx, a.n, block), control.ErrTaken)
	a.refused("another host's address", a.b.Restore(ctx, a.n, single), control.ErrTaken)
	part := single
	part.Prefix = netip.PrefixFrom(other.Prefix.Addr().Next(), 32)
	a.refused("a part of another host's block", a.a.Restore(ctx, a.n, part), control.ErrTaken)
	part.Prefix = netip.PrefixFrom(block.Prefix.Addr().Next(), 32)
	a.must(a.a.Restore(ctx, a.n, part)) // of the own one
	around := block
	around.Prefix = netip.PrefixFrom(single.Prefix.Addr(), 24).Masked()
	a.refused("a block around another host's address", a.b.Restore(ctx, a.n, around), control.ErrTaken)
	w.UntilHave(3)
	nets.Until("the network", func() bool { return nets.Have[a.n.ID].VNI == a.n.VNI && nets.Have[a.n.ID].Name == a.n.Name })
	hosts.Until("both hosts", func() bool { return hosts.Have[Node(1).ID].Alive && hosts.Have[Node(2).ID].Alive })
	same := Network(2)
	_, err = a.b.ClaimNetwork(ctx, same)
	a.must(err)
	_, err = a.a.ClaimAddress(ctx, a.n.ID, single.Prefix.Addr(), "web")
	a.refused("an own address, of which the store might be wrong", err, control.ErrSettling)
	a.settled()
	_, err = a.a.ClaimAddress(ctx, a.n.ID, single.Prefix.Addr(), "web")
	a.must(err)
	_, err = a.b.ClaimBlock(ctx, same.ID, a.four)
	a.must(err) // nobody can have had a block of a network that is new
	same.Name = a.n.Name
	a.refused("the name of the restored network", a.b.NameNetwork(ctx, same), control.ErrTaken)
}

func (a *allocation) rewind() {
	ctx := a.t.Context()
	w := a.routes(a.b)
	first := a.block(a.a)
	w.UntilHave(1)
	a.Save()
	second := a.block(a.a)
	for range 20 { // the copy is older by more than the hosts write when they find out
		c := a.block(a.b)
		a.must(a.b.Release(ctx, c))
	}
	w.Until("the second block", func() bool { _, ok := w.Have[RouteKey{second.Prefix.String(), Node(1).ID, false}]; return ok })
	before := w.Instance
	a.Load()
	w.Until("a list of the older store, as of another one", func() bool { return w.Instance != before && len(w.Have) == 1 })
	a.must(a.a.Restore(ctx, a.n, first))
	a.must(a.a.Restore(ctx, a.n, second))
	w.UntilHave(2)
	a.settled()
}

func (a *allocation) restoreAround() {
	ctx := a.t.Context()
	w := a.routes(a.b)
	single := func(s Store, addr string) control.Claim {
		c, err := s.ClaimAddress(ctx, a.n.ID, netip.MustParseAddr(addr), "web")
		a.must(err)
		return c
	}
	single(a.a, "10.77.50.0")
	for i := range 70 { // more than fit one transaction of etcd
		single(a.a, netip.AddrFrom4([4]byte{10, 77, 50, byte(2*i + 1)}).String())
	}
	single(a.a, "10.77.50.255")
	mine := control.Claim{Network: a.n.ID, Prefix: netip.MustParsePrefix("10.77.50.0/24"), Node: Node(1).ID}
	for range 2 { // it may be repeated
		a.must(a.a.Restore(ctx, a.n, mine))
	}
	w.Until("the block alone", func() bool {
		_, ok := w.Have[RouteKey{mine.Prefix.String(), mine.Node, false}]
		return ok && len(w.Have) == 1
	})
	_, err := a.b.ClaimAddress(ctx, a.n.ID, netip.MustParseAddr("10.77.50.1"), "")
	a.refused("an address that has become a part of a block", err, control.ErrTaken)
	// Between two of its own is another's.
	single(a.a, "10.77.60.1")
	theirs := single(a.b, "10.77.60.2")
	single(a.a, "10.77.60.3")
	mine.Prefix = netip.MustParsePrefix("10.77.60.0/24")
	a.refused("a block around another host's address, too", a.a.Restore(ctx, a.n, mine), control.ErrTaken)
	w.UntilHave(4)
	a.must(a.b.Release(ctx, theirs))
	a.must(a.a.Restore(ctx, a.n, mine))
	w.UntilHave(2)
}

// settled checks that nothing new is granted until hosts have had their time.
func (a *allocation) settled() {
	a.t.Helper()
	ctx := a.t.Context()
	_, err := a.b.ClaimBlock(ctx, a.n.ID, a.four)
	a.refused("a block that might be another's", err, control.ErrSettling)
	_, err = a.b.ClaimAddress(ctx, a.n.ID, netip.MustParseAddr("10.77.60.1"), "")
	a.refused("an address that might be another's", err, control.ErrSettling)
	a.Settle()
	a.block(a.b)
	_, err = a.b.ClaimAddress(ctx, a.n.ID, netip.MustParseAddr("10.77.60.1"), "")
	a.must(err)
}

func (a *allocation) nodes() {
	ctx := a.t.Context()
	w, r := a.hosts(a.b), a.routes(a.b)
	w.Until("both hosts", func() bool { return w.Have[Node(1).ID].Alive && w.Have[Node(2).ID].Alive })
	if got, want := w.Have[Node(1).ID].Node, Node(1); got.Name != want.Name || got.VTEP != want.VTEP || got.MAC.String() != want.MAC.String() || got.Port != want.Port || got.Version != want.Version || got.Boot != want.Boot {
		a.t.Errorf("host %+v, want %+v", got, want)
	}
	mine := a.block(a.a)
	r.UntilHave(1)
	if err := a.b.RemoveNode(ctx, Node(1).ID); err == nil {
		a.t.Error("a host that is alive was removed")
	}
	a.must(a.a.Close())
	a.Expire(Node(1).ID)
	w.Until("the suspicion", func() bool { n, ok := w.Have[Node(1).ID]; return ok && !n.Alive })
	if len(r.Have) != 1 {
		a.t.Errorf("the claims of a suspect have gone: %v", r.Have)
	}
	again := a.Open(a.t, Node(1))
	w.Until("the return", func() bool { return w.Have[Node(1).ID].Alive })
	a.must(again.Release(ctx, mine))
	mine = a.block(again)
	a.must(again.Close())
	a.Expire(Node(1).ID)
	w.Until("the suspicion", func() bool { n, ok := w.Have[Node(1).ID]; return ok && !n.Alive })
	a.must(a.b.RemoveNode(ctx, Node(1).ID))
	a.must(a.b.RemoveNode(ctx, Node(1).ID))
	w.Until("the removal", func() bool { _, ok := w.Have[Node(1).ID]; return !ok })
	r.UntilHave(0)
	if got := a.block(a.b); got.Prefix == mine.Prefix {
		a.t.Errorf("the block of the removed host was claimed before those never owned")
	}
	watcher := a.Open(a.t, Node(3))
	w = a.hosts(watcher)
	w.Until("itself", func() bool { return w.Have[Node(3).ID].Alive })
	a.must(a.b.RemoveNode(ctx, Node(2).ID)) // itself
	w.UntilHave(1)
}

func (a *allocation) readdress() {
	ctx := a.t.Context()
	w, r := a.hosts(a.b), a.routes(a.b)
	a.block(a.a)
	_, err := a.a.ClaimAddress(ctx, a.n.ID, netip.MustParseAddr("10.77.50.1"), "web")
	a.must(err)
	a.block(a.b)
	r.UntilHave(3)
	n := Node(1)
	n.VTEP, n.MAC, n.Port, n.Boot = netip.MustParseAddr("192.168.77.7"), net.HardwareAddr{2, 0, 0, 7, 7, 7}, 8472, "2"
	a.must(a.a.SetNode(ctx, n))
	r.Until("the new address", func() bool {
		moved := 0
		for _, route := range r.Have {
			if route.VTEP == n.VTEP && route.MAC.String() == n.MAC.String() && route.Port == n.Port {
				moved++
			}
		}
		return moved == 2
	})
	w.Until("the new record", func() bool { return w.Have[n.ID].VTEP == n.VTEP && w.Have[n.ID].Boot == "2" })
	a.block(a.a)
	r.Until("a claim with it", func() bool { return len(r.Have) == 4 })
}
