package etcd

import (
	"context"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/particle-net/particle/control"
	"github.com/particle-net/particle/topology"
)

// A store that has lost claims grants none that their owners might still have:
// the owners run, and claim them again within minutes. The keys that say so have
// leases that nobody renews. A lease is the store's own clock, which stands still
// while it is away, and no host has to be there when it ends.

// settle tells a store that was set back that it was, and names it anew: a host
// whose next list comes after others have written cannot tell by its revision that
// it is of an older store. named is the store's name, if that is the one it had; nil
// if somebody has given it another.
func (s *Store) settle(ctx context.Context, named *clientv3.GetResponse) error {
	s.mu.Lock()
	rewound := s.rewound
	s.mu.Unlock()
	if !rewound {
		return nil
	}
	put, err := s.forAWhile(ctx, s.k.settling())
	if err != nil {
		return err
	}
	if _, err := s.txn(ctx, []clientv3.Cmp{absent(s.k.settling())}, []clientv3.Op{put}, nil); err != nil {
		return err
	}
	if named != nil {
		key := s.k.instance()
		anew := clientv3.OpPut(key, encode(identity{UUID: random(16), Encryption: s.o.Encryption}))
		if _, err := s.txn(ctx, []clientv3.Cmp{unchanged(key, named.Kvs[0].ModRevision)}, []clientv3.Op{anew}, nil); err != nil {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rewound = false
	s.poke() // it has another name now, of this host or of one that was faster
	return nil
}

// forAWhile writes a key that goes by itself.
func (s *Store) forAWhile(ctx context.Context, key string) (clientv3.Op, error) {
	lease, err := s.grant(ctx, s.o.Settle)
	if err != nil {
		return clientv3.Op{}, err
	}
	return clientv3.OpPut(key, "", clientv3.WithLease(lease)), nil
}

// asking reads whether a network grants claims, and its record.
func (s *Store) asking(id topology.SharedID) []clientv3.Op {
	return []clientv3.Op{clientv3.OpGet(s.k.spec(id)), clientv3.OpGet(s.k.settling()), clientv3.OpGet(s.k.restored(id))}
}

// granting is the network's record, if it grants claims, and what holds as long
// as it does. got are the answers to asking.
func (s *Store) granting(id topology.SharedID, got []*clientv3.GetResponse) (control.Network, []clientv3.Cmp, error) {
	n, mod, err := s.parseSpec(id, got[0])
	if err == nil && n.Removed {
		err = control.ErrNoNetwork
	}
	if err != nil {
		return control.Network{}, nil, err
	}
	s.mu.Lock()
	rewound := s.rewound
	s.mu.Unlock()
	if rewound {
		return control.Network{}, nil, errRewound
	}
	guard := []clientv3.Cmp{unchanged(s.k.spec(id), mod), absent(s.k.restored(id))}
	settling := got[1].Kvs
	switch {
	case len(got[2].Kvs) > 0:
		return control.Network{}, nil, control.ErrSettling
	case len(settling) == 0:
		return n, append(guard, absent(s.k.settling())), nil
	case got[0].Kvs[0].CreateRevision < settling[0].CreateRevision:
		return control.Network{}, nil, control.ErrSettling
	}
	// The network is younger than the loss, so nobody can have had claims on it.
	return n, guard, nil
}
