package membership

import (
	"cmp"
	"context"
	"errors"
	"net"
	"net/http"
	"slices"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/particle-net/particle/control/enrol"
	"github.com/particle-net/particle/control/server"
	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/topology"
)

// serving is what a server runs beside a member's duties. It implements
// enrol.Store.
type serving struct {
	m         *Membership
	current   *current
	host      enrol.Host
	files     files
	authority *enrol.Authority
	store     *server.Server
	client    *server.Client // to the store on this host: another may be about to leave
	identity  *identity
	http      *http.Server
	log       *logrus.Entry

	revoked *revocations
}

// serve starts the store and the enrolment port.
func (m *Membership) serve(ctx context.Context, c *current) (*serving, error) {
	f, r := c.identity.files, c.record
	authority, err := readAuthority(f)
	if err != nil {
		return nil, err
	}
	s := &serving{m: m, current: c, host: r.host(m.node), files: f, authority: authority, log: m.o.Log}
	if s.revoked, err = readRevocations(s); err != nil {
		return nil, err
	}
	s.identity = c.identity
	if s.client, err = server.Dial(server.Target{Endpoints: []string{endpoint(s.host)}, TLS: c.identity.client()}); err != nil {
		return nil, err
	}
	enrolment := enrol.NewHandler(s.authority, s, s.revoked, s.log)
	enrolment.Encryption = r.Encryption
	s.http = &http.Server{
		Handler: enrolment, TLSConfig: c.identity.server(),
		ReadTimeout: 20 * time.Second, WriteTimeout: 30 * time.Second, MaxHeaderBytes: 16 << 10, ErrorLog: quiet(),
		Protocols: new(http.Protocols),
	}
	s.http.Protocols.SetHTTP1(true) // alone: a connection of HTTP/2 carries hundreds of requests, and its number is what is bound
	s.store = server.Start(s.config, m.o.Command, s.log)
	go s.listen(ctx)
	return s, nil
}

// config is by who serves the store now, who made it does not matter.
func (s *serving) config() server.Config {
	f, others := s.files, s.m.others(s.current)
	c := server.Config{
		Host: s.host, Dir: f.data(), Others: names(others),
		Certificate: f.certificate(), Key: f.key(), Authority: f.authority(), Revoked: f.revoked(),
	}
	if len(others) > 0 {
		c.Initial = s.m.recordOf(s.current).Initial
	}
	return c
}

// listen serves enrolment until ctx ends. The address may come later than the
// plugin, at boot.
func (s *serving) listen(ctx context.Context) {
	told := false
	for ctx.Err() == nil {
		l, err := net.Listen("tcp", s.host.Enrolment().String())
		if err == nil {
			told = false
			err = s.http.ServeTLS(enrol.Bound(l), "", "")
		}
		if errors.Is(err, http.ErrServerClosed) {
			return
		}
		if !told {
			told = true
			s.log.WithError(err).Error("hosts cannot join at this server")
		}
		pause(ctx, time.Second)
	}
}

// close ends it all; hosts that are joining may still get their answer.
func (s *serving) close() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if s.http.Shutdown(ctx) != nil {
		_ = s.http.Close() // it is to end
	}
	s.store.Stop()
	_ = s.client.Close() // it was for asking alone
}

// Register implements enrol.Store. The store is started anew when a host has been
// removed, and people go on with the next command.
func (s *serving) Register(ctx context.Context) (*enrol.Register, error) {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	if state := s.store.Await(ctx); !state.Ready {
		why := state.Problem
		if why == "" {
			why = "it is starting"
		}
		return nil, fault.New("ask the cluster's store", s.host.Name, why, "try again, or see `particle cluster status` on "+s.host.Name)
	}
	return s.client.Register(), nil
}

// Servers implements enrol.Store. Each host of the cluster asks once a minute: of the
// register no more is read than the servers' own entries.
func (s *serving) Servers(ctx context.Context) ([]enrol.Host, error) {
	members, err := s.client.Members(ctx)
	if err != nil {
		return nil, err
	}
	register := s.client.Register()
	var hosts []enrol.Host
	for _, m := range members {
		if m.Learner || m.Node == "" {
			continue
		}
		h, err := register.Host(ctx, m.Node)
		if errors.Is(err, enrol.ErrNotEnrolled) {
			continue
		}
		if err != nil {
			return nil, err
		}
		hosts = append(hosts, h)
	}
	slices.SortFunc(hosts, func(a, b enrol.Host) int { return cmp.Compare(a.ID, b.ID) })
	return hosts, nil
}

// Admit implements enrol.Store.
func (s *serving) Admit(ctx context.Context, h enrol.Host) (string, error) {
	return s.client.Add(ctx, h)
}

// Dismiss implements enrol.Store. Of servers that leave at the same time none takes one
// out whose id is lower than its own: etcd carries out that each of the last two removes
// the other, and none of them starts again, or could be told that it is out.
func (s *serving) Dismiss(ctx context.Context, h enrol.Host) error {
	if s.host.ID > h.ID && s.m.isLeaving(s.current) {
		return fault.New("remove server", h.Name, s.host.Name+" is leaving too, and goes first", "repeat it when that is out")
	}
	return s.client.Remove(ctx, h)
}

// tend does what a server does again and again: enter itself if it is the first, and
// its certificate, get its vote, and write down what is revoked. It returns at the first failure.
func (s *serving) tend(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	register, err := s.Register(ctx)
	if err != nil {
		return err
	}
	if err := s.m.started(s.current); err != nil {
		return err
	}
	if err := s.promote(ctx); err != nil {
		return err
	}
	if err := s.enter(ctx, register); err != nil {
		return err
	}
	return s.revoked.Refresh(ctx)
}

// started notes that this host's server has had data: if that is lost, it cannot be had
// of the others by the same server once more.
func (m *Membership) started(c *current) error {
	if m.recordOf(c).Initial == "" {
		return nil
	}
	_, err := m.amend(c, func(r *record) { r.Initial = "" })
	return err
}

// promote gets this host's server its vote. Without one it answers nothing
// itself, so another is asked.
func (s *serving) promote(ctx context.Context) error {
	err := s.client.Promote(ctx, s.host.ID)
	c := s.m.state()
	if err == nil || c == nil {
		return err
	}
	var endpoints []string
	for _, h := range s.m.others(c) {
		endpoints = append(endpoints, endpoint(h))
	}
	if len(endpoints) == 0 {
		return err
	}
	client, err := server.Dial(server.Target{Endpoints: endpoints, TLS: s.identity.client()})
	if err != nil {
		return err
	}
	defer client.Close()
	return client.Promote(ctx, s.host.ID)
}

// enter enters this host where there is none yet, and what it is called by now, and its
// certificate if it has signed that itself: what the register does not know is not revoked
// when the host is removed.
func (s *serving) enter(ctx context.Context, register *enrol.Register) error {
	hosts, err := register.Hosts(ctx)
	if err != nil {
		return err
	}
	own := s.identity.noted()
	h, named := s.host, false
	h.Version = s.m.o.Version
	if len(hosts) > 0 {
		i := slices.IndexFunc(hosts, func(h enrol.Host) bool { return h.ID == s.host.ID })
		if i < 0 {
			return nil
		}
		h, named = hosts[i], hosts[i].Name == s.host.Name
		h.Name = s.host.Name
	}
	known := slices.ContainsFunc(h.Certificates, func(c enrol.Certificate) bool { return c.Serial == own.Serial })
	if known && named {
		return nil
	}
	if !known {
		h.Certificates = append(h.Certificates, own)
	}
	_, err = register.Enter(ctx, h)
	return err
}

// hostNamed finds a host by its name, its id or the start of one.
func hostNamed(hosts []enrol.Host, ref string) (enrol.Host, error) {
	var found []enrol.Host
	for _, h := range hosts {
		if h.Name == ref || h.ID == topology.NodeID(ref) || len(ref) >= 6 && len(ref) <= len(h.ID) && string(h.ID[:len(ref)]) == ref {
			found = append(found, h)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return enrol.Host{}, &fault.Error{Op: "find host", On: ref, Err: enrol.ErrNotEnrolled, Fix: "`particle cluster status` lists the hosts"}
	default:
		return enrol.Host{}, fault.New("find host", ref, "several hosts have this name", "use the id; `particle cluster status --json` lists the hosts")
	}
}
