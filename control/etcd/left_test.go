package etcd

import (
	"testing"

	"github.com/particle-net/particle/control"
	"github.com/particle-net/particle/control/controltest"
	"github.com/particle-net/particle/control/controltest/etcdtest"
)

// A host is removed in two attempts, of which the first came as far as its claims. The
// network that was removed before, and that only the host still had, goes all the same.
func TestRemovedHostLeavesNoNetwork(t *testing.T) {
	t.Parallel()
	srv := etcdtest.Start(t, etcdtest.Current)
	s := Opened(t, Options{Endpoints: []string{srv.Endpoint()}, Node: controltest.Node(1)})
	ctx := t.Context()
	used, removed := controltest.Network(1), controltest.Network(2)
	for _, n := range []control.Network{used, removed} {
		if _, err := s.ClaimNetwork(ctx, n); err != nil {
			t.Fatal(err)
		}
		if _, err := s.ClaimBlock(ctx, n.ID, n.Subnets[0].Prefix); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.RemoveNetwork(ctx, removed.ID); err != nil {
		t.Fatal(err)
	}
	networks := controltest.Follow(t, s.WatchNetworks(ctx), func(n control.Network) string { return string(n.ID) })
	networks.UntilHave(2)
	var claims []owned
	for _, n := range []control.Network{removed, used} {
		own, err := s.claimsOf(ctx, s.self().ID, n.ID)
		if err != nil {
			t.Fatal(err)
		}
		claims = append(claims, own...)
	}
	if err := s.drop(ctx, claims, nil); err != nil || len(claims) != 2 {
		t.Fatalf("claims %+v, %v", claims, err)
	}
	if err := s.RemoveNode(ctx, s.self().ID); err != nil {
		t.Fatal(err)
	}
	networks.UntilHave(1)
	if _, ok := networks.Have[string(used.ID)]; !ok {
		t.Errorf("the wrong network has gone; left: %v", networks.Have)
	}
}
