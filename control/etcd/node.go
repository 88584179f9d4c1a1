package etcd

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/particle-net/particle/control"
	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/topology"
)

// SetNode tells the cluster what has changed about this host. Its claims carry
// its tunnel address, so they are written anew if that is another. If the store
// is away, the host's record follows when it is back.
func (s *Store) SetNode(ctx context.Context, n control.Node) error {
	s.mu.Lock()
	if n.ID != s.node.ID {
		s.mu.Unlock()
		return fault.New("update host", n.ID.Short(), "this store was opened for host "+s.node.ID.Short(), "close it and open another")
	}
	s.node = n
	s.mu.Unlock()
	return s.do(ctx, "update host", n.Name, func(ctx context.Context) error {
		got, _, err := s.read(ctx, clientv3.OpGet(s.k.info(n.ID)), clientv3.OpGet(s.k.alive(n.ID)), clientv3.OpGet(s.k.lost(n.ID)))
		if err != nil {
			return err
		}
		return s.enlist(ctx, got[0], got[1], got[2])
	})
}

// RemoveNode gives up all claims of a host and takes its record away. Another
// host must be suspect: its containers would lose their addresses to others
// while they run. This host must have ended its own before. Gone already is
// success.
func (s *Store) RemoveNode(ctx context.Context, id topology.NodeID) error {
	guard := []clientv3.Cmp{absent(s.k.alive(id))}
	own := id == s.self().ID
	if own {
		guard = nil
		s.retire(true)
	}
	err := s.do(ctx, "remove host", id.Short(), func(ctx context.Context) error { return s.removeNode(ctx, id, guard) })
	if own && err != nil {
		// It stays in the cluster, and has no record any more if only the answer was
		// lost: the keeper writes it anew.
		s.retire(false)
		s.poke()
	}
	return err
}

// retire says whether this host's record is looked after no more.
func (s *Store) retire(retired bool) {
	s.record.Lock()
	defer s.record.Unlock()
	s.retired = retired
}

func (s *Store) removeNode(ctx context.Context, id topology.NodeID, guard []clientv3.Cmp) error {
	still := slices.Clone(guard) // what has to hold when its record goes
	if guard != nil {
		got, _, err := s.read(ctx, clientv3.OpGet(s.k.alive(id)), clientv3.OpGet(s.k.info(id)))
		if err != nil {
			return err
		}
		// Others may vouch for it meanwhile, and then write its record too.
		still = append(still, asRead(s.k.info(id), got[1]))
		if len(got[0].Kvs) > 0 {
			return &fault.Error{Op: "remove host", On: id.Short(), Err: control.ErrAlive, Fix: "run `particle cluster leave` on it, or stop it and wait until it is suspect"}
		}
	}
	claims, err := s.claimsOf(ctx, id, s.k.nets())
	if err != nil {
		return err
	}
	if err := s.drop(ctx, claims, guard); err != nil {
		return err
	}
	r, err := s.txn(ctx, still, []clientv3.Op{clientv3.OpDelete(s.k.node(id), clientv3.WithPrefix())}, nil)
	if err != nil {
		return err
	}
	if !r.Succeeded {
		return errAgain
	}
	return s.collectAll(ctx)
}

// owned is a claim as it was read.
type owned struct {
	holding
	key     string
	mod     int64 // revision of its last change
	network topology.SharedID
	prefix  netip.Prefix
}

// claimsOf lists a host's claims below a prefix, and what is vouched for in its
// name.
func (s *Store) claimsOf(ctx context.Context, id topology.NodeID, below string) ([]owned, error) {
	got, _, err := s.read(ctx, clientv3.OpGet(below, clientv3.WithPrefix()))
	if err != nil {
		return nil, err
	}
	var out []owned
	for _, kv := range got[0].Kvs {
		c := owned{key: string(kv.Key), mod: kv.ModRevision}
		var ok bool
		if c.network, c.prefix, ok = s.k.parseKey(c.key, "blocks", "addrs", "vouched"); !ok {
			continue
		}
		if err := json.Unmarshal(kv.Value, &c.holding); err == nil && c.Node == id {
			out = append(out, c)
		}
	}
	return out, nil
}

// chunk is how many claims one transaction changes. Unless it is told otherwise etcd takes
// 128 operations in one, and as many comparisons, and a claim is up to two of either.
const chunk = 50

// drop gives up claims, as long as the guard holds. If it does not, or a claim
// has changed since it was read, the cause is errAgain.
func (s *Store) drop(ctx context.Context, claims []owned, guard []clientv3.Cmp) error {
	for some := range slices.Chunk(claims, chunk) {
		cmps := slices.Clone(guard)
		var ops []clientv3.Op
		freed := map[string]clientv3.Op{}
		for _, c := range some {
			cmps = append(cmps, unchanged(c.key, c.mod))
			ops = append(ops, clientv3.OpDelete(c.key))
			if !c.prefix.IsSingleIP() { // a block leaves a mark, whose revision says how long ago that was
				key := s.k.tombstone(c.network, c.prefix)
				freed[key] = clientv3.OpPut(key, encode(holding{Node: c.Node}))
			}
		}
		ops = slices.AppendSeq(ops, maps.Values(freed))
		r, err := s.txn(ctx, cmps, ops, nil)
		if err != nil {
			return err
		}
		if !r.Succeeded {
			return errAgain
		}
	}
	return nil
}

// nameOf is what people call a host.
func (s *Store) nameOf(ctx context.Context, id topology.NodeID) string {
	got, _, err := s.read(ctx, clientv3.OpGet(s.k.info(id)))
	var n control.Node
	if err != nil || len(got[0].Kvs) == 0 || json.Unmarshal(got[0].Kvs[0].Value, &n) != nil || n.Name == "" {
		return "host " + id.Short()
	}
	return fmt.Sprintf("host %s", n.Name)
}
