package etcd

import (
	"encoding/binary"
	"net/netip"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/particle-net/particle/control"
	"github.com/particle-net/particle/control/controltest"
	"github.com/particle-net/particle/control/controltest/etcdtest"
)

// numbered is a block of a subnet of IPv6 whose blocks are /112.
func numbered(subnet netip.Prefix, i int) netip.Prefix {
	a := subnet.Addr().As16()
	binary.BigEndian.PutUint32(a[10:], uint32(i))
	return netip.PrefixFrom(netip.AddrFrom16(a), 112)
}

// Hosts come and go for years, and a subnet of IPv6 never runs out of blocks that nobody
// has had. What was given up longest ago serves again, or the store would fill.
func TestMarksOfGivenUpBlocks(t *testing.T) {
	t.Parallel()
	srv := etcdtest.Start(t, etcdtest.Current)
	s := Opened(t, Options{Endpoints: []string{srv.Endpoint()}, Node: controltest.Node(1)})
	n := controltest.Network(1)
	subnet := netip.MustParsePrefix("fd77::/64")
	n.Subnets = []control.Subnet{{Prefix: subnet, Block: 112}}
	if _, err := s.ClaimNetwork(t.Context(), n); err != nil {
		t.Fatal(err)
	}
	const before = mostFreed + 100
	for i := range before {
		if _, err := s.txn(t.Context(), nil, []clientv3.Op{clientv3.OpPut(s.k.tombstone(n.ID, numbered(subnet, i)), "{}")}, nil); err != nil {
			t.Fatal(err)
		}
	}
	marks := func() int64 {
		got, _, err := s.read(t.Context(), clientv3.OpGet(s.k.freed(n.ID), clientv3.WithPrefix(), clientv3.WithCountOnly()))
		if err != nil {
			t.Fatal(err)
		}
		return got[0].Count
	}
	// One host after the other has a block for a while.
	for i := range 20 {
		c, err := s.ClaimBlock(t.Context(), n.ID, subnet)
		if err != nil {
			t.Fatal(err)
		}
		if want := numbered(subnet, i); c.Prefix != want {
			t.Errorf("the host has %s, and %s was given up before all others", c.Prefix, want)
		}
		if err := s.Release(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
	if now := marks(); now > before {
		t.Errorf("%d marks are %d by now", before, now)
	}
	// Those who come take up what there is too much of, and no more of it.
	for range before - mostFreed + 20 {
		if _, err := s.ClaimBlock(t.Context(), n.ID, subnet); err != nil {
			t.Fatal(err)
		}
	}
	if now := marks(); now != mostFreed {
		t.Errorf("%d marks are left, not %d", now, mostFreed)
	}
}
