package etcd

import (
	"strings"
	"testing"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/particle-net/particle/control/controltest"
	"github.com/particle-net/particle/control/controltest/etcdtest"
)

// What an administrator is told to do about somebody else's keys is what one can do:
// nobody chooses the prefix.
func TestKeysOfSomebodyElse(t *testing.T) {
	s := &Store{k: "/particle/v1/"}
	err := s.identify(t.Context(), &clientv3.GetResponse{Kvs: []*mvccpb.KeyValue{{Value: []byte("theirs")}}}, 1)
	if err == nil || !strings.HasSuffix(err.Error(), "the key /particle/v1/instance holds no name of a store; remove what else uses the prefix /particle/v1/ in etcd") {
		t.Errorf("got %v", err)
	}
}

// Who is refused an address that nobody has, since it lies in a block of another host,
// is told how to have addresses that lie in none.
func TestAddressInABlockOfAnotherHost(t *testing.T) {
	t.Parallel()
	srv := etcdtest.Start(t, etcdtest.Current)
	one := Opened(t, Options{Endpoints: []string{srv.Endpoint()}, Node: controltest.Node(1)})
	two := Opened(t, Options{Endpoints: []string{srv.Endpoint()}, Node: controltest.Node(2)})
	n := controltest.Network(1)
	if _, err := one.ClaimNetwork(t.Context(), n); err != nil {
		t.Fatal(err)
	}
	c, err := one.ClaimBlock(t.Context(), n.ID, n.Subnets[0].Prefix)
	if err != nil {
		t.Fatal(err)
	}
	_, err = two.ClaimAddress(t.Context(), n.ID, c.Prefix.Addr().Next(), "web")
	if err == nil || !strings.Contains(err.Error(), "with the block "+c.Prefix.String()) || !strings.Contains(err.Error(), "create the network with --ip-range and take fixed addresses outside it") {
		t.Errorf("got %v", err)
	}
}
