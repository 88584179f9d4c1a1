package membership

import (
	"context"
	"crypto/tls"
	"encoding/pem"
	"errors"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/particle-net/particle/control/enrol"
	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/internal/wireguard"
	"github.com/particle-net/particle/topology"
)

// Options are what a membership needs to know of its host.
type Options struct {
	StateDir string // /var/lib/particle, as this process sees it
	Name     string // host name
	Port     uint16 // first of three TCP ports
	Version  string // of the plugin
	// Address finds the address that other hosts reach this one at.
	Address func(context.Context) (netip.Addr, error)
	// Command executes this program as the store's server.
	Command []string
	// External is an etcd that somebody else runs; nil if there is none. A membership
	// that is on disk comes before it.
	External *External
	// Known lists the hosts that use External, as its store tells. May be nil without.
	Known func() []enrol.Host
	// CanEncrypt says why this host cannot encrypt what it sends to others; nil if
	// it can. May be nil, which is likewise.
	CanEncrypt func() error
	Log        *logrus.Entry

	// Busy lists what keeps the host from leaving: containers on shared
	// networks, for people. May be nil.
	Busy func(context.Context) ([]string, error)
	// Leaving gives up this host's part of all networks. May be nil.
	Leaving func(context.Context) error
	// Removing gives up another host's part. May be nil.
	Removing func(context.Context, topology.NodeID) error
}

// Connection is how the cluster's store is reached. TLS follows renewals of the
// certificate by itself.
type Connection struct {
	Endpoints []string // URLs
	TLS       *tls.Config
	User      string // empty without authentication
	Password  string
	// Encryption is the cluster's, and Secret this host's key for it.
	Encryption topology.Encryption
	Secret     wireguard.Secret

	of *current // the membership; nil with External
}

// Membership is what this host is in a cluster. It is safe for concurrent use.
type Membership struct {
	o     Options
	node  topology.NodeID
	place place
	ctx   context.Context // ends with Close
	stop  context.CancelFunc

	change sync.Mutex // held while membership changes; taken before mu
	using  sync.Mutex // held by Use; taken after change, and before mu

	mu     sync.Mutex // guards what follows
	now    *current   // nil in no cluster, and with External
	extern *External  // nil unless it is in force
	conns  chan *Connection
	closed bool
	behind int           // how many connections were delivered and are not in use yet
	caught chan struct{} // closed, and replaced, when one is

	broken error // why what is on disk, or External, could not be taken up
}

// current is the membership that is in force.
type current struct {
	record   record
	identity *identity
	secret   wireguard.Secret // in an encrypted cluster
	server   *serving         // nil on a host that does not serve the store
	going    bool             // it is giving up its part, or has
	problem  error            // why the cluster could not be asked lately
	skew     error            // this host's clock, if it is wrong
	stop     context.CancelFunc
	done     chan struct{}

	// amending keeps an older record from replacing a newer one. Taken after change, and
	// before mu.
	amending sync.Mutex
	// asking lets one question at a time tell the servers who this host is: what one began
	// to say before the record changed is not to come after what the next one says.
	asking sync.Mutex

	// The last refusal of another certificate, and until when none is asked for: keep's
	// own.
	refusal      error
	refusedUntil time.Time
}

// Open reads what the host is, and takes up its duties in the background. It
// waits for no other host. What is wrong with a membership that is on disk is
// told by Status: the host's containers need Open to succeed.
func Open(o Options) (*Membership, error) {
	m := &Membership{o: o, place: place{o.StateDir}, conns: make(chan *Connection, 2), caught: make(chan struct{})}
	m.ctx, m.stop = context.WithCancel(context.Background())
	if err := os.MkdirAll(o.StateDir, 0o755); err != nil {
		return nil, err
	}
	var err error
	if m.node, err = nodeID(o.StateDir); err != nil {
		return nil, err
	}
	if m.broken = m.resume(); m.broken != nil {
		o.Log.WithError(m.broken).Error("this host cannot take part in its cluster")
	}
	return m, nil
}

// resume takes up what is on disk. After an error nothing was delivered: that
// would tell a host that is in a cluster that it is in none.
func (m *Membership) resume() error {
	if err := m.place.tidy(); err != nil {
		return err
	}
	r, err := m.place.now().read()
	switch {
	case err != nil:
		return err
	case r != nil: // whatever External is: on a server, other hosts rely on it
		return m.enter(*r)
	case m.o.External != nil:
		return m.useExternal()
	}
	m.deliver(nil)
	return nil
}

// Close ends what runs in the background. The host stays what it is.
func (m *Membership) Close() error {
	m.stop()
	m.change.Lock()
	defer m.change.Unlock()
	m.halt()
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.closed {
		m.closed = true
		close(m.conns)
	}
	return nil
}

// Node gives the host's id.
func (m *Membership) Node() topology.NodeID { return m.node }

// enter takes up the duties of a membership that is on disk.
func (m *Membership) enter(r record) error {
	id, err := openIdentity(m.place.now())
	if err != nil && r.Server {
		id, err = m.certifyAnew(r, err)
	}
	if err == nil {
		err = id.belongs(m.node)
	}
	if err != nil {
		return err
	}
	secret, err := m.place.secret(r.Encryption)
	if err != nil {
		return err
	}
	if r.Name != m.o.Name { // it may have another since it joined
		r.Name = m.o.Name
		if err := m.place.now().write(r); err != nil {
			m.o.Log.WithError(err).Warn("the host's new name is not on disk")
		}
	}
	ctx, stop := context.WithCancel(m.ctx)
	c := &current{record: r, identity: id, secret: secret, stop: stop, done: make(chan struct{})}
	if r.Server {
		if c.server, err = m.serve(ctx, c); err != nil {
			stop()
			return err
		}
	}
	m.mu.Lock()
	m.now = c
	m.mu.Unlock()
	m.connect(c)
	go m.keep(ctx, c)
	return nil
}

// halt ends the duties.
func (m *Membership) halt() {
	m.mu.Lock()
	c := m.now
	m.now = nil
	m.mu.Unlock()
	if c == nil {
		return
	}
	c.stop()
	<-c.done
	if c.server != nil {
		c.server.close()
	}
}

// state gives the membership in force, nil if there is none.
func (m *Membership) state() *current {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.now
}

// recordOf gives a membership's record as it is now.
func (m *Membership) recordOf(c *current) record {
	m.mu.Lock()
	defer m.mu.Unlock()
	return c.record
}

// amend changes a membership's record, on disk first, and gives what it is then.
func (m *Membership) amend(c *current, change func(*record)) (record, error) {
	c.amending.Lock()
	defer c.amending.Unlock()
	r := m.recordOf(c)
	change(&r)
	if err := c.identity.files.write(r); err != nil {
		return r, err
	}
	m.mu.Lock()
	c.record = r
	m.mu.Unlock()
	return r, nil
}

// connection is how the store is reached by what the record says.
func (c *current) connection(r record) *Connection {
	conn := &Connection{TLS: c.identity.client(), Encryption: r.Encryption, Secret: c.secret, of: c}
	for _, s := range r.Servers {
		conn.Endpoints = append(conn.Endpoints, endpoint(s))
	}
	return conn
}

// address gives the one asked for, or finds one. All hosts are told it, so one that means
// another host to each of them, or none, will not do.
func (m *Membership) address(ctx context.Context, asked netip.Addr) (netip.Addr, error) {
	if asked.IsValid() {
		broadcast := netip.AddrFrom4([4]byte{255, 255, 255, 255})
		addr := asked.Unmap()
		if addr.IsUnspecified() || addr.IsMulticast() || addr.Zone() != "" || addr == broadcast {
			return addr, fault.New("use address", asked.String(), "other hosts do not reach this one at it", "name one of this host's addresses with --address, or omit it")
		}
		return addr, nil
	}
	addr, err := m.o.Address(ctx)
	if err == nil && !addr.IsValid() {
		err = errors.New("this host has no address that others could reach")
	}
	if err != nil {
		return addr, &fault.Error{Op: "find this host's address", Err: err, Fix: "name it with --address"}
	}
	return addr, nil
}

func pemBytes(text []byte) []byte {
	if block, _ := pem.Decode(text); block != nil {
		return block.Bytes
	}
	return nil
}

// caller is this host as it asks servers.
func (m *Membership) caller(c *current) enrol.Caller {
	r := m.recordOf(c)
	return enrol.Caller{TLS: c.identity.client(), Hello: enrol.Hello{Name: r.Name, Address: r.Address, Port: r.Port, Version: m.o.Version}}
}

// others lists servers to ask, without this host.
func (m *Membership) others(c *current) []enrol.Host {
	var all []enrol.Host
	for _, s := range m.recordOf(c).Servers {
		if s.ID != m.node {
			all = append(all, s)
		}
	}
	return all
}

// startLimit bounds how long a command waits for the store on this host.
const startLimit = 12 * time.Second
