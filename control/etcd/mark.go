package etcd

import (
	"context"
	"errors"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/particle-net/particle/control"
)

// A store that was set back has a lower revision than it had, but only until others have
// written enough: a host that is new, or that was away, and comes before all that know
// better. So each host keeps a mark, and the keeper asks at each look for that record as of
// that revision. etcd counts one revision for each transaction that writes, so another
// history has written something else then. What the watches tell becomes the mark only once
// the last one was found again: the first that they tell may be of the other history.

// markOf is the mark that a record is.
func markOf(kv *mvccpb.KeyValue) control.Mark {
	return control.Mark{Record: string(kv.Key), Revision: kv.ModRevision}
}

// told keeps what a watch was told, for the next mark; not of one that began before the
// store was found to be another one. changed is as of health.
func (s *Store) told(changed <-chan struct{}, m control.Mark) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if changed == s.changed {
		s.last = s.last.Later(m)
	}
	if s.mark.Revision == 0 { // there is nothing yet that it could hide
		s.mark = s.last
	}
}

// marked is the mark, and the one that comes next.
func (s *Store) marked() (mark, next control.Mark) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mark, s.last
}

// advance makes it the mark, as long as the store is the one that told of it.
func (s *Store) advance(next control.Mark) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.last.Revision >= next.Revision {
		s.mark = next
	}
}

// compare finds out whether the store has what a mark says of it. now is the record as it
// is. What the store has compacted since nobody can tell, unless the record is there and
// older than that.
func (s *Store) compare(ctx context.Context, m control.Mark, now *clientv3.GetResponse) error {
	var is int64 // when the record was written last
	if len(now.Kvs) > 0 {
		is = now.Kvs[0].ModRevision
	}
	if m.Revision == 0 || is == m.Revision {
		return nil
	}
	if is == 0 || is > m.Revision {
		c, err := s.conn()
		if err != nil {
			return err
		}
		var then *clientv3.GetResponse
		err = s.elsewhere(ctx, func(ctx context.Context) (err error) {
			then, err = c.Get(ctx, m.Record, clientv3.WithRev(m.Revision))
			return err
		})
		switch {
		case errors.Is(err, rpctypes.ErrCompacted):
			return nil
		case errors.Is(err, rpctypes.ErrFutureRev): // it has not come so far
		case err != nil:
			return err
		case len(then.Kvs) > 0 && then.Kvs[0].ModRevision == m.Revision:
			return nil
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mark, s.last = control.Mark{}, control.Mark{}
	if !s.rewound {
		s.log.WithFields(map[string]any{"record": m.Record, "revision": m.Revision}).Warn("the cluster's store has another history than this host was told: it has gone back in time, and come further since")
		s.rewound = true
		s.jump()
	}
	return nil
}
