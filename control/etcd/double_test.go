package etcd_test

import (
	"net/netip"
	"testing"
	"time"

	"github.com/particle-net/particle/control"
	"github.com/particle-net/particle/control/controltest"
	"github.com/particle-net/particle/control/controltest/etcdtest"
	"github.com/particle-net/particle/control/etcd"
	"github.com/particle-net/particle/topology"
)

// A copy of a host's disk is started as another host. As long as the first one is there
// the copy claims nothing, gives back nothing and is not told what it would take for its
// own; the first one notices nothing. When that is gone, the copy is the host.
func TestTwoHostsOfOneID(t *testing.T) {
	t.Parallel()
	srv := etcdtest.Start(t, etcdtest.Current)
	options := etcd.Options{Endpoints: []string{srv.Endpoint()}, Node: controltest.Node(1), LeaseTTL: 12 * time.Second}
	first, err := etcd.Open(t.Context(), options)
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	n := controltest.Network(1)
	if _, err := first.ClaimNetwork(t.Context(), n); err != nil {
		t.Fatal(err)
	}
	claim, err := first.ClaimBlock(t.Context(), n.ID, n.Subnets[0].Prefix)
	if err != nil {
		t.Fatal(err)
	}
	options.Node.Boot, options.Node.VTEP = "2", netip.MustParseAddr("192.168.7.7")
	second := etcd.Opened(t, options)
	const told = "a host h1 is there already, at 192.168.0.1, and it has the same id"
	for u := range second.WatchNetworks(t.Context()) { // as people are told it
		if u.Whole {
			t.Fatal("the copy was told the networks")
		}
		if mentions(u.Down, told) == nil {
			break
		}
	}
	if err := mentions(second.Release(t.Context(), claim), told); err != nil {
		t.Error(err)
	}
	_, err = second.ClaimBlock(t.Context(), n.ID, n.Subnets[0].Prefix)
	if err := mentions(err, told); err != nil {
		t.Error(err)
	}
	hosts := controltest.Follow(t, first.WatchNodes(t.Context()), func(n control.NodeState) topology.NodeID { return n.ID })
	hosts.UntilHave(1)
	if have := hosts.Have[claim.Node]; have.VTEP != controltest.Node(1).VTEP || !have.Alive {
		t.Errorf("the host is not what it was: %v", have)
	}
	if err := first.Healthy(); err != nil {
		t.Error(err)
	}
	if err := first.Close(); err != nil {
		t.Error(err)
	}
	until(t, second.Healthy)
	if err := second.Release(t.Context(), claim); err != nil {
		t.Error(err)
	}
}

// A host that is started again where it was is that host at once, though its lease is not
// over, as those of all hosts when the store was started again with them.
func TestHostIsStartedAgain(t *testing.T) {
	t.Parallel()
	srv := etcdtest.Start(t, etcdtest.Current)
	plain, encrypted := controltest.Node(1), controltest.Node(2)
	encrypted.WireGuard = &control.WireGuard{Endpoint: netip.MustParseAddrPort("192.0.2.2:7793")}
	for _, node := range []control.Node{plain, encrypted} {
		options := etcd.Options{Endpoints: []string{srv.Endpoint()}, Node: node, LeaseTTL: time.Hour}
		before, err := etcd.Open(t.Context(), options)
		if err != nil {
			t.Fatal(err)
		}
		until(t, before.Healthy)
		if err := before.Close(); err != nil {
			t.Error(err)
		}
		options.Node.Boot = "2"
		if err := etcd.Opened(t, options).SetNode(t.Context(), options.Node); err != nil {
			t.Error(err)
		}
	}
}
