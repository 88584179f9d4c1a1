package etcd

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"

	"github.com/particle-net/particle/control"
	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/topology"
)

// Options say where the store is and which host asks.
type Options struct {
	Endpoints      []string            // host:port or URLs of etcd's members; one is enough
	TLS            *tls.Config         // nil speaks plain text
	User, Password string              // empty if etcd wants none
	Prefix         string              // of all keys; empty is "/particle/v1/"
	Node           control.Node        // this host
	Encryption     topology.Encryption // as this host has it; a store whose hosts have another serves it nothing
	Origin         control.Origin      // the store as this host saw it last; zero if it never did
	LeaseTTL       time.Duration       // 0 is 30 s; a host is suspect when it has been silent for so long
	Settle         time.Duration       // 0 is 10 min; how long hosts have to claim again what the store has lost
	Abandon        time.Duration       // 0 is 24 h; a host that has been away for so long loses its claims
	Patience       time.Duration       // 0 is 10 s; how long an operation waits for the store if its caller sets no earlier deadline
	Log            *logrus.Entry       // nil keeps silent
}

var errClosed = errors.New("the store is closed on this host")

// Store is one host's view of the cluster's store. All of its methods may be
// called from any goroutine, whether etcd runs or not.
type Store struct {
	o   Options
	k   keys
	log *logrus.Entry

	ctx     context.Context // ends with Close
	cancel  context.CancelFunc
	done    sync.WaitGroup
	wake    chan struct{} // asks the keeper to look at the store now
	listing chan struct{} // has one for each network that is being listed
	seen    atomic.Int64  // highest revision an answer has carried

	record  sync.Mutex // held while this host's record is written; before mu
	lease   clientv3.LeaseID
	retired bool // RemoveNode takes this host away, or has
	moved   move // the last change of where this host is reached

	sweepAt   time.Time // of the keeper's goroutine, as is sightings
	sightings map[topology.NodeID]sighting

	mu       sync.Mutex
	client   *clientv3.Client // nil until the first connection, see connect
	node     control.Node
	instance string        // of the store; empty until it has answered
	mark     control.Mark  // of what the store has told; see compare
	last     control.Mark  // of what it told last
	rewound  bool          // the store was set back, and does not know it yet
	down     error         // why the store is unhealthy; nil if it is not
	refused  error         // why this host is none of the store's; nil if it is
	double   error         // which other host has this one's id; nil if none has
	looked   bool          // for such a host, once at least
	changed  chan struct{} // closed when instance, down or revision have jumped
}

var (
	_ control.Allocator   = (*Store)(nil)
	_ control.Directory   = (*Store)(nil)
	_ control.Distributor = (*Store)(nil)
)

var errUnknown = errors.New("it has not answered yet")

// Open starts to look after this host's record in the store, and to keep a
// connection to it. It does not wait for the store and fails only for options
// that can never work.
func Open(ctx context.Context, o Options) (*Store, error) {
	if err := o.complete(); err != nil {
		return nil, err
	}
	s := &Store{
		o: o, k: keys(o.Prefix), log: o.Log, node: o.Node, mark: o.Origin.Mark, last: o.Origin.Mark,
		wake: make(chan struct{}, 1), listing: make(chan struct{}, listsAtOnce), down: errUnknown, changed: make(chan struct{}), sightings: map[topology.NodeID]sighting{},
	}
	s.ctx, s.cancel = context.WithCancel(context.WithoutCancel(ctx))
	if o.User == "" {
		// Without a password nothing is asked when a client is made, so what fails
		// now fails for ever.
		if err := s.connect(ctx); err != nil {
			s.cancel()
			return nil, &fault.Error{Op: "open the cluster's store", On: strings.Join(o.Endpoints, ","), Err: err, Fix: "check the endpoints"}
		}
	}
	s.done.Go(s.keep)
	return s, nil
}

func (o *Options) complete() error {
	if len(o.Endpoints) == 0 {
		return fault.New("open the cluster's store", "", "no endpoint is given", "pass the address of one of etcd's members, such as 10.0.0.1:2379")
	}
	if o.Node.ID == "" {
		return fault.New("open the cluster's store", "", "this host has no id", "pass one")
	}
	if o.Prefix == "" {
		o.Prefix = "/particle/v1/"
	}
	if !strings.HasSuffix(o.Prefix, "/") {
		o.Prefix += "/"
	}
	if o.LeaseTTL == 0 {
		o.LeaseTTL = 30 * time.Second
	}
	if o.Settle == 0 {
		o.Settle = 10 * time.Minute
	}
	if o.Abandon == 0 {
		o.Abandon = 24 * time.Hour
	}
	if o.Patience == 0 {
		o.Patience = 10 * time.Second
	}
	if o.Log == nil {
		silent := logrus.New()
		silent.SetOutput(io.Discard)
		o.Log = logrus.NewEntry(silent)
	}
	return nil
}

// connect makes the client. With a user it asks etcd for a token, and so can
// fail because etcd is away.
func (s *Store) connect(ctx context.Context) error {
	c, err := clientv3.New(clientv3.Config{
		Endpoints: s.o.Endpoints, TLS: s.o.TLS, Username: s.o.User, Password: s.o.Password,
		Context: s.ctx, DialTimeout: attempt, Logger: zap.NewNop(),
		// A server that went away without a word is noticed within 13 s even if nothing
		// is asked. gRPC takes less than 10 s for 10 s.
		DialKeepAliveTime: 10 * time.Second, DialKeepAliveTimeout: 3 * time.Second, PermitWithoutStream: true,
		DialOptions: []grpc.DialOption{
			// gRPC would wait up to two minutes before it tries a store again that was
			// away for long.
			grpc.WithConnectParams(grpc.ConnectParams{
				Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.3, MaxDelay: 2 * time.Second},
				MinConnectTimeout: attempt,
			}),
			grpc.WithDisableServiceConfig(), // etcd's client has one, with gRPC's own balancer
			grpc.WithDefaultServiceConfig(`{"loadBalancingConfig":[{"` + turnsName + `":{}}]}`),
		},
	})
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ctx.Err() != nil {
		c.Close()
		return errClosed
	}
	if err := ctx.Err(); err != nil { // the answer came too late for this look
		c.Close()
		return err
	}
	s.client = c
	return nil
}

// signOut gives up a client whose token etcd may not know any more: it forgets
// them when it ends. The client cannot get itself another from etcd 3.4, and does
// not say so either: it tries until its time is up.
func (s *Store) signOut() {
	s.mu.Lock()
	c := s.client
	s.client = nil
	s.mu.Unlock()
	if c != nil {
		_ = c.Close() // it was of no use any more
	}
}

// conn is the client, or why there is none. An operation may find none between two of
// its questions: the store was closed meanwhile, or the keeper has just given the client
// up, and has not said yet that the store is down.
func (s *Store) conn() (*clientv3.Client, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.client != nil:
		return s.client, nil
	case s.ctx.Err() != nil:
		return nil, errClosed
	}
	return nil, cmp.Or(s.down, errUnknown)
}

// Close ends all watches and lets this host be shown as suspect. Its claims
// stay: its containers run on.
func (s *Store) Close() error {
	s.cancel()
	s.done.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.client == nil {
		return nil
	}
	err := s.client.Close()
	s.client = nil
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// Instance is the name that the store was given when it was first used; another
// one says that it is not the store it was. Empty until the store has answered.
func (s *Store) Instance() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.instance
}

// Healthy is nil while the store answers, or why it does not.
func (s *Store) Healthy() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.down
}

// refusal is why this host is none of the store's.
func (s *Store) refusal() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return cmp.Or(s.refused, s.double)
}

// admission is why this host may not ask the store for anything: it is none of the
// store's, or the keeper has not found out whether it is, for the reason it has.
func (s *Store) admission() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.instance == "" || !s.looked {
		return cmp.Or(s.refused, s.double, s.down, errUnknown)
	}
	return cmp.Or(s.refused, s.double)
}

// self is this host as it is now.
func (s *Store) self() control.Node {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.node
}

// hold is the value of a claim of this host.
func (s *Store) hold(holder string) holding {
	n := s.self()
	return holding{Node: n.ID, VTEP: n.VTEP, MAC: n.MAC, Port: n.Port, Holder: holder, Op: random(8)}
}

// random is n random bytes in hex digits.
func random(n int) string {
	b := make([]byte, n)
	rand.Read(b) // never fails: it ends the process if the kernel has no random numbers
	return hex.EncodeToString(b)
}
