package membership

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/particle-net/particle/control/enrol"
	"github.com/particle-net/particle/control/server"
	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/topology"
)

// Role is what a host is in a cluster.
type Role string

// The roles.
const (
	RoleNone     Role = "none"
	RoleMember   Role = "member"
	RoleServer   Role = "server"   // a member that serves the store
	RoleExternal Role = "external" // etcd is somebody else's
)

// Status is how it is. What could not be found out is empty, and Problem says
// why.
type Status struct {
	Role    Role
	Cluster enrol.Fingerprint // zero in none and with External
	Node    topology.NodeID
	Joined  time.Time
	Expires time.Time // of this host's certificate
	Leaving bool
	// Encryption is the cluster's, as this host was told when it joined.
	Encryption topology.Encryption
	Hosts      []enrol.Host // in the register, by name; none with External
	Store      []server.Health
	Closed     []string // ports of servers that this host does not reach, and why
	Skew       error    // this host's clock is wrong
	Problem    error
}

// Status asks the store, and waits for no longer than a few seconds.
func (m *Membership) Status(ctx context.Context) Status {
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	s := Status{Role: RoleNone, Node: m.node, Problem: cmp.Or(m.damage(), m.unheeded())}
	if x := m.external(); x != nil {
		s.Role, s.Encryption = RoleExternal, x.Encryption
		if conn, err := x.connection(); err == nil {
			s.ask(ctx, conn)
		}
		return s
	}
	c := m.state()
	if c == nil {
		return s
	}
	r := m.recordOf(c)
	s.Role, s.Cluster, s.Encryption, s.Joined, s.Leaving = RoleMember, r.Cluster, r.Encryption, r.Joined, r.Leaving
	_, s.Expires = c.identity.life()
	m.mu.Lock()
	problem := c.problem
	s.Skew = c.skew
	m.mu.Unlock()
	s.Problem = cmp.Or(problem, m.unheeded())
	conn := c.connection(r)
	if c.server != nil {
		s.Role = RoleServer
		if own := endpoint(c.server.host); !slices.Contains(conn.Endpoints, own) {
			conn.Endpoints = append(conn.Endpoints, own)
		}
		if state := c.server.store.State(); state.Problem != "" && !errors.Is(s.Problem, enrol.ErrRemoved) {
			s.Problem = fault.New("serve the store", r.Name, state.Problem, "")
		}
	}
	var probing sync.WaitGroup
	probing.Go(func() { s.Closed = c.probe(ctx, r.Servers) })
	s.ask(ctx, conn)
	probing.Wait()
	return s
}

// Removed says that the servers have told this host that it is none of the cluster's any
// more; nil if they have not. It asks nobody.
func (m *Membership) Removed() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.now == nil || !errors.Is(m.now.problem, enrol.ErrRemoved) {
		return nil
	}
	return m.now.problem
}

// damage is what is wrong on disk.
func (m *Membership) damage() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.broken
}

// ask fills in what the store knows, all servers asked at once.
func (s *Status) ask(ctx context.Context, conn *Connection) {
	client, err := server.Dial(server.Target{Endpoints: conn.Endpoints, TLS: conn.TLS, User: conn.User, Password: conn.Password})
	var all sync.WaitGroup
	s.Store = make([]server.Health, len(conn.Endpoints))
	for i, e := range conn.Endpoints {
		all.Go(func() { s.Store[i] = health(ctx, client, conn, e, err) })
	}
	if err != nil {
		all.Wait()
		return
	}
	defer client.Close()
	if s.Role != RoleExternal {
		hosts, err := client.Register().Hosts(ctx)
		if s.Hosts = hosts; err != nil && s.Problem == nil {
			s.Problem = err
		}
		slices.SortFunc(s.Hosts, func(a, b enrol.Host) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID)) })
	}
	all.Wait()
}

// health is how an endpoint is. Why it does not answer a bare connection tells
// best; failed is why there is no client, nil if there is one.
func health(ctx context.Context, client *server.Client, conn *Connection, endpoint string, failed error) server.Health {
	probing, cancel := context.WithTimeout(ctx, askLimit-time.Second)
	defer cancel()
	h := server.Health{Endpoint: endpoint}
	if failed != nil {
		h.Problem = failed.Error()
	} else {
		h = client.Check(probing, endpoint)
	}
	if h.Problem != "" && h.Version == "" {
		h.Problem = cmp.Or(why(context.WithoutCancel(ctx), endpoint, conn.TLS), h.Problem)
	}
	return h
}

// endpoint is where a server's store is reached by clients.
func endpoint(h enrol.Host) string { return "https://" + h.Clients().String() }
