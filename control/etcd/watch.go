package etcd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/particle-net/particle/control"
	"github.com/particle-net/particle/internal/fault"
)

// Announce implements control.Distributor. A claim is an announcement, so this
// only looks whether the prefix is this host's, and writes its tunnel address
// anew if it is another.
func (s *Store) Announce(ctx context.Context, r control.Route) error {
	key := s.k.claim(r.Network, r.Prefix)
	return s.do(ctx, "announce", r.Prefix.String(), func(ctx context.Context) error {
		got, _, err := s.read(ctx, clientv3.OpGet(key))
		if err != nil {
			return err
		}
		h, ok := parseHolding(got[0])
		switch {
		case !ok:
			// Who announces has claimed it: that was lost with the store's data.
			return fault.New("announce", r.Prefix.String(), "the cluster's store has no claim of this host to it any more", "repeat")
		case h.Node != s.self().ID:
			return s.addressTaken(ctx, r.Prefix.Addr(), h, "")
		case h.VTEP == r.VTEP && h.MAC.String() == r.MAC.String() && h.Port == r.Port:
			return nil
		}
		h.VTEP, h.MAC, h.Port = r.VTEP, r.MAC, r.Port
		return s.swap(ctx, []clientv3.Cmp{unchanged(key, got[0].Kvs[0].ModRevision)}, clientv3.OpPut(key, encode(h)))
	})
}

// Withdraw implements control.Distributor. The announcement ends with the claim,
// so there is nothing to do.
func (s *Store) Withdraw(context.Context, control.Route) error { return nil }

// view is what a watch knows of a part of the store.
type view[T any] struct {
	kind[T]
	s      *Store
	prefix string
	out    chan control.Update[T]
	values map[string]*T   // by name, as they could be read last
	unread map[string]bool // keys whose value cannot be, which was told
}

// watch delivers a part of the store until ctx or the store ends.
func watch[T any](ctx context.Context, s *Store, prefix string, k kind[T]) <-chan control.Update[T] {
	v := &view[T]{kind: k, s: s, prefix: prefix, out: make(chan control.Update[T]), unread: map[string]bool{}}
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(s.ctx, cancel)
	s.done.Go(func() {
		defer close(v.out)
		defer cancel()
		defer stop()
		v.run(ctx)
	})
	return v.out
}

// run lists and follows for ever; each trouble is told once, and what comes after
// it is a whole list.
func (v *view[T]) run(ctx context.Context) {
	told := "" // why the watch is down, as it was sent last
	for wait := 50 * time.Millisecond; ; wait = min(2*wait, 2*time.Second) {
		changed, down := v.s.health()
		if down == nil {
			var healthy bool
			healthy, down = v.follow(ctx, changed)
			if healthy {
				told, wait = "", 50*time.Millisecond
			}
			if healthy && errors.Is(down, rpctypes.ErrNoLeader) && pause(ctx, 10*time.Millisecond) {
				continue // only the watch's server has lost the others, who have just given the list
			}
			if ctx.Err() == nil && down != nil && down != errQueue {
				v.s.poke()
			}
		}
		if ctx.Err() != nil {
			return
		}
		if down == nil {
			continue // the store has changed: list anew at once
		}
		if why := down.Error(); told != why && v.send(ctx, control.Update[T]{Down: fmt.Errorf("%w: %w", control.ErrUnreachable, down)}) {
			told = why
		}
		v.rest(ctx, changed, wait)
	}
}

// rest waits until the store's health has changed, or for about d.
func (v *view[T]) rest(ctx context.Context, changed <-chan struct{}, d time.Duration) {
	ctx, cancel := until(ctx, changed)
	defer cancel()
	pause(ctx, d)
}

// until is ctx, but ends with the channel too.
func until(ctx context.Context, changed <-chan struct{}) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		select {
		case <-changed:
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, cancel
}

// follow lists and then delivers changes until something is wrong. healthy says
// whether the list was delivered. No error: the store is another one or has been
// away, or ctx has ended.
func (v *view[T]) follow(ctx context.Context, changed <-chan struct{}) (healthy bool, err error) {
	// The client's Watch does not return while the store is away, so it needs the
	// context to learn that this is known by now.
	ctx, cancel := until(clientv3.WithRequireLeader(ctx), changed)
	defer cancel()
	revision, err := v.list(ctx, changed)
	if ctx.Err() != nil {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	c, err := v.s.conn()
	if err != nil || ctx.Err() != nil {
		return true, err
	}
	// Nor does it if the server hangs.
	starting := time.AfterFunc(attempt, cancel)
	events := c.Watch(ctx, v.prefix, clientv3.WithPrefix(), clientv3.WithRev(revision+1), clientv3.WithProgressNotify())
	if !starting.Stop() {
		v.s.leave(changed)
		return true, nil
	}
	return v.hear(ctx, events, revision, changed)
}

// hear delivers the changes after a revision, as follow does.
func (v *view[T]) hear(ctx context.Context, events clientv3.WatchChan, at int64, changed <-chan struct{}) (healthy bool, err error) {
	behind, look := false, time.NewTicker(v.s.o.LeaseTTL)
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return true, nil
		case <-look.C:
			was := behind
			if behind = v.s.seen.Load() > at; was && behind {
				v.s.leave(changed)
				return true, nil
			}
		case r, open := <-events:
			switch {
			case ctx.Err() != nil:
				return true, nil
			case !open:
				return true, errors.New("the watch has ended")
			case r.CompactRevision > 0:
				return true, nil // changes were lost, but nothing is wrong
			case r.Err() != nil:
				return true, r.Err()
			}
			// A server that the watch has come to may be behind of the one before.
			if behind = false; r.Header.Revision > at {
				v.s.note(at, r.Header.Revision)
				at = r.Header.Revision
			}
			u := v.apply(r)
			v.s.told(changed, u.Mark)
			if len(u.Put)+len(u.Deleted) > 0 && !v.send(ctx, u) {
				return true, nil
			}
		}
	}
}

// leave has all watches begin anew, because the server of one hangs. They share a stream,
// which goes to another server when the last one has left it. changed is what the one
// began with: others may have noticed before.
func (s *Store) leave(changed <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if changed == s.changed {
		s.log.Warn("a server of the cluster's store hangs; the watches go on with another")
		s.jump()
	}
}

// askProgress has all watches hear how far the store has come, if their server is well. One
// that is behind of what others have answered, for a lease, has a server that hangs.
func (s *Store) askProgress() {
	ctx, cancel := context.WithTimeout(clientv3.WithRequireLeader(s.ctx), attempt/3) // a stream is known by what is asked with it
	defer cancel()
	if c, err := s.conn(); err == nil {
		_ = c.RequestProgress(ctx) // that nothing comes tells more than an error
	}
}

// list reads everything and delivers it.
func (v *view[T]) list(ctx context.Context, changed <-chan struct{}) (revision int64, err error) {
	got, revision, err := v.ask(ctx)
	if err != nil {
		return 0, err
	}
	var id identity
	if len(got[0].Kvs) == 0 || json.Unmarshal(got[0].Kvs[0].Value, &id) != nil || id.UUID != v.s.Instance() {
		return 0, errors.New("the store is another one than a moment ago")
	}
	u := control.Update[T]{Whole: true, Instance: id.UUID, Revision: revision}
	before := v.values
	v.values = map[string]*T{}
	for _, kv := range got[1].Kvs {
		key := string(kv.Key)
		u.Mark = u.Mark.Later(markOf(kv))
		name := v.of(key)
		was, old := value(v.values, name), value(before, name)
		now, ok := v.take(was, key, string(kv.Value))
		switch {
		case ok:
			v.put(name, now)
		case v.told(old):
			v.put(name, v.keep(was, old))
		case v.told(now):
			u.Unread = append(u.Unread, now)
		}
	}
	for _, value := range v.values {
		if v.told(*value) {
			u.Put = append(u.Put, *value)
		}
	}
	v.s.told(changed, u.Mark)
	if !v.send(ctx, u) {
		return 0, nil
	}
	return revision, nil
}

// errQueue is why a watch is down that has not had its turn yet.
var errQueue = errors.New("other lists of the store are read first")

// listsAtOnce is how many networks' claims a host asks for at a time. When the store is
// back, each host asks for those of all its networks: at once, they are more than a slow
// way or a server that a thousand hosts ask carries in the time that one answer has, and
// what has come of them until then is lost.
const listsAtOnce = 2

// ask reads everything, of a network when it is its turn.
func (v *view[T]) ask(ctx context.Context) (got []*clientv3.GetResponse, revision int64, err error) {
	if strings.HasPrefix(v.prefix, v.s.k.nets()) {
		queue := time.NewTimer(attempt)
		defer queue.Stop()
		select {
		case v.s.listing <- struct{}{}:
			defer func() { <-v.s.listing }()
		case <-queue.C:
			return nil, 0, errQueue
		case <-ctx.Done():
			return nil, 0, ctx.Err()
		}
	}
	ctx, cancel := context.WithTimeout(ctx, attempt)
	defer cancel()
	return v.s.read(ctx, clientv3.OpGet(v.s.k.instance()), clientv3.OpGet(v.prefix, clientv3.WithPrefix()))
}

// take gives a value what a key holds, and tells of it if that cannot be read.
func (v *view[T]) take(was T, key, value string) (now T, ok bool) {
	now, err := v.set(was, key, value)
	if err == nil {
		delete(v.unread, key)
		return now, true
	}
	if !v.unread[key] {
		v.s.log.WithError(damaged(key, err)).Error("a record of the cluster's store is left out; what was known of it stays")
	}
	v.unread[key] = true
	return now, false
}

// put keeps a value, unless nothing is left of it. name may be a part of a key: that is much
// longer, and would be kept with it.
func (v *view[T]) put(name string, value T) {
	if v.left(value) {
		v.values[strings.Clone(name)] = &value
	} else {
		delete(v.values, name)
	}
}

// value is the zero value where there is none.
func value[T any](of map[string]*T, name string) (v T) {
	if p := of[name]; p != nil {
		v = *p
	}
	return v
}

// apply takes the changes of one answer in. A value that comes and goes within
// it is told as it last was, one that cannot be read not at all.
func (v *view[T]) apply(r clientv3.WatchResponse) control.Update[T] {
	was := map[string]T{}  // before
	last := map[string]T{} // as it was before, or at its last change
	var order []string
	var mark control.Mark
	for _, e := range r.Events {
		key, gone := string(e.Kv.Key), e.Type == clientv3.EventTypeDelete
		name := v.of(key)
		before := value(v.values, name)
		now, ok := v.unset(before, key), true
		if !gone {
			mark = mark.Later(markOf(e.Kv))
			now, ok = v.take(before, key, string(e.Kv.Value))
		}
		if !ok {
			continue
		}
		if _, seen := last[name]; !seen {
			order = append(order, name)
			was[name], last[name] = before, before
		}
		if v.unread[key] && !v.told(last[name]) { // it is gone
			last[name], _ = v.set(last[name], key, "") // others may know of it from before
		}
		delete(v.unread, key)
		v.put(name, now)
		if v.told(now) {
			last[name] = now
		}
	}
	u := control.Update[T]{Revision: r.Header.Revision, Instance: v.s.Instance(), Mark: mark}
	for _, name := range order {
		was, now, last := was[name], value(v.values, name), last[name]
		switch {
		case v.told(now):
			u.Put = append(u.Put, now)
		case v.told(last):
			u.Deleted = append(u.Deleted, last)
			now = last
		}
		if v.told(was) && !v.same(was, now) {
			u.Deleted = append(u.Deleted, was)
		}
	}
	return u
}

// send delivers an update; false if ctx ended first.
func (v *view[T]) send(ctx context.Context, u control.Update[T]) bool {
	select {
	case v.out <- u:
		return true
	case <-ctx.Done():
		return false
	}
}
