package etcd

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"maps"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/particle-net/particle/control"
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
	removal  *removal // how far its host is removed; nil before
}

// sweep looks after hosts that are away, a few times an hour. It belongs to the
// keeper's goroutine, which it holds up no longer than a look at the store does: what
// it does not get done it goes on with after the next. That says nothing about the
// store's health.
func (s *Store) sweep() {
	if time.Now().Before(s.sweepAt) {
		return
	}
	ctx, cancel := context.WithTimeout(s.ctx, attempt)
	defer cancel()
	err, next := s.visit(ctx), s.o.Abandon/144
	if s.ctx.Err() != nil {
		return
	}
	if err != nil {
		s.log.WithError(err).Warn("not all hosts that are away were looked after; trying again")
	}
	if ctx.Err() != nil {
		next = min(next, s.o.LeaseTTL/3)
	}
	s.sweepAt = time.Now().Add(next)
}

// visit looks after each host that is away until time is up, and does not stop at one
// that it cannot look after. Of several errors it tells the first.
func (s *Store) visit(ctx context.Context) error {
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
	maps.DeleteFunc(s.sightings, func(id topology.NodeID, _ sighting) bool { return lost[id] == nil }) // removed by others
	var failed error
	for id, seen := range lost { // in no order, so that each has its turn
		if alive[id] || id == s.self().ID {
			delete(s.sightings, id)
			continue
		}
		if ctx.Err() != nil {
			return cmp.Or(failed, ctx.Err())
		}
		if err := s.missing(ctx, id, seen); !errors.Is(err, control.ErrAlive) { // that one has come back just now
			failed = cmp.Or(failed, err)
		}
	}
	return failed
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
			s.sightings[id] = sighting{revision: kv.ModRevision, since: time.Now()}
			return nil
		}
		same = unchanged(key, kv.ModRevision)
		value.Away += time.Since(last.since)
	}
	r, err := s.txn(ctx, []clientv3.Cmp{absent(s.k.alive(id)), same}, []clientv3.Op{clientv3.OpPut(key, encode(value))}, nil)
	if err != nil || !r.Succeeded {
		return err
	}
	now := sighting{revision: r.Header.Revision, since: time.Now(), removal: s.sightings[id].removal}
	if value.Away >= s.o.Abandon && now.removal == nil {
		now.removal = s.removalOf(id)
	}
	s.sightings[id] = now
	if value.Away < s.o.Abandon {
		return nil
	}
	s.log.WithFields(map[string]any{"node": id, "away": value.Away.Round(time.Minute)}).Warn("a host has been away for too long; its claims end")
	return s.remove(ctx, now.removal)
}
