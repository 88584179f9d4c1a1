package etcd

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/connectivity"

	"github.com/particle-net/particle/control"
	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/internal/hostpath"
	"github.com/particle-net/particle/topology"
)

// keep looks at the store three times in each lease, whenever an answer was
// strange and when the connection breaks: it renews the lease, repairs this
// host's record, and tells the watches when the store is away, back, or another. When
// the store is well it looks after the hosts that are away, too.
func (s *Store) keep() {
	s.done.Go(s.watchConnection)
	wait := time.Duration(0)
	for {
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-s.wake:
			t.Stop()
		case <-s.ctx.Done():
			t.Stop()
			return
		}
		err := s.check()
		if s.ctx.Err() != nil {
			return
		}
		s.report(err)
		if err != nil {
			clear(s.sightings) // time without the store does not count
		} else {
			s.askProgress()
			s.sweep()
		}
		wait = s.o.LeaseTTL / 3
		if err != nil {
			wait = min(wait, 500*time.Millisecond)
		}
	}
}

// poke has the keeper look at the store now.
func (s *Store) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// watchConnection has the keeper look when the connection breaks, which is
// seconds before its next turn.
func (s *Store) watchConnection() {
	for pause(s.ctx, 50*time.Millisecond) {
		c, err := s.conn()
		if err != nil {
			continue
		}
		conn := c.ActiveConnection()
		state := conn.GetState()
		if state == connectivity.Shutdown {
			continue // another took its place meanwhile; the state of this one stays as it is
		}
		if state != connectivity.Ready {
			s.poke()
		}
		if !conn.WaitForStateChange(s.ctx, state) {
			return
		}
	}
}

// report notes whether the store is healthy and wakes the watches if that, or why
// it is not, is news.
func (s *Store) report(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	was := s.down
	s.down = err
	if was == nil && err == nil || was != nil && err != nil && was.Error() == err.Error() {
		return
	}
	if was == nil {
		s.log.WithError(err).Warn("the cluster's store does not answer; everything stays as it is")
	} else if err == nil && was != errUnknown {
		s.log.Info("the cluster's store answers again")
	}
	s.jump()
}

// jump has every watch begin anew with a whole list. s.mu is held.
func (s *Store) jump() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// health is the state that a watch begins with, and a channel that is closed
// when it is no longer so.
func (s *Store) health() (changed <-chan struct{}, down error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed, s.down
}

// note compares an answer's revision with the highest that was seen when the
// question was sent, or a watch's with that of its answer before. Reads and writes
// are linearizable, and a watch tells of what is committed, so it cannot be lower
// unless the store was replaced by an older copy of itself, or by an empty one;
// then it says false.
func (s *Store) note(before, revision int64) bool {
	if revision < before {
		if s.seen.CompareAndSwap(before, revision) {
			s.mu.Lock()
			s.log.WithFields(map[string]any{"known": before, "revision": revision}).Warn("the cluster's store has gone back in time")
			s.rewound = true
			s.jump()
			s.mu.Unlock()
			s.poke()
		}
		return false
	}
	for {
		now := s.seen.Load()
		// Another answer may have found out meanwhile that the store is an older
		// one; a revision of before that must not come back.
		if revision <= now || now < before || s.seen.CompareAndSwap(now, revision) {
			return true
		}
	}
}

// check is one look at the store.
func (s *Store) check() error {
	// Of several servers a silent one may be met by two of the questions.
	ctx, cancel := context.WithTimeout(s.ctx, time.Duration(min(len(s.o.Endpoints), 2))*attempt)
	defer cancel()
	if _, err := s.conn(); err != nil {
		if err := s.connect(ctx); err != nil {
			return err
		}
	}
	for {
		if err := s.look(ctx); err != errAgain { // the record was changed beside this, by SetNode perhaps
			return err
		}
	}
}

// look compares the store, and this host's record in it, with what they should be.
func (s *Store) look(ctx context.Context) error {
	me, known := s.self(), s.Instance()
	mark, next := s.marked()
	got, revision, err := s.read(ctx, clientv3.OpGet(s.k.instance()), clientv3.OpGet(s.k.info(me.ID)), clientv3.OpGet(s.k.alive(me.ID)), clientv3.OpGet(s.k.lost(me.ID)),
		clientv3.OpGet(cmp.Or(mark.Record, s.k.instance()))) // any key, if there is no mark
	if err != nil {
		if s.o.User != "" {
			s.signOut()
		}
		return err
	}
	named := got[0]
	if err := s.identify(ctx, named, revision); err != nil {
		return err
	}
	if s.Instance() == cmp.Or(known, s.o.Origin.Instance) { // the mark is of this store
		if err := s.compare(ctx, mark, got[4]); err != nil {
			return err
		}
		s.advance(next)
	} else if len(named.Kvs) == 0 || known != "" {
		named = nil // it has got another, or its first, just now
	}
	if err := s.settle(ctx, named); err != nil {
		return err
	}
	return s.enlist(ctx, got[1], got[2], got[3])
}

// identify compares the store's name with the known one, and gives it one if it
// is new. revision is how far the store has come.
func (s *Store) identify(ctx context.Context, got *clientv3.GetResponse, revision int64) error {
	if len(got.Kvs) == 0 {
		if err := s.refusal(); err != nil {
			return err // a store that was wiped is for those to name who had it
		}
		value := encode(identity{UUID: random(16), Encryption: s.o.Encryption})
		key := s.k.instance()
		r, err := s.txn(ctx, []clientv3.Cmp{absent(key)}, []clientv3.Op{clientv3.OpPut(key, value), clientv3.OpGet(key)}, []clientv3.Op{clientv3.OpGet(key)})
		if err != nil {
			return err
		}
		got = gets(r)[0]
	}
	var id identity
	if err := json.Unmarshal(got.Kvs[0].Value, &id); err != nil || id.UUID == "" {
		return fmt.Errorf("the key %s holds no name of a store; remove what else uses the prefix %s in etcd", s.k.instance(), string(s.k))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.refused = agree(id.Encryption, s.o.Encryption); s.refused != nil {
		return s.refused
	}
	if s.instance == id.UUID {
		return nil
	}
	was := s.o.Origin
	if id.UUID != cmp.Or(s.instance, was.Instance) {
		s.mark, s.last = control.Mark{}, control.Mark{}
	}
	if s.instance != "" {
		s.log.WithFields(map[string]any{"known": s.instance, "instance": id.UUID}).Warn("the cluster's store is another one than before")
	} else if id.UUID == was.Instance && revision < was.Revision {
		s.log.WithFields(map[string]any{"known": was.Revision, "revision": revision}).Warn("the cluster's store has gone back in time since this host saw it last")
		s.rewound = true
	}
	s.instance = id.UUID
	s.jump()
	return nil
}

// agree says whether a host encrypts as the store's others do. One that does not
// could not talk to them, and is not to claim anything.
func agree(theirs, own topology.Encryption) error {
	const op, on = "use the cluster's store", "encryption"
	switch {
	case theirs == own:
		return nil
	case own == topology.Plain:
		return fault.New(op, on, "the cluster's hosts encrypt what they send each other, and this one does not",
			"install the same version of particle on all hosts and join anew, or with an etcd of yours `"+hostpath.SetPlugin("PARTICLE_ENCRYPT="+string(theirs))+"`")
	case theirs == topology.Plain:
		return fault.New(op, on, "this host encrypts what it sends to others, and the cluster's others do not",
			"empty PARTICLE_ENCRYPT on this host, or set it on all hosts and begin with another etcd")
	default:
		return fault.New(op, on, fmt.Sprintf("the cluster's hosts encrypt by %s, and this one by %s", theirs, own), "install the same version of particle on all hosts")
	}
}

// enlist makes this host's record and its lease what they should be.
func (s *Store) enlist(ctx context.Context, info, alive, lost *clientv3.GetResponse) error {
	s.record.Lock()
	defer s.record.Unlock()
	if s.retired {
		return nil
	}
	if err := s.beSingle(ctx, info, alive); err != nil {
		return err
	}
	me := s.self()
	c, err := s.conn()
	if err != nil {
		return err
	}
	if s.lease != 0 {
		err := s.elsewhere(ctx, func(ctx context.Context) error {
			_, err := c.KeepAliveOnce(ctx, s.lease)
			return err
		})
		switch {
		case errors.Is(err, rpctypes.ErrLeaseNotFound):
			s.lease = 0
		case err != nil:
			return err
		}
	}
	value := encode(me)
	same := len(info.Kvs) == 1 && string(info.Kvs[0].Value) == value
	living := s.lease != 0 && len(alive.Kvs) == 1 && clientv3.LeaseID(alive.Kvs[0].Lease) == s.lease
	if same && living && len(lost.Kvs) == 0 {
		return nil
	}
	if s.lease == 0 {
		if s.lease, err = s.grant(ctx, s.o.LeaseTTL); err != nil {
			return err
		}
	}
	ops := []clientv3.Op{
		clientv3.OpPut(s.k.alive(me.ID), me.Boot, clientv3.WithLease(s.lease)),
		clientv3.OpDelete(s.k.lost(me.ID)),
	}
	if !same {
		// Claims name the tunnel address too: they go first, so that a stop in
		// between leaves the record old and the next look goes on.
		if err := s.readdress(ctx, info, me); err != nil {
			return err
		}
		ops = append(ops, clientv3.OpPut(s.k.info(me.ID), value))
	}
	// A copy that is started at the same moment has looked too, and found nobody.
	return s.swap(ctx, []clientv3.Cmp{asRead(s.k.alive(me.ID), alive)}, ops...)
}

// move is how far this host's claims say where it is reached by now.
type move struct {
	to   string // its record
	from string // see eachClaim
}

// readdress writes where this host is reached into its claims, if its record says
// that they have it otherwise.
func (s *Store) readdress(ctx context.Context, info *clientv3.GetResponse, me control.Node) error {
	if len(info.Kvs) == 0 {
		return nil // a host without a record has claims of its own making only
	}
	var was control.Node
	if err := json.Unmarshal(info.Kvs[0].Value, &was); err == nil && was.VTEP == me.VTEP && was.MAC.String() == me.MAC.String() && was.Port == me.Port {
		return nil
	}
	if value := encode(me); s.moved.to != value {
		s.moved.to, s.moved.from = value, ""
	}
	err := s.eachClaim(ctx, me.ID, &s.moved.from, func(some []owned) error { return s.rewrite(ctx, some, me) })
	if err == nil {
		s.moved.from = ""
	}
	return err
}

// rewrite has claims say where their host is reached, those that do not yet: a look
// that was cut short goes on at the next. Cause: errAgain, if some have changed since
// they were read.
func (s *Store) rewrite(ctx context.Context, claims []owned, me control.Node) error {
	claims = slices.DeleteFunc(claims, func(c owned) bool {
		return c.VTEP == me.VTEP && c.MAC.String() == me.MAC.String() && c.Port == me.Port
	})
	done := true
	for some := range slices.Chunk(claims, chunk) {
		var cmps []clientv3.Cmp
		var ops []clientv3.Op
		for _, c := range some {
			h := c.holding
			h.VTEP, h.MAC, h.Port = me.VTEP, me.MAC, me.Port
			cmps, ops = append(cmps, unchanged(c.key, c.mod)), append(ops, clientv3.OpPut(c.key, encode(h)))
		}
		r, err := s.txn(ctx, cmps, ops, nil)
		if err != nil {
			return err
		}
		done = done && r.Succeeded
	}
	if !done {
		return errAgain
	}
	return nil
}

func encode(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // our own records hold nothing that JSON cannot
	}
	return string(b)
}
