package etcd

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"go.etcd.io/etcd/api/v3/mvccpb"
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
	r, own := s.removalOf(id), id == s.self().ID
	if own {
		r.guard = nil
		s.retire(true)
	}
	err := s.remove(ctx, r)
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

// removal is of one host, in as many attempts as it takes.
type removal struct {
	id    topology.NodeID
	guard []clientv3.Cmp
	still []clientv3.Cmp // what has to hold when its record goes, as from is begun with
	from  string         // see eachClaim
}

// removalOf is of a host that must be suspect.
func (s *Store) removalOf(id topology.NodeID) *removal {
	return &removal{id: id, guard: []clientv3.Cmp{absent(s.k.alive(id))}}
}

func (s *Store) remove(ctx context.Context, r *removal) error {
	return s.do(ctx, "remove host", r.id.Short(), func(ctx context.Context) error { return s.removeNode(ctx, r) })
}

func (s *Store) removeNode(ctx context.Context, r *removal) error {
	if r.from == "" {
		r.still = slices.Clone(r.guard)
	}
	if r.guard != nil {
		got, _, err := s.read(ctx, clientv3.OpGet(s.k.alive(r.id)), clientv3.OpGet(s.k.info(r.id)))
		if err != nil {
			return err
		}
		if r.from == "" { // Others may vouch for it meanwhile, and then write its record too.
			r.still = append(r.still, asRead(s.k.info(r.id), got[1]))
		}
		if len(got[0].Kvs) > 0 {
			return &fault.Error{Op: "remove host", On: r.id.Short(), Err: control.ErrAlive, Fix: "run `particle cluster leave` on it, or stop it and wait until it is suspect"}
		}
	}
	if err := s.eachClaim(ctx, r.id, &r.from, func(some []owned) error { return s.drop(ctx, some, r.guard) }); err != nil {
		return err
	}
	done, err := s.txn(ctx, r.still, []clientv3.Op{clientv3.OpDelete(s.k.node(r.id), clientv3.WithPrefix())}, nil)
	if err != nil {
		return err
	}
	if !done.Succeeded {
		r.from = ""
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

// claimsOf lists a host's claims of a network, and what is vouched for in its name.
func (s *Store) claimsOf(ctx context.Context, id topology.NodeID, network topology.SharedID) ([]owned, error) {
	got, _, err := s.read(ctx, clientv3.OpGet(s.k.net(network), clientv3.WithPrefix()))
	if err != nil {
		return nil, err
	}
	return s.ownedBy(id, got[0].Kvs), nil
}

// page is how many records of all networks are read at a time. What many hosts have of many
// networks does not come by a slow way in the time that one answer has.
const page = 2000

// eachClaim is claimsOf all networks: it hands them to f, a page at a time. After an error
// it goes on with the page that begins with from, which is empty at first.
func (s *Store) eachClaim(ctx context.Context, id topology.NodeID, from *string, f func([]owned) error) error {
	end := clientv3.WithRange(clientv3.GetPrefixRangeEnd(s.k.nets()))
	for {
		got, _, err := s.read(ctx, clientv3.OpGet(cmp.Or(*from, s.k.nets()), end, clientv3.WithLimit(page)))
		if err != nil {
			return err
		}
		kvs := got[0].Kvs
		if err := f(s.ownedBy(id, kvs)); err != nil || !got[0].More {
			return err
		}
		*from = string(kvs[len(kvs)-1].Key) + "\x00"
	}
}

// ownedBy picks a host's out of what was read.
func (s *Store) ownedBy(id topology.NodeID, kvs []*mvccpb.KeyValue) (out []owned) {
	for _, kv := range kvs {
		c := owned{key: string(kv.Key), mod: kv.ModRevision}
		var ok bool
		if c.network, c.prefix, ok = s.k.parseKey(c.key, "blocks", "addrs", "vouched"); !ok {
			continue
		}
		if err := json.Unmarshal(kv.Value, &c.holding); err == nil && c.Node == id {
			out = append(out, c)
		}
	}
	return out
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
