package etcd

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/particle-net/particle/control"
	"github.com/particle-net/particle/control/controltest"
	"github.com/particle-net/particle/control/controltest/etcdtest"
)

// A claim may reach the store after that was set back to a time at which it had not
// heard of another's. Asked again, it is not taken for granted, but given back.
func TestClaimThatMetAStoreSetBack(t *testing.T) {
	t.Parallel()
	srv := etcdtest.Start(t, etcdtest.Current)
	s := Opened(t, Options{Endpoints: []string{srv.Endpoint()}, Node: controltest.Node(1)})
	n := controltest.Network(1)
	if _, err := s.ClaimNetwork(t.Context(), n); err != nil {
		t.Fatal(err)
	}
	subnet := n.Subnets[0].Prefix
	srv.Save()
	for range 3 { // what the store forgets
		if _, err := s.ClaimBlock(t.Context(), n.ID, subnet); err != nil {
			t.Fatal(err)
		}
	}
	srv.Load()
	if _, err := s.ClaimBlock(t.Context(), n.ID, subnet); !errors.Is(err, control.ErrSettling) {
		t.Fatalf("a store that was set back grants claims: %v", err)
	}
	mine := s.hold("")
	block, addr := netip.MustParsePrefix("10.5.0.64/26"), subnet.Addr().Next().Next()
	single := netip.PrefixFrom(addr, addr.BitLen())
	keys := []string{s.k.block(n.ID, block), s.k.addr(n.ID, addr)}
	for _, key := range keys { // as if they had gone through before anybody noticed
		if _, err := s.txn(t.Context(), nil, []clientv3.Op{clientv3.OpPut(key, encode(mine))}, nil); err != nil {
			t.Fatal(err)
		}
	}
	again := blockClaim{network: n.ID, subnet: subnet, mine: mine, tried: candidate{prefix: block}, window: 1}
	if err := s.attemptBlock(t.Context(), &again); !errors.Is(err, control.ErrSettling) {
		t.Errorf("the block: %v", err)
	}
	if err := s.attemptAddress(t.Context(), control.Claim{Network: n.ID, Prefix: single}, mine); !errors.Is(err, control.ErrSettling) {
		t.Errorf("the address: %v", err)
	}
	for _, key := range keys {
		if got, _, err := s.read(t.Context(), clientv3.OpGet(key)); err != nil || len(got[0].Kvs) > 0 {
			t.Errorf("%s is still there: %v", key, err)
		}
	}
	// What the store says the host had before, it may have given back since.
	before := s.hold("")
	if _, err := s.txn(t.Context(), nil, []clientv3.Op{clientv3.OpPut(keys[1], encode(before))}, nil); err != nil {
		t.Fatal(err)
	}
	if err := s.attemptAddress(t.Context(), control.Claim{Network: n.ID, Prefix: single}, mine); !errors.Is(err, control.ErrSettling) {
		t.Errorf("an address from before: %v", err)
	}
}

// A host knows that the store was set back, and the store has not been told yet. It grants
// nothing, not even what was asked for before.
func TestClaimOfAStoreKnownToBeSetBack(t *testing.T) {
	t.Parallel()
	srv := etcdtest.Start(t, etcdtest.Current)
	s := Opened(t, Options{Endpoints: []string{srv.Endpoint()}, Node: controltest.Node(1), LeaseTTL: time.Hour})
	n := controltest.Network(1)
	if _, err := s.ClaimNetwork(t.Context(), n); err != nil {
		t.Fatal(err)
	}
	networks := controltest.Follow(t, s.WatchNetworks(t.Context()), func(n control.Network) string { return n.Name })
	networks.UntilHave(1) // the keeper's first look is over, and its next an hour away
	subnet := n.Subnets[0].Prefix
	free, guard, err := s.freeBlocks(t.Context(), n.ID, subnet, 1)
	if err != nil {
		t.Fatal(err)
	}
	s.mu.Lock()
	s.rewound = true
	s.mu.Unlock()
	again := blockClaim{network: n.ID, subnet: subnet, mine: s.hold(""), tried: candidate{free[0], guard}, window: 1}
	// If the keeper looks for another reason, it tells the store.
	if err := s.attemptBlock(t.Context(), &again); !errors.Is(err, errRewound) && !errors.Is(err, control.ErrSettling) {
		t.Errorf("the block: %v", err)
	}
	if got, _, err := s.read(t.Context(), clientv3.OpGet(s.k.block(n.ID, free[0]))); err != nil || len(got[0].Kvs) > 0 {
		t.Errorf("it was granted: %v", err)
	}
}
