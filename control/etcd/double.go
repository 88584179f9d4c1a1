package etcd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/particle-net/particle/control"
	"github.com/particle-net/particle/internal/fault"
)

// A disk that was copied brings the host's id along, and with an etcd of others nobody
// looks at ids when a host comes. Each of two such hosts would take what the other has
// claimed for its own, not know of it and give it back, and others could get it. So
// whoever comes second is none of the store's as long as the first one is there.

// beSingle fails while another host is there that has this one's id. It is told from
// this host's own former plugin by the boot, and from this host before it was started
// again by where it is reached or, if that is another by now, by its lease, which is
// renewed. s.record is held.
func (s *Store) beSingle(ctx context.Context, info, alive *clientv3.GetResponse) error {
	me, double := s.self(), error(nil)
	if other, lease := s.other(me, info, alive); lease != 0 {
		renewed, err := s.renewed(ctx, lease)
		if err != nil {
			return err
		}
		if renewed {
			double = doubled(other)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.double, s.looked = double, true
	return double
}

// other is the host that is there by the store, and its lease; 0 if it is this one.
func (s *Store) other(me control.Node, info, alive *clientv3.GetResponse) (other control.Node, lease clientv3.LeaseID) {
	if len(alive.Kvs) == 0 || len(info.Kvs) == 0 || json.Unmarshal(info.Kvs[0].Value, &other) != nil {
		return other, 0
	}
	lease = clientv3.LeaseID(alive.Kvs[0].Lease)
	if boot := string(alive.Kvs[0].Value); boot == "" || boot == me.Boot || lease == s.lease || seat(other) == seat(me) {
		return other, 0
	}
	return other, lease
}

// seat is where a host is on the network: in an encrypted cluster its tunnel address is
// of its id.
func seat(n control.Node) netip.Addr {
	if n.WireGuard != nil {
		return n.WireGuard.Endpoint.Addr()
	}
	return n.VTEP
}

// renewed says whether somebody may renew a lease still: hosts do so three times in each,
// and more than half of this one is left.
func (s *Store) renewed(ctx context.Context, lease clientv3.LeaseID) (bool, error) {
	c, err := s.conn()
	if err != nil {
		return false, err
	}
	var left *clientv3.LeaseTimeToLiveResponse
	err = s.elsewhere(ctx, func(ctx context.Context) (err error) {
		left, err = c.TimeToLive(ctx, lease)
		return err
	})
	if errors.Is(err, rpctypes.ErrLeaseNotFound) {
		return false, nil
	}
	return err == nil && 2*left.TTL > left.GrantedTTL, err
}

func doubled(other control.Node) error {
	return &fault.Error{Op: "use the cluster's store", Err: fmt.Errorf("a host %s is there already, at %s, and %w", other.Name, seat(other), control.ErrDouble),
		Fix: "wait a quarter of a minute if this host was started again just now, with another address; if it is a copy of that one, remove /var/lib/particle/node here and restart the plugin, and if `particle cluster status` tells of a certificate then, leave by `particle cluster leave --force` and join again"}
}
