package controltest

import (
	"net/netip"
	"slices"

	"github.com/google/go-cmp/cmp"

	"github.com/particle-net/particle/control"
	"github.com/particle-net/particle/control/blocks"
)

func (a *allocation) vni() {
	ctx := a.t.Context()
	if a.n.VNI < blocks.LeastVNI {
		a.t.Errorf("VNI %d was chosen, want one from %d", a.n.VNI, blocks.LeastVNI)
	}
	given := Network(2)
	given.VNI = 42
	got, err := a.b.ClaimNetwork(ctx, given)
	if err != nil || got != 42 {
		a.t.Errorf("asked for VNI 42: %d, %v", got, err)
	}
	again := Network(3)
	again.VNI = 42
	_, err = a.a.ClaimNetwork(ctx, again)
	a.refused("a VNI that is taken", err, control.ErrTaken)
	// The first choice of a network is taken: it gets the next.
	blocker, blocked := Network(4), Network(5)
	blocker.VNI = blocks.FirstVNI(blocked.ID)
	_, err = a.a.ClaimNetwork(ctx, blocker)
	a.must(err)
	got, err = a.b.ClaimNetwork(ctx, blocked)
	if err != nil || got != blocks.NextVNI(blocker.VNI) {
		a.t.Errorf("VNI %d, %v; want %d", got, err, blocks.NextVNI(blocker.VNI))
	}
	bad := Network(6)
	bad.Subnets[0].Block = 8
	if _, err := a.a.ClaimNetwork(ctx, bad); err == nil {
		a.t.Error("blocks larger than their subnet were accepted")
	}
}

func (a *allocation) register() {
	ctx := a.t.Context()
	n := a.n
	n.VNI = 0
	got, err := a.a.ClaimNetwork(ctx, n)
	if err != nil || got != a.n.VNI {
		a.t.Errorf("registered again: VNI %d, %v; want %d", got, err, a.n.VNI)
	}
	n.MTU = 9000
	_, err = a.a.ClaimNetwork(ctx, n)
	a.refused("registered again with another MTU", err, control.ErrTaken)
	w := a.networks(a.b)
	w.UntilHave(1)
	if got := w.Have[n.ID]; got.Name != a.n.Name || got.MTU != a.n.MTU {
		a.t.Errorf("the record has changed: %+v", got)
	}
}

func (a *allocation) name() {
	ctx := a.t.Context()
	w := a.networks(a.b)
	n := a.n
	n.Options, n.Labels = map[string]string{"particle.vni": "7"}, map[string]string{"job": "x"}
	n.Subnets = slices.Clone(n.Subnets)
	n.Subnets[0].Aux = map[string]netip.Addr{"scanner": n.Subnets[0].Aux["printer"]} // the same address, by its name
	a.must(a.a.NameNetwork(ctx, n))
	w.Until("the options", func() bool { return len(w.Have[n.ID].Options) > 0 })
	if diff := cmp.Diff(n, w.Have[n.ID], cmp.Comparer(func(x, y netip.Addr) bool { return x == y }), cmp.Comparer(func(x, y netip.Prefix) bool { return x == y })); diff != "" {
		a.t.Errorf("the record of the network (-want +got):\n%s", diff)
	}
	other := Network(2)
	a.refused("naming what is not registered", a.b.NameNetwork(ctx, other), control.ErrNoNetwork)
	_, err := a.b.ClaimNetwork(ctx, other)
	a.must(err)
	w.UntilHave(2)
	if got := w.Have[other.ID].Name; got != "" {
		a.t.Errorf("a network that was only registered has the name %q", got)
	}
	other.Name = a.n.Name
	a.refused("a name that is taken", a.b.NameNetwork(ctx, other), control.ErrTaken)
	a.must(a.b.RemoveNetwork(ctx, a.n.ID))
	a.must(a.b.NameNetwork(ctx, other))
	a.must(a.b.NameNetwork(ctx, other))
	other.Name = "another"
	a.refused("another name", a.b.NameNetwork(ctx, other), control.ErrTaken)
}

func (a *allocation) remove() {
	ctx := a.t.Context()
	w := a.networks(a.b)
	w.UntilHave(1)
	a.block(a.a)
	a.block(a.b)
	a.must(a.a.RemoveNetwork(ctx, a.n.ID))
	a.must(a.a.RemoveNetwork(ctx, a.n.ID))
	a.must(a.a.LeaveNetwork(ctx, a.n.ID))
	w.Until("the removal", func() bool { return w.Have[a.n.ID].Removed })
	_, err := a.b.ClaimBlock(ctx, a.n.ID, a.four)
	a.refused("a block of a removed network", err, control.ErrNoNetwork)
	_, err = a.b.ClaimAddress(ctx, a.n.ID, netip.MustParseAddr("10.77.50.1"), "")
	a.refused("an address of a removed network", err, control.ErrNoNetwork)
	a.refused("naming a removed network", a.b.NameNetwork(ctx, a.n), control.ErrNoNetwork)
	n := Network(2)
	n.VNI = a.n.VNI
	_, err = a.a.ClaimNetwork(ctx, n)
	a.refused("the VNI of a network that has not gone yet", err, control.ErrTaken)
	a.must(a.b.LeaveNetwork(ctx, a.n.ID))
	a.must(a.b.LeaveNetwork(ctx, a.n.ID))
	w.UntilHave(0)
	_, err = a.a.ClaimNetwork(ctx, n)
	a.must(err)
	a.must(a.a.RemoveNetwork(ctx, Network(3).ID))
}

func (a *allocation) removeUnused() {
	w := a.networks(a.b)
	w.UntilHave(1)
	a.must(a.a.RemoveNetwork(a.t.Context(), a.n.ID))
	w.UntilHave(0)
	_, err := a.b.ClaimBlock(a.t.Context(), a.n.ID, a.four)
	a.refused("a block of a network that has gone", err, control.ErrNoNetwork)
}
