package member

import (
	"cmp"
	"context"
	"errors"
	"math/rand/v2"
	"net/netip"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/particle-net/particle/control"
	"github.com/particle-net/particle/topology"
)

const (
	// shareLimit bounds what a user waits for the store.
	shareLimit = 3 * time.Second
	// storeLimit bounds each question to the store in the background.
	storeLimit = 5 * time.Second
	// engineLimit bounds one to Docker that makes or removes a network.
	engineLimit = 30 * time.Second
	listLimit   = 5 * time.Second
	// fabricLimit bounds how long the kernel and the disk take to follow a change of
	// claims, whatever the store has needed before.
	fabricLimit = 10 * time.Second
	// passEvery is how long a difference may stay that nothing has told of.
	passEvery = 10 * time.Second
	// saveEach is how much longer a network's routes wait to be written for each there is.
	saveEach = 10 * time.Millisecond
	// unverifiedFor is when rule G stops giving out addresses.
	unverifiedFor = 12 * time.Hour
	// settleFor lets the hosts claim again what they had before anything new is
	// claimed from a store that has lost it.
	settleFor = 10 * time.Second
	// retryLeast and retryMost bound the waits between attempts.
	retryLeast = 500 * time.Millisecond
	retryMost  = 30 * time.Second
)

// Member is this host's part in its cluster, or in none. All methods are safe
// for concurrent use.
type Member struct {
	o    Options
	wake chan struct{}

	// pushing keeps an older set of tunnel addresses from replacing a newer one, and
	// guards pushed. Rank: before mu.
	pushing sync.Mutex
	pushed  []topology.WireGuardPeer // what the kernel was told; nil if that has to be repeated

	// saving keeps an older record from replacing a newer one on the disk, or from
	// coming back, and guards stored. Rank: before mu.
	saving sync.Mutex
	stored map[string]control.Node // of Options.Hosts

	telling sync.Mutex // held while the fabric hears whether it gives out addresses; before mu

	// mu guards everything below. It is never held over a call to the store, to
	// Docker, to the fabric or to the disk.
	mu       sync.Mutex
	node     control.Node
	enrolled enrolment
	session  *session
	decided  chan struct{} // closed as soon as enrolled is not unknown
	networks map[topology.SharedID]*network
	cluster  *control.Hold[control.Network]
	nodes    *control.Hold[control.NodeState]
	listed   bool                    // cluster has had a list that the disk does not know
	unlisted bool                    // and did not take, as people were told
	members  map[netip.AddrPort]bool // as the overlay knows them; nil if it may not
	settled  time.Duration           // when new claims may be made after a loss
	health   Health
}

// enrolment says whether this host is in a cluster.
type enrolment int

const (
	unknown enrolment = iota
	alone
	enrolled
)

// session is one connection to the store.
type session struct {
	store   Store
	started bool
	leaving bool                       // it is to watch and to claim no more
	told    bool                       // the store knows m.node
	silent  bool                       // it has let somebody wait in vain, and has not answered since
	left    map[topology.SharedID]bool // removed networks of which this host has nothing; of who has claiming
	ctx     context.Context            // of its watches
	stop    context.CancelFunc
	running sync.WaitGroup

	claiming sync.WaitGroup // the pass and users at what may claim something; begun under mu unless leaving
}

// New reads what the disk has. Until Connect or Disconnect is called, it is not
// known whether the host is in a cluster.
func New(o Options) (*Member, error) {
	m := &Member{
		o: o, wake: make(chan struct{}, 1), node: o.Node, decided: make(chan struct{}),
		networks: map[topology.SharedID]*network{},
		cluster:  newClusterHold(), nodes: newNodeHold(),
	}
	return m, m.load()
}

func newClusterHold() *control.Hold[control.Network] {
	return control.NewHold(func(n control.Network) string { return string(n.ID) })
}

func newNodeHold() *control.Hold[control.NodeState] {
	return control.NewHold(func(n control.NodeState) string { return string(n.ID) })
}

// Enter says that the host is in a cluster whose store is not known yet.
func (m *Member) Enter() { m.change(enrolled, nil) }

// Connect says that the host is in a cluster, whose store this is. It takes the
// store over, and closes the one that it replaces.
func (m *Member) Connect(store Store) {
	m.change(enrolled, &session{store: store, left: map[topology.SharedID]bool{}})
}

// Disconnect says that the host is in no cluster. Networks that containers live on stay
// as they are, cut off from the other hosts, and give out no addresses, whatever cluster
// the host joins next.
func (m *Member) Disconnect() {
	m.change(alone, nil)
	m.markLeft()
	if err := m.erase(originKey); err != nil {
		m.o.Log.WithError(err).Warn("forget the cluster's store")
	}
	m.Wake()
}

func (m *Member) change(to enrolment, next *session) {
	m.mu.Lock()
	before := m.session
	m.session = next
	if m.enrolled == unknown {
		close(m.decided)
	}
	m.enrolled = to
	m.mu.Unlock()
	if before != nil {
		before.end(m.o.Log)
	}
	m.Wake()
}

func (s *session) end(log *logrus.Entry) {
	s.halt()
	if err := s.store.Close(); err != nil {
		log.WithError(err).Warn("close the cluster's store")
	}
	s.running.Wait()
}

// halt ends the watches.
func (s *session) halt() {
	if s.stop != nil {
		s.stop()
	}
	s.running.Wait()
}

// Wake has the host compared with the cluster now: Docker has made or removed a
// network, or has come to answer.
func (m *Member) Wake() {
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// Run keeps the host in step until ctx ends.
func (m *Member) Run(ctx context.Context) {
	m.restorePeers(ctx)
	for ctx.Err() == nil {
		m.start(ctx)
		m.pass(ctx)
		timer := time.NewTimer(m.untilNext())
		select {
		case <-m.wake:
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
	}
	m.mu.Lock()
	s := m.session
	m.session = nil
	m.mu.Unlock()
	if s != nil {
		s.end(m.o.Log)
	}
	m.flush()
	for _, here := range m.o.Fabric.Shared() {
		m.savePeers(context.WithoutCancel(ctx), here.ID)
	}
}

// start begins to watch over a new connection.
func (m *Member) start(ctx context.Context) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.session
	if s == nil || s.started || s.leaving {
		return
	}
	s.ctx, s.stop = context.WithCancel(ctx)
	s.started = true
	for _, n := range m.networks {
		n.follow = nil
		clear(n.announced)
	}
	s.running.Go(func() { m.watchNodes(s.ctx, s.store) })
	s.running.Go(func() { m.watchNetworks(s.ctx, s.store) })
}

// untilNext is when the next pass is due.
func (m *Member) untilNext() time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	now, wait := m.o.Clock(), passEvery
	for _, n := range m.networks {
		for _, at := range []time.Duration{n.retry, n.giveAt, n.leaveAt, m.settled} {
			if at > now {
				wait = min(wait, at-now)
			}
		}
	}
	if m.cluster.Waiting() || m.nodes.Waiting() {
		wait = min(wait, time.Second)
	}
	return max(wait, 10*time.Millisecond)
}

// backoff is a wait that grows with each failure, and differs between hosts.
func backoff(fails int) time.Duration {
	d := min(retryLeast<<min(fails, 10), retryMost)
	return d/2 + rand.N(d/2)
}

// failed notes why a network is not as the cluster wants it, and when to try
// again.
func (m *Member) failed(id topology.SharedID, phase Phase, err error) {
	m.mu.Lock()
	n := m.at(id)
	news := n.problem != err.Error()
	n.phase, n.problem = phase, err.Error()
	n.retry = m.o.Clock() + backoff(n.fails)
	n.fails++
	name := n.label()
	m.mu.Unlock()
	if news {
		m.o.Log.WithError(err).WithField("net", name).Warn("network is not as the cluster has it: " + string(phase))
	}
}

// done notes that a network is as the cluster has it.
func (n *network) done() {
	n.phase, n.problem, n.retry, n.fails = Ready, "", 0, 0
}

// logFor tells of a network. The caller does not hold mu.
func (m *Member) logFor(id topology.SharedID) *logrus.Entry {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.o.Log.WithField("net", m.at(id).label())
}

// label names the network for people.
func (n *network) label() string {
	return cmp.Or(n.Network.Name, n.called, n.Network.ID.Short())
}

// unreachable says whether the store did not answer.
func unreachable(err error) bool {
	return errors.Is(err, control.ErrUnreachable) || errors.Is(err, context.DeadlineExceeded)
}
