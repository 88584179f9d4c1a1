package etcd

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/particle-net/particle/control"
	"github.com/particle-net/particle/internal/fault"
)

// attempt is how long an operation waits for one answer. Without a bound of our own a
// transaction waits for ever while the store has no quorum.
const attempt = 3 * time.Second

// errRewound is the cause of an attempt that has found out that the store was set
// back. It went through, perhaps, on records that are out of date.
var errRewound = errors.New("the store has gone back in time")

// errAgain is the cause of an attempt that met another host's.
var errAgain = errors.New("other hosts were faster each time")

// do carries out an operation: it repeats f until f succeeds, fails for a cause
// that repeating cannot cure, or time is up. f must bear that an earlier
// attempt of it has gone through, though it was told otherwise.
func (s *Store) do(ctx context.Context, op, on string, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, s.o.Patience)
	defer cancel()
	for wait := 10 * time.Millisecond; ; wait = min(2*wait, time.Second) {
		err := s.try(ctx, f)
		if err == nil {
			return nil
		}
		if !errors.Is(err, errAgain) {
			if definite(err) {
				return s.explain(op, on, err)
			}
			s.poke()
		}
		if !pause(ctx, wait) {
			return s.explain(op, on, fmt.Errorf("%w: %w", control.ErrUnreachable, err))
		}
	}
}

func (s *Store) try(ctx context.Context, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, attempt)
	defer cancel()
	defer context.AfterFunc(s.ctx, cancel)() // nobody answers any more
	if s.ctx.Err() != nil {
		return errClosed
	}
	if err := s.admission(); err != nil {
		return err
	}
	return f(ctx)
}

// explain gives an error its shape and its remedy.
func (s *Store) explain(op, on string, err error) error {
	var f *fault.Error
	if errors.As(err, &f) {
		return err
	}
	return &fault.Error{Op: op, On: on, Err: err, Fix: remedy(err)}
}

func remedy(err error) string {
	switch {
	case errors.Is(err, errClosed):
		return "repeat: the plugin is stopping, or goes on with other servers of the cluster"
	case errors.Is(err, errAgain):
		return "repeat"
	case errors.Is(err, control.ErrUnreachable):
		return "check that etcd runs and that this host reaches it (particle cluster status); running containers are not affected"
	case errors.Is(err, control.ErrSettling):
		return "repeat in some minutes; what was claimed before works on"
	case errors.Is(err, control.ErrSettled):
		return "see with `particle cluster status` which hosts are away; start them before others use up the network"
	case errors.Is(err, control.ErrNoNetwork):
		return "it was removed on another host; create it anew"
	case errors.Is(err, control.ErrExhausted):
		return "remove unused hosts (particle cluster leave) or create a network with a larger subnet or smaller blocks"
	case errors.Is(err, rpctypes.ErrNoSpace):
		return "etcd is full: compact and defragment it, raise its quota and clear the alarm"
	}
	switch code(err) {
	case codes.PermissionDenied, codes.Unauthenticated:
		return "check the user, the password and the rights of the user on the prefix in etcd"
	case codes.FailedPrecondition, codes.InvalidArgument:
		return "check the user and password that etcd expects, and its log"
	}
	return ""
}

func code(err error) codes.Code {
	var e rpctypes.EtcdError
	if errors.As(err, &e) {
		return e.Code()
	}
	return status.Code(err)
}

// definite says whether an error tells that the operation was not carried out,
// and will not be if it is repeated.
func definite(err error) bool {
	for _, cause := range []error{control.ErrTaken, control.ErrExhausted, control.ErrNoNetwork, control.ErrReserved, control.ErrSettling, control.ErrSettled, errClosed, rpctypes.ErrNoSpace} {
		if errors.Is(err, cause) {
			return true
		}
	}
	var f *fault.Error
	if errors.As(err, &f) {
		return true
	}
	switch code(err) {
	case codes.PermissionDenied, codes.InvalidArgument:
		return true
	}
	return errors.Is(err, rpctypes.ErrAuthNotEnabled)
}

// pause waits for about d, which keeps hosts that met from meeting again; false
// if ctx ends first.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d/2 + rand.N(d))
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// elsewhere asks one server and then, if there are several, others, as long as none has
// answered: one that has lost the others refuses, one whose disk hangs is silent, and one
// that has died takes the connection with it. The client turns to another each time (see
// turns), of those to which it has a connection by then. What is asked must bear being asked
// twice, as in do.
func (s *Store) elsewhere(ctx context.Context, ask func(context.Context) error) error {
	// Without this a server that has lost the others would be silent for long, too.
	ctx = clientv3.WithRequireLeader(ctx)
	if len(s.o.Endpoints) == 1 {
		return ask(ctx)
	}
	began := time.Now()
	for wait := 10 * time.Millisecond; ; wait = min(2*wait, 100*time.Millisecond) {
		asking, cancel := context.WithTimeout(ctx, attempt/2) // which leaves time for another
		err := ask(asking)
		again := asking.Err() != nil || code(err) == codes.Unavailable
		cancel()
		if err == nil || !again || time.Since(began) > attempt*2/3 || !pause(ctx, wait) {
			return err
		}
	}
}

// txn is one transaction. The revision of the answer is compared with what was
// seen before the question: a store that has gone back in time is not the one we
// know.
func (s *Store) txn(ctx context.Context, cmps []clientv3.Cmp, then, otherwise []clientv3.Op) (*clientv3.TxnResponse, error) {
	c, err := s.conn()
	if err != nil {
		return nil, err
	}
	var r *clientv3.TxnResponse
	seen := s.seen.Load()
	err = s.elsewhere(ctx, func(ctx context.Context) (err error) {
		r, err = c.Txn(ctx).If(cmps...).Then(then...).Else(otherwise...).Commit()
		return err
	})
	if err != nil {
		return nil, err
	}
	if !s.note(seen, r.Header.Revision) {
		return nil, errRewound
	}
	return r, nil
}

// grant is a new lease; 0 if there is none.
func (s *Store) grant(ctx context.Context, ttl time.Duration) (id clientv3.LeaseID, err error) {
	c, err := s.conn()
	if err != nil {
		return 0, err
	}
	err = s.elsewhere(ctx, func(ctx context.Context) error {
		r, err := c.Grant(ctx, max(1, int64(ttl/time.Second)))
		if err == nil {
			id = r.ID
		}
		return err
	})
	return id, err
}

// read is several reads of one moment.
func (s *Store) read(ctx context.Context, ops ...clientv3.Op) ([]*clientv3.GetResponse, int64, error) {
	r, err := s.txn(ctx, nil, ops, nil)
	if err != nil {
		return nil, 0, err
	}
	return gets(r), r.Header.Revision, nil
}

// gets are the answers to the reads of a transaction.
func gets(r *clientv3.TxnResponse) []*clientv3.GetResponse {
	var out []*clientv3.GetResponse
	for _, one := range r.Responses {
		if g := one.GetResponseRange(); g != nil {
			out = append(out, (*clientv3.GetResponse)(g))
		}
	}
	return out
}

func badAddress(addr netip.Addr, err error) error {
	return &fault.Error{Op: "claim address", On: addr.String(), Err: err, Fix: "choose another address of the network's subnets"}
}

// blockTaken is addressTaken for one that lies in a block: nobody may be using it.
func (s *Store) blockTaken(ctx context.Context, addr netip.Addr, h holding, block netip.Prefix) error {
	err := s.addressTaken(ctx, addr, h, fmt.Sprintf(" with the block %s", block))
	err.Fix += ", or create the network with --ip-range and take fixed addresses outside it"
	return err
}

// addressTaken tells who has an address.
func (s *Store) addressTaken(ctx context.Context, addr netip.Addr, h holding, how string) *fault.Error {
	who := s.nameOf(ctx, h.Node)
	if h.Holder != "" {
		who = fmt.Sprintf("container %s on %s", h.Holder, who)
	}
	return &fault.Error{
		Op: "claim address", On: addr.String(),
		Err: fmt.Errorf("%w by %s%s", control.ErrTaken, who, how),
		Fix: "choose another address or leave it out",
	}
}
