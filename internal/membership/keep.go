package membership

import (
	"context"
	"errors"
	"io"
	stdlog "log"
	"slices"
	"time"

	"github.com/particle-net/particle/control/enrol"
	"github.com/particle-net/particle/internal/fault"
)

const (
	// askLimit bounds a question to one server.
	askLimit = 5 * time.Second
	// leaveLimit is longer: etcd may want to see its members for a while first.
	leaveLimit = 12 * time.Second
	// soon is the pause while something is not as it should be, and often the one
	// between two looks at servers and certificate otherwise.
	soon  = time.Second
	often = time.Minute
	// refusedFor is how long a host does without another certificate that the servers
	// have refused it. Months are left by then.
	refusedFor = time.Hour
)

// keep does a member's duties until ctx ends.
func (m *Membership) keep(ctx context.Context, c *current) {
	defer close(c.done)
	var changed <-chan struct{}
	for {
		wait := often
		if err := m.certify(c); err != nil {
			m.o.Log.WithError(err).Warn("this host's certificate is not valid by its clock")
		}
		if c.server != nil {
			if err := c.server.tend(ctx); err != nil {
				wait = soon
			} else if changed == nil {
				changed = c.server.client.Register().WatchRevoked(ctx)
			}
		}
		if m.recordOf(c).Leaving {
			go m.finishLeaving(c)
			return
		}
		err, what := m.look(ctx, c), "the cluster's servers cannot be asked"
		if wait = askAgain(wait, err); err == nil {
			err, what = m.renewDue(ctx, c), "this host's certificate is not renewed"
		}
		if ctx.Err() != nil {
			return
		}
		if m.note(c, err) {
			m.o.Log.WithError(err).Warn(what)
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-time.After(wait):
		}
	}
}

// askAgain is the pause after a question to the servers. That the host was removed is
// final: only a command makes it a member again, and does not wait for this.
func askAgain(otherwise time.Duration, err error) time.Duration {
	switch {
	case errors.Is(err, enrol.ErrRemoved):
		return often
	case err != nil:
		return min(otherwise, 5*time.Second)
	}
	return otherwise
}

// certify sees to it that the certificate is good by this host's clock: that may have
// jumped, or the host was off for long. Members have the one before, or wait for the
// clock to be set right; a server, which could not even ask the store, signs itself
// another.
func (m *Membership) certify(c *current) error {
	switch {
	case c.identity.good():
		return nil
	case c.server == nil:
		c.identity.choose()
		return nil
	}
	request, err := c.identity.request()
	if err != nil {
		return err
	}
	cert, _, err := c.server.authority.Issue(request, c.server.host.Subject(), time.Now())
	if err != nil {
		return err
	}
	m.o.Log.Warn("the clock says that this host's certificate is not valid; it has another now")
	return c.identity.renewed(cert)
}

// note keeps the latest outcome and says whether it is a failure that is new.
func (m *Membership) note(c *current, err error) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	fresh := err != nil && c.problem == nil
	c.problem = err
	return fresh
}

// look asks who the servers are.
func (m *Membership) look(ctx context.Context, c *current) error {
	servers, err := m.servers(ctx, c)
	if err != nil {
		return err
	}
	return m.update(c, servers)
}

// renewDue renews the certificate when it is time. A refusal is as good for a while:
// the clocks that it is about are not set right within seconds.
func (m *Membership) renewDue(ctx context.Context, c *current) error {
	switch {
	case !c.identity.noted().Due(time.Now()):
		return nil
	case time.Now().Before(c.refusedUntil):
		return c.refusal
	}
	err := m.renew(ctx, c)
	if errors.Is(err, enrol.ErrTooEarly) {
		c.refusal, c.refusedUntil = err, time.Now().Add(refusedFor)
	}
	return err
}

// servers asks this host's own server and, if it does not answer, the others'
// until one does: it may be this one alone that is none any more.
func (m *Membership) servers(ctx context.Context, c *current) ([]enrol.Host, error) {
	if !c.serves() {
		return m.askServers(ctx, c)
	}
	bounded, cancel := context.WithTimeout(ctx, askLimit)
	servers, err := c.server.Servers(bounded)
	cancel()
	if len(m.others(c)) == 0 {
		return servers, err
	}
	others, told := m.askServers(ctx, c) // their clock, too
	if err != nil && (told == nil || errors.Is(told, enrol.ErrRemoved)) {
		return others, told
	}
	return servers, err
}

func (m *Membership) askServers(ctx context.Context, c *current) ([]enrol.Host, error) {
	c.asking.Lock()
	defer c.asking.Unlock()
	var state enrol.State
	err := m.anyServer(ctx, c, askLimit, func(ctx context.Context, s enrol.Host) (err error) {
		state, err = m.caller(c).State(ctx, s.Enrolment())
		return err
	})
	if err != nil {
		return nil, err
	}
	skew := enrol.Skew(state.Now, time.Now())
	m.mu.Lock()
	c.skew = skew
	m.mu.Unlock()
	return state.Servers, nil
}

// serves says whether this host is a server that the others have not removed, and that
// has its data.
func (c *current) serves() bool { return c.server != nil && !c.server.store.State().Out() }

// anyServer asks one server after the other, each no longer than limit, until one
// answers. That the host was removed is an answer.
func (m *Membership) anyServer(ctx context.Context, c *current, limit time.Duration, ask func(context.Context, enrol.Host) error) error {
	var problems []error
	servers := m.others(c)
	if len(servers) == 0 {
		return fault.New("ask the cluster", "", "this host is its only server", "")
	}
	for _, s := range servers {
		bounded, cancel := context.WithTimeout(ctx, limit)
		err := ask(bounded, s)
		cancel()
		if err == nil || errors.Is(err, enrol.ErrRemoved) {
			return err
		}
		problems = append(problems, err)
	}
	return errors.Join(problems...)
}

// update notes who the servers are. An empty answer is none.
func (m *Membership) update(c *current, servers []enrol.Host) error {
	for i := range servers {
		servers[i].Certificates, servers[i].Version = nil, ""
	}
	// This host first, since it is nearest.
	slices.SortStableFunc(servers, func(a, b enrol.Host) int {
		switch m.node {
		case a.ID:
			return -1
		case b.ID:
			return 1
		}
		return 0
	})
	same := slices.EqualFunc(servers, m.recordOf(c).Servers, func(a, b enrol.Host) bool { return a.ID == b.ID && a.Clients() == b.Clients() })
	if len(servers) == 0 || same {
		return nil
	}
	if _, err := m.amend(c, func(r *record) { r.Servers = servers }); err != nil {
		return err
	}
	m.connect(c)
	return nil
}

// renew gets a new certificate, for the same key. One that the host could not keep is
// not asked for: the cluster would have it until it ends.
func (m *Membership) renew(ctx context.Context, c *current) error {
	if err := writable(c.identity.files.certificate()); err != nil {
		return &fault.Error{Op: "renew certificate", On: c.identity.files.certificate(), Err: err,
			Fix: "make the directory writable, or room on its disk, before the certificate ends at " + c.identity.noted().NotAfter.UTC().Format(time.RFC3339)}
	}
	request, err := c.identity.request()
	if err != nil {
		return err
	}
	var a *enrol.Admission
	if c.serves() {
		a, err = m.renewOwn(ctx, c, request)
	} else {
		err = m.anyServer(ctx, c, askLimit, func(ctx context.Context, s enrol.Host) (err error) {
			a, err = m.caller(c).Renew(ctx, s.Enrolment(), request)
			return err
		})
	}
	if err != nil {
		return err
	}
	return c.identity.renewed(a.Certificate)
}

// renewOwn is how a server renews its own certificate.
func (m *Membership) renewOwn(ctx context.Context, c *current, request []byte) (*enrol.Admission, error) {
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	host := c.server.host
	host.Certificates = []enrol.Certificate{c.identity.noted()}
	return c.server.authority.Renew(ctx, c.server.client.Register(), host, request)
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// quiet drops what net/http says of connections that come to nothing: anybody
// can make such.
func quiet() *stdlog.Logger { return stdlog.New(io.Discard, "", 0) }
