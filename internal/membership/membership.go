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
	// External is an etcd that somebody else runs; nil if there is none.
	External *External
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
}

// Membership is what this host is in a cluster. It is safe for concurrent use.
type Membership struct {
	o     Options
	node  topology.NodeID
	place place
	ctx   context.Context // ends with Close
	stop  context.CancelFunc

	change sync.Mutex // held while membership changes; taken before mu

	mu     sync.Mutex // guards what follows
	now    *current   // nil in no cluster
	conns  chan *Connection
	closed bool

	broken error // why what is on disk, or External, could not be taken up
}

// current is the membership that is in force.
type current struct {
	record   record
	identity *identity
	secret   wireguard.Secret // in an encrypted cluster
	server   *serving         // nil on a host that does not serve the store
	problem  error            // why the cluster could not be asked lately
	skew     error            // this host's clock, if it is wrong
	stop     context.CancelFunc
	done     chan struct{}
}

// Open reads what the host is, and takes up its duties in the background. It
// waits for no other host. What is wrong with a membership that is on disk is
// told by Status: the host's containers need Open to succeed.
func Open(o Options) (*Membership, error) {
	m := &Membership{o: o, place: place{o.StateDir}, conns: make(chan *Connection, 1)}
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
	if m.o.External != nil {
		c, err := m.o.External.connection()
		if err == nil {
			c.Secret, err = m.place.secret(c.Encryption)
		}
		if err == nil {
			m.deliver(c)
		}
		return err
	}
	if err := m.place.tidy(); err != nil {
		return err
	}
	r, err := m.place.now().read()
	switch {
	case err != nil:
		return err
	case r == nil:
		m.deliver(nil)
		return nil
	}
	return m.enter(*r)
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

// Connections delivers how the store is reached: at once, and whenever that
// changes; nil while the host is in no cluster. A value that was not taken yet
// gives way to a later one. There is one channel, for one receiver; Close closes
// it.
func (m *Membership) Connections() <-chan *Connection { return m.conns }

func (m *Membership) deliver(c *Connection) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return
	}
	select {
	case <-m.conns:
	default:
	}
	m.conns <- c
}

// enter takes up the duties of a membership that is on disk.
func (m *Membership) enter(r record) error {
	id, err := openIdentity(m.place.now())
	if err != nil {
		return err
	}
	secret, err := m.place.secret(r.Encryption)
	if err != nil {
		return err
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
	if !r.Leaving {
		m.deliver(c.connection(r))
	}
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

// connection is how the store is reached by what the record says.
func (c *current) connection(r record) *Connection {
	conn := &Connection{TLS: c.identity.client(), Encryption: r.Encryption, Secret: c.secret}
	for _, s := range r.Servers {
		conn.Endpoints = append(conn.Endpoints, endpoint(s))
	}
	return conn
}

// refuseExternal is the answer to what only makes sense with a store of ours.
func (m *Membership) refuseExternal(op string) error {
	if m.o.External == nil {
		return nil
	}
	return fault.New(op, "", "PARTICLE_ETCD names an etcd that is not particle's own, and the hosts that use it are the cluster",
		"set PARTICLE_ETCD on each host instead, or empty it first: `particle install --set PARTICLE_ETCD=`")
}

// address gives the one asked for, or finds one.
func (m *Membership) address(ctx context.Context, asked netip.Addr) (netip.Addr, error) {
	if asked.IsValid() {
		return asked, nil
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
