package controltest

import (
	"net/netip"
	"strings"

	"github.com/particle-net/particle/control"
)

// routeOf is what a host by its number answered for.
func (a *allocation) routeOf(i int, p netip.Prefix) control.Route { return Node(i).Route(a.n.ID, p) }

// forgotten has a network of four blocks, of which host 1 has the first, host 2 the
// second and host 3 the third, which is away when the store loses all. The others
// have restored theirs; what host 3 had is returned.
func (a *allocation) forgotten() netip.Prefix {
	a.t.Helper()
	ctx := a.t.Context()
	a.small()
	gone := a.Open(a.t, Node(3))
	first, second, third := a.block(a.a), a.block(a.b), a.block(gone)
	a.must(gone.Close())
	a.Expire(Node(3).ID)
	w := a.routes(a.b)
	w.UntilHave(3)
	before := w.Instance
	a.Wipe()
	w.Until("a list of the new store", func() bool { return w.Instance != before })
	a.must(a.a.Restore(ctx, a.n, first))
	a.must(a.b.Restore(ctx, a.n, second))
	return third.Prefix
}

func (a *allocation) vouch() {
	ctx := a.t.Context()
	third := a.forgotten()
	w, hosts := a.routes(a.a), a.hosts(a.a)
	for range 2 { // it may be repeated
		a.must(a.b.Vouch(ctx, a.n, a.routeOf(3, third), Node(3)))
	}
	a.must(a.a.Vouch(ctx, a.n, a.routeOf(4, third), Node(4))) // who remembers another owner
	a.must(a.a.Vouch(ctx, a.n, a.routeOf(3, netip.MustParsePrefix("10.5.0.200/32")), Node(3)))
	a.must(a.a.Vouch(ctx, a.n, a.routeOf(2, netip.MustParsePrefix("10.5.0.64/26")), Node(2))) // who has come
	w.Until("what they vouch for", func() bool {
		r, ok := w.Have[RouteKey{third.String(), Node(3).ID, true}]
		return len(w.Have) == 5 && ok && r.VTEP == Node(3).VTEP && r.MAC.String() == Node(3).MAC.String()
	})
	hosts.Until("the suspects", func() bool {
		n, ok := hosts.Have[Node(3).ID]
		return ok && !n.Alive && n.Name == Node(3).Name && hosts.Have[Node(4).ID].Name == Node(4).Name
	})
	a.Settle()
	_, err := a.a.ClaimBlock(ctx, a.n.ID, a.four)
	a.refused("a block that others vouch for", err, control.ErrExhausted)
	for _, addr := range []string{"10.5.0.130", "10.5.0.200"} {
		_, err = a.a.ClaimAddress(ctx, a.n.ID, netip.MustParseAddr(addr), "")
		a.refused(addr, err, control.ErrTaken)
		if err != nil && !strings.Contains(err.Error(), "host h3") && !strings.Contains(err.Error(), "host h4") {
			a.t.Errorf("the error does not tell for whom it is kept: %v", err)
		}
	}
	_, err = a.a.ClaimAddress(ctx, a.n.ID, netip.MustParseAddr("10.5.0.201"), "")
	a.must(err)
	a.refused("too late", a.a.Vouch(ctx, a.n, a.routeOf(5, third), Node(5)), control.ErrSettled)
	a.refused("of no network", a.a.Vouch(ctx, Network(9), a.routeOf(3, third), Node(3)), control.ErrNoNetwork)

	// The owner comes, whatever others remember; and each ends what is said of it.
	back := a.Open(a.t, Node(3))
	mine := control.Claim{Network: a.n.ID, Prefix: third, Node: Node(3).ID}
	a.must(back.Restore(ctx, a.n, mine))
	w.Until("the owner's word", func() bool {
		_, claimed := w.Have[RouteKey{third.String(), Node(3).ID, false}]
		_, vouched := w.Have[RouteKey{third.String(), Node(3).ID, true}]
		return claimed && !vouched
	})
	a.must(back.Release(ctx, mine))
	_, err = a.a.ClaimBlock(ctx, a.n.ID, a.four)
	a.refused("a block that one still vouches for", err, control.ErrExhausted)
	a.must(a.b.RemoveNode(ctx, Node(4).ID))
	if got := a.block(a.a); got.Prefix != third {
		a.t.Errorf("block %s, want %s", got.Prefix, third)
	}
	a.must(back.Release(ctx, control.Claim{Network: a.n.ID, Prefix: netip.MustParsePrefix("10.5.0.200/32")}))
	_, err = a.b.ClaimAddress(ctx, a.n.ID, netip.MustParseAddr("10.5.0.200"), "")
	a.must(err)
}

// vouchRemoved: a removed network stays as long as a host may have a part of it,
// and its own word for itself is taken at any time.
func (a *allocation) vouchRemoved() {
	ctx := a.t.Context()
	third := a.forgotten()
	nets := a.networks(a.b)
	a.must(a.b.Vouch(ctx, a.n, a.routeOf(3, third), Node(3)))
	a.must(a.b.RemoveNetwork(ctx, a.n.ID))
	a.must(a.a.LeaveNetwork(ctx, a.n.ID))
	a.Settle()
	a.must(a.b.Vouch(ctx, a.n, a.routeOf(2, third), Node(2)))
	a.must(a.b.LeaveNetwork(ctx, a.n.ID))
	back := a.Open(a.t, Node(3))
	nets.Until("the removal", func() bool { return nets.Have[a.n.ID].Removed })
	a.must(back.LeaveNetwork(ctx, a.n.ID))
	nets.Until("its end", func() bool { _, ok := nets.Have[a.n.ID]; return !ok })
}
