package etcd

import (
	"context"
	"encoding/json"
	"fmt"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/particle-net/particle/control"
	"github.com/particle-net/particle/control/blocks"
	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/topology"
)

// ClaimNetwork implements control.Allocator.
func (s *Store) ClaimNetwork(ctx context.Context, n control.Network) (topology.VNI, error) {
	if err := blocks.Check(n); err != nil {
		return 0, &fault.Error{Op: "register network", On: n.ID.Short(), Err: err, Fix: "pass other subnets or options"}
	}
	n.Name, n.Removed = "", false
	chosen := n.VNI != 0
	if !chosen {
		n.VNI = blocks.FirstVNI(n.ID)
	}
	err := s.do(ctx, "register network", n.ID.Short(), func(ctx context.Context) error {
		for {
			spec, vni := s.k.spec(n.ID), s.k.vni(n.VNI)
			r, err := s.txn(ctx, []clientv3.Cmp{absent(spec), absent(vni)},
				[]clientv3.Op{clientv3.OpPut(spec, encode(n)), clientv3.OpPut(vni, string(n.ID))},
				[]clientv3.Op{clientv3.OpGet(spec), clientv3.OpGet(vni)})
			if err != nil || r.Succeeded {
				return err
			}
			got := gets(r)
			if len(got[0].Kvs) > 0 {
				return s.registered(&n, chosen, got[0].Kvs[0].Value)
			}
			if chosen {
				return s.vniTaken(ctx, n.VNI, topology.SharedID(got[1].Kvs[0].Value))
			}
			n.VNI = blocks.NextVNI(n.VNI)
		}
	})
	return n.VNI, err
}

// registered says whether the record that is there is what an earlier attempt
// of this call has written, and takes its VNI.
func (s *Store) registered(n *control.Network, chosen bool, value []byte) error {
	var old control.Network
	if err := json.Unmarshal(value, &old); err != nil {
		return damaged(s.k.spec(n.ID), err)
	}
	switch {
	case old.Removed:
		return fmt.Errorf("%w: the network was registered before, and removed", control.ErrTaken)
	case !blocks.SameShape(*n, old) || chosen && n.VNI != old.VNI:
		return fmt.Errorf("%w: the network is registered with other settings (VNI %d)", control.ErrTaken, old.VNI)
	}
	n.VNI = old.VNI
	return nil
}

func (s *Store) vniTaken(ctx context.Context, vni topology.VNI, by topology.SharedID) error {
	return &fault.Error{
		Op: "register network with VNI", On: fmt.Sprint(vni),
		Err: fmt.Errorf("%w by %s", control.ErrTaken, s.networkName(ctx, by)),
		Fix: "pass another -o particle.vni or leave it out",
	}
}

// networkName is what people call a network.
func (s *Store) networkName(ctx context.Context, id topology.SharedID) string {
	n, _, err := s.spec(ctx, id)
	if err != nil || n.Name == "" {
		return "network " + id.Short()
	}
	return fmt.Sprintf("network %s (%s)", n.Name, id.Short())
}

// spec reads a network's record, and the revision of its last change.
func (s *Store) spec(ctx context.Context, id topology.SharedID) (control.Network, int64, error) {
	got, _, err := s.read(ctx, clientv3.OpGet(s.k.spec(id)))
	if err != nil {
		return control.Network{}, 0, err
	}
	return s.parseSpec(id, got[0])
}

func (s *Store) parseSpec(id topology.SharedID, got *clientv3.GetResponse) (control.Network, int64, error) {
	if len(got.Kvs) == 0 {
		return control.Network{}, 0, control.ErrNoNetwork
	}
	var n control.Network
	if err := json.Unmarshal(got.Kvs[0].Value, &n); err != nil {
		return control.Network{}, 0, damaged(s.k.spec(id), err)
	}
	return n, got.Kvs[0].ModRevision, nil
}

func damaged(key string, err error) error {
	return &fault.Error{Op: "read record", On: key, Err: err, Fix: "it was written by another program or a newer version; update the plugin or remove the key from etcd"}
}

// NameNetwork implements control.Allocator.
func (s *Store) NameNetwork(ctx context.Context, n control.Network) error {
	if n.Name == "" {
		return fault.New("name network", n.ID.Short(), "the name is empty", "pass one")
	}
	return s.do(ctx, "name network", n.Name, func(ctx context.Context) error {
		spec, name := s.k.spec(n.ID), s.k.name(n.Name)
		got, _, err := s.read(ctx, clientv3.OpGet(spec), clientv3.OpGet(name))
		if err != nil {
			return err
		}
		now, mod, err := s.parseSpec(n.ID, got[0])
		switch {
		case err != nil:
			return err
		case now.Removed:
			return control.ErrNoNetwork
		case now.Name != "" && now.Name != n.Name:
			return fmt.Errorf("%w: the network has the name %s already", control.ErrTaken, now.Name)
		}
		free := absent(name)
		if len(got[1].Kvs) > 0 {
			kv := got[1].Kvs[0]
			if topology.SharedID(kv.Value) != n.ID {
				return &fault.Error{
					Op: "name network", On: n.Name,
					Err: fmt.Errorf("the name is %w by %s on another host", control.ErrTaken, s.networkName(ctx, topology.SharedID(kv.Value))),
					Fix: "choose another name, or remove that network",
				}
			}
			free = unchanged(name, kv.ModRevision)
		}
		now = now.Named(n)
		return s.swap(ctx, []clientv3.Cmp{unchanged(spec, mod), free}, clientv3.OpPut(spec, encode(now)), clientv3.OpPut(name, string(n.ID)))
	})
}

// swap writes if nothing of what was read has changed; otherwise errAgain.
func (s *Store) swap(ctx context.Context, cmps []clientv3.Cmp, ops ...clientv3.Op) error {
	r, err := s.txn(ctx, cmps, ops, nil)
	if err == nil && !r.Succeeded {
		return errAgain
	}
	return err
}

// RemoveNetwork implements control.Allocator.
func (s *Store) RemoveNetwork(ctx context.Context, id topology.SharedID) error {
	return s.do(ctx, "remove network", id.Short(), func(ctx context.Context) error {
		n, mod, err := s.spec(ctx, id)
		if err == control.ErrNoNetwork {
			return nil
		}
		if err != nil {
			return err
		}
		if !n.Removed {
			if err := s.markRemoved(ctx, n, mod); err != nil {
				return err
			}
		}
		return s.collect(ctx, id)
	})
}

func (s *Store) markRemoved(ctx context.Context, n control.Network, mod int64) error {
	n.Removed = true
	cmps := []clientv3.Cmp{unchanged(s.k.spec(n.ID), mod)}
	ops := []clientv3.Op{clientv3.OpPut(s.k.spec(n.ID), encode(n))}
	if n.Name != "" {
		name := s.k.name(n.Name)
		got, _, err := s.read(ctx, clientv3.OpGet(name))
		if err != nil {
			return err
		}
		// After a loss of the store the name may have gone to another network.
		if kvs := got[0].Kvs; len(kvs) > 0 && topology.SharedID(kvs[0].Value) == n.ID {
			cmps = append(cmps, unchanged(name, kvs[0].ModRevision))
			ops = append(ops, clientv3.OpDelete(name))
		}
	}
	return s.swap(ctx, cmps, ops...)
}

// LeaveNetwork implements control.Allocator.
func (s *Store) LeaveNetwork(ctx context.Context, id topology.SharedID) error {
	return s.do(ctx, "leave network", id.Short(), func(ctx context.Context) error {
		claims, err := s.claimsOf(ctx, s.self().ID, id)
		if err != nil {
			return err
		}
		if err := s.drop(ctx, claims, nil); err != nil {
			return err
		}
		return s.collect(ctx, id)
	})
}

// collect takes away a removed network that nobody has claims on. All else it
// leaves.
func (s *Store) collect(ctx context.Context, id topology.SharedID) error {
	n, mod, err := s.spec(ctx, id)
	if err == control.ErrNoNetwork || err == nil && !n.Removed {
		return nil
	}
	if err != nil {
		return err
	}
	vni := s.k.vni(n.VNI)
	_, err = s.txn(ctx,
		[]clientv3.Cmp{unchanged(s.k.spec(id), mod), noneUnder(s.k.blocks(id)), noneUnder(s.k.addrs(id)), noneUnder(s.k.vouchers(id)), clientv3.Compare(clientv3.Value(vni), "=", string(id))},
		[]clientv3.Op{clientv3.OpDelete(s.k.spec(id)), clientv3.OpDelete(vni), clientv3.OpDelete(s.k.net(id), clientv3.WithPrefix())}, nil)
	return err
}

// collectAll does so with all removed networks. Whose claims have gone with a host
// nobody knows any more if that took several attempts, or several hosts.
func (s *Store) collectAll(ctx context.Context) error {
	got, _, err := s.read(ctx, clientv3.OpGet(s.k.specs(), clientv3.WithPrefix()))
	if err != nil {
		return err
	}
	for _, kv := range got[0].Kvs {
		var n control.Network
		if json.Unmarshal(kv.Value, &n) != nil || !n.Removed {
			continue // what cannot be read is left to who asks for it
		}
		if err := s.collect(ctx, n.ID); err != nil {
			return err
		}
	}
	return nil
}
