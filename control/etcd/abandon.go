package etcd

import (
	"context"
	"encoding/json"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/particle-net/particle/topology"
)

// absence is the value of a lost key: how long hosts have watched its host being
// away. No clock that is shown to people is part of it. A host that has seen the
// key unchanged for some time, by its own steady clock, adds this time to it, if
// it is unchanged still: of all hosts that watch, one can. So the sum is never
// more than the time that has passed, whichever clocks jump and however often
// the watching hosts start anew; time without the store does not count.
type absence struct {
	Away time.Duration
}

// sighting is since when a lost key has been seen at a revision.
type sighting struct {
	revision int64
	since    time.Time
}

// sweep looks after hosts that are away, a few times an hour. It belongs to the
// keeper's goroutine.
func (s *Store) sweep(ctx context.Context) error {
	if time.Since(s.swept) < s.o.Abandon/144 {
		return nil
	}
	got, _, err := s.read(ctx, clientv3.OpGet(s.k.nodes(), clientv3.WithPrefix()))
	if err != nil {
		return err
	}
	alive := map[topology.NodeID]bool{}
	lost := map[topology.NodeID]*clientv3.GetResponse{}
	for _, kv := range got[0].Kvs {
		id, what, _ := strings.Cut(strings.TrimPrefix(string(kv.Key), s.k.nodes()), "/")
		node := topology.NodeID(id)
		if lost[node] == nil {
			lost[node] = &clientv3.GetResponse{}
		}
		switch what {
		case "alive":
			alive[node] = true
		case "lost":
			lost[node].Kvs = append(lost[node].Kvs, kv)
		}
	}
	for id, seen := range lost {
		if alive[id] || id == s.self().ID {
			delete(s.sightings, id)
			continue
		}
		if err := s.missing(ctx, id, seen); err != nil {
			return err
		}
	}
	s.swept = time.Now()
	return nil
}

// missing notes that a host is away, and removes it when that has been so for
// long enough.
func (s *Store) missing(ctx context.Context, id topology.NodeID, seen *clientv3.GetResponse) error {
	key := s.k.lost(id)
	same, value := absent(key), absence{}
	if len(seen.Kvs) > 0 {
		kv := seen.Kvs[0]
		if err := json.Unmarshal(kv.Value, &value); err != nil {
			return damaged(key, err)
		}
		last, ok := s.sightings[id]
		if !ok || last.revision != kv.ModRevision {
			s.sightings[id] = sighting{kv.ModRevision, time.Now()}
			return nil
		}
		same = unchanged(key, kv.ModRevision)
		value.Away += time.Since(last.since)
	}
	r, err := s.txn(ctx, []clientv3.Cmp{absent(s.k.alive(id)), same}, []clientv3.Op{clientv3.OpPut(key, encode(value))}, nil)
	if err != nil || !r.Succeeded {
		return err
	}
	s.sightings[id] = sighting{r.Header.Revision, time.Now()}
	if value.Away < s.o.Abandon {
		return nil
	}
	s.log.WithFields(map[string]any{"node": id, "away": value.Away.Round(time.Minute)}).Warn("a host has been away for too long; its claims end")
	return s.RemoveNode(ctx, id)
}
