package controltest

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/particle-net/particle/control"
)

func (a *allocation) order() {
	w := a.routes(a.b)
	for i, s := range []Store{a.a, a.b, a.a} {
		c := a.block(s)
		want := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 77, byte(i), 0}), 24)
		if c.Prefix != want || c.Network != a.n.ID || c.Node != Node(i%2+1).ID {
			a.t.Errorf("claim %+v, want %s of host %d", c, want, i%2+1)
		}
	}
	six, err := a.b.ClaimBlock(a.t.Context(), a.n.ID, a.n.Subnets[1].Prefix)
	a.must(err)
	if want := netip.MustParsePrefix("fd77::/80"); six.Prefix != want {
		a.t.Errorf("block %s, want %s", six.Prefix, want)
	}
	w.UntilHave(4)
	_, err = a.a.ClaimBlock(a.t.Context(), a.n.ID, netip.MustParsePrefix("10.99.0.0/16"))
	a.refused("a block of a subnet that the network does not have", err, control.ErrNoNetwork)
	_, err = a.a.ClaimBlock(a.t.Context(), Network(9).ID, a.four)
	a.refused("a block of no network", err, control.ErrNoNetwork)
}

// race runs f for several hosts at once.
func (a *allocation) race(hosts int, f func(i int, s Store) error) (errs []error) {
	a.t.Helper()
	stores := make([]Store, hosts)
	for i := range stores {
		stores[i] = a.Open(a.t, Node(100+i))
	}
	errs = make([]error, hosts)
	start := make(chan struct{})
	var all sync.WaitGroup
	for i, s := range stores {
		all.Go(func() {
			<-start
			errs[i] = f(i, s)
		})
	}
	close(start)
	all.Wait()
	return errs
}

// winner fails the test unless one succeeded and all others got the cause.
func (a *allocation) winner(errs []error, cause error) {
	a.t.Helper()
	won := 0
	for _, err := range errs {
		if err == nil {
			won++
		} else if !errors.Is(err, cause) {
			a.t.Error(err)
		}
	}
	if won != 1 {
		a.t.Errorf("%d of %d hosts have won, want 1", won, len(errs))
	}
}

// small registers a network with four blocks.
func (a *allocation) small() {
	a.t.Helper()
	a.n = Network(2)
	a.n.Subnets = []control.Subnet{{Prefix: netip.MustParsePrefix("10.5.0.0/24"), Block: 26}}
	a.four = a.n.Subnets[0].Prefix
	vni, err := a.a.ClaimNetwork(a.t.Context(), a.n)
	a.must(err)
	a.n.VNI = vni
}

func (a *allocation) raceBlock() {
	a.small()
	for range 3 {
		a.block(a.a)
	}
	a.winner(a.race(50, func(_ int, s Store) error {
		_, err := s.ClaimBlock(a.t.Context(), a.n.ID, a.four)
		return err
	}), control.ErrExhausted)
}

func (a *allocation) raceBlocks() {
	const hosts = 100
	got := make([]netip.Prefix, hosts)
	for _, err := range a.race(hosts, func(i int, s Store) error {
		c, err := s.ClaimBlock(a.t.Context(), a.n.ID, a.four)
		got[i] = c.Prefix
		return err
	}) {
		a.must(err)
	}
	seen := map[netip.Prefix]bool{}
	for _, p := range got {
		if seen[p] {
			a.t.Errorf("two hosts have the block %s", p)
		}
		seen[p] = true
	}
	a.routes(a.b).UntilHave(hosts)
}

func (a *allocation) raceOwn() {
	const claims = 30
	var all sync.WaitGroup
	for range claims {
		all.Go(func() {
			if _, err := a.a.ClaimBlock(a.t.Context(), a.n.ID, a.four); err != nil {
				a.t.Error(err)
			}
		})
	}
	all.Wait()
	a.routes(a.b).UntilHave(claims) // no block was granted twice
}

func (a *allocation) raceAddress() {
	addr := netip.MustParseAddr("10.77.40.4")
	a.winner(a.race(50, func(i int, s Store) error {
		_, err := s.ClaimAddress(a.t.Context(), a.n.ID, addr, fmt.Sprint(i))
		return err
	}), control.ErrTaken)
}

func (a *allocation) overlap() {
	ctx := a.t.Context()
	first := a.block(a.a)
	_, err := a.b.ClaimAddress(ctx, a.n.ID, first.Prefix.Addr().Next(), "web")
	a.refused("an address in another host's block", err, control.ErrTaken)
	if err != nil && !strings.Contains(err.Error(), Node(1).Name) {
		a.t.Errorf("the error does not name the owner: %v", err)
	}
	single := netip.MustParseAddr("10.77.1.7")
	c, err := a.b.ClaimAddress(ctx, a.n.ID, single, "web")
	a.must(err)
	if want := (control.Claim{Network: a.n.ID, Prefix: netip.PrefixFrom(single, 32), Node: Node(2).ID, Holder: "web"}); c != want {
		a.t.Errorf("claim %+v, want %+v", c, want)
	}
	_, err = a.b.ClaimAddress(ctx, a.n.ID, single, "other")
	a.must(err)
	_, err = a.a.ClaimAddress(ctx, a.n.ID, single, "")
	a.refused("another host's address", err, control.ErrTaken)
	if next := a.block(a.a); next.Prefix.Contains(single) {
		a.t.Errorf("the block %s holds a claimed address", next.Prefix)
	}
	// Once it is free, its block is again.
	a.must(a.b.Release(ctx, c))
	if next := a.block(a.a); !next.Prefix.Contains(single) {
		a.t.Errorf("block %s, want the one of %s", next.Prefix, single)
	}
}

func (a *allocation) raceOverlap() {
	a.small()
	var mu sync.Mutex
	var got []control.Claim
	for _, err := range a.race(40, func(i int, s Store) error {
		var c control.Claim
		var err error
		if i%2 == 0 {
			c, err = s.ClaimBlock(a.t.Context(), a.n.ID, a.four)
		} else {
			c, err = s.ClaimAddress(a.t.Context(), a.n.ID, netip.AddrFrom4([4]byte{10, 5, 0, byte(1 + 6*i)}), "")
		}
		mu.Lock()
		defer mu.Unlock()
		for _, other := range got {
			if err == nil && other.Prefix.Overlaps(c.Prefix) {
				a.t.Errorf("%+v and %+v overlap", other, c)
			}
		}
		if err == nil {
			got = append(got, c)
		}
		return err
	}) {
		if err != nil && !errors.Is(err, control.ErrTaken) && !errors.Is(err, control.ErrExhausted) {
			a.t.Error(err)
		}
	}
	if len(got) < 4 {
		a.t.Errorf("only %d claims were granted", len(got))
	}
}

func (a *allocation) reserved() {
	for _, addr := range []string{"10.77.255.254", "10.77.200.5", "10.77.0.0", "10.77.255.255", "fd77::"} {
		_, err := a.a.ClaimAddress(a.t.Context(), a.n.ID, netip.MustParseAddr(addr), "")
		a.refused(addr, err, control.ErrReserved)
	}
	for _, addr := range []string{"10.99.0.1", "fd78::1"} {
		if _, err := a.a.ClaimAddress(a.t.Context(), a.n.ID, netip.MustParseAddr(addr), ""); err == nil {
			a.t.Errorf("%s is in no subnet, and was granted", addr)
		}
	}
	for _, addr := range []string{"fd77::ffff:ffff:ffff:ffff", "10.77.0.255"} {
		_, err := a.a.ClaimAddress(a.t.Context(), a.n.ID, netip.MustParseAddr(addr), "")
		a.must(err)
	}
}

func (a *allocation) reuse() {
	a.small()
	var have []control.Claim
	for range 3 {
		have = append(have, a.block(a.a))
	}
	for _, i := range []int{2, 0, 1} {
		a.must(a.a.Release(a.t.Context(), have[i]))
	}
	never := a.block(a.b)
	if never.Prefix != netip.MustParsePrefix("10.5.0.192/26") {
		a.t.Errorf("block %s, want the one that was never owned", never.Prefix)
	}
	for _, i := range []int{2, 0, 1} {
		if got := a.block(a.b); got.Prefix != have[i].Prefix {
			a.t.Errorf("block %s, want %s, which was given up longest ago", got.Prefix, have[i].Prefix)
		}
	}
	_, err := a.b.ClaimBlock(a.t.Context(), a.n.ID, a.four)
	a.refused("a block when none is left", err, control.ErrExhausted)
}

func (a *allocation) release() {
	ctx := a.t.Context()
	w := a.routes(a.b)
	mine := a.block(a.a)
	a.must(a.b.Release(ctx, mine))
	stolen := mine
	stolen.Node = Node(2).ID
	a.must(a.b.Release(ctx, stolen))
	a.must(a.b.Release(ctx, control.Claim{Network: a.n.ID, Prefix: netip.MustParsePrefix("10.77.90.0/24"), Node: Node(2).ID}))
	a.must(a.b.Release(ctx, control.Claim{Network: Network(9).ID, Prefix: mine.Prefix, Node: Node(2).ID}))
	second := a.block(a.b)
	w.UntilHave(2)
	a.must(a.a.Release(ctx, mine))
	a.must(a.a.Release(ctx, mine))
	w.UntilHave(1)
	if _, ok := w.Have[RouteKey{second.Prefix.String(), Node(2).ID, false}]; !ok {
		a.t.Errorf("the wrong claim has gone; left: %v", w.Have)
	}
}

func (a *allocation) leave() {
	ctx := a.t.Context()
	w := a.routes(a.b)
	for i := range 120 { // more than fit one transaction of etcd
		_, err := a.a.ClaimAddress(ctx, a.n.ID, netip.AddrFrom4([4]byte{10, 77, 100, byte(i + 1)}), "")
		a.must(err)
	}
	a.block(a.a)
	kept := a.block(a.b)
	w.UntilHave(122)
	a.must(a.a.LeaveNetwork(ctx, a.n.ID))
	w.UntilHave(1)
	if _, ok := w.Have[RouteKey{kept.Prefix.String(), Node(2).ID, false}]; !ok {
		a.t.Errorf("another host's claim has gone; left: %v", w.Have)
	}
}

func (a *allocation) unreachable() {
	w := a.routes(a.b)
	c := a.block(a.a)
	w.UntilHave(1)
	a.Stop()
	ctx, cancel := context.WithTimeout(a.t.Context(), 2*time.Second)
	defer cancel()
	var all sync.WaitGroup
	for name, f := range map[string]func() error{
		"ClaimNetwork":  func() error { _, err := a.b.ClaimNetwork(ctx, Network(7)); return err },
		"NameNetwork":   func() error { return a.b.NameNetwork(ctx, a.n) },
		"RemoveNetwork": func() error { return a.b.RemoveNetwork(ctx, a.n.ID) },
		"LeaveNetwork":  func() error { return a.b.LeaveNetwork(ctx, a.n.ID) },
		"ClaimBlock":    func() error { _, err := a.b.ClaimBlock(ctx, a.n.ID, a.four); return err },
		"ClaimAddress": func() error {
			_, err := a.b.ClaimAddress(ctx, a.n.ID, netip.MustParseAddr("10.77.9.9"), "")
			return err
		},
		"Restore":    func() error { return a.b.Restore(ctx, a.n, c) },
		"Vouch":      func() error { return a.b.Vouch(ctx, a.n, a.routeOf(3, c.Prefix), Node(3)) },
		"Release":    func() error { return a.b.Release(ctx, c) },
		"RemoveNode": func() error { return a.b.RemoveNode(ctx, Node(3).ID) },
	} {
		all.Go(func() { a.refused(name, f(), control.ErrUnreachable) })
	}
	all.Wait()
	w.Until("the break", func() bool { return w.Down != nil })
	a.Back()
	a.block(a.b)
	w.UntilHave(2)
}
