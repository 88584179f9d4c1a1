package membership

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/particle-net/particle/control/enrol"
	"github.com/particle-net/particle/control/server"
	"github.com/particle-net/particle/internal/fault"
)

// Recovered is what recover tells.
type Recovered struct {
	// Former are the servers that are none any more, by name. They stay hosts of
	// the cluster.
	Former []string
}

// Recover makes this server the store's only one, from its own data, when so many
// others are gone for good that nothing can be written any more. It refuses while
// another one answers: what both go on to write could not be joined again. After a
// kill at any moment it can be repeated.
func (m *Membership) Recover(ctx context.Context) (Recovered, error) {
	m.change.Lock()
	defer m.change.Unlock()
	c, err := m.asServer(opRecover)
	if err != nil {
		return Recovered{}, err
	}
	r := m.recordOf(c)
	if r.Leaving {
		return Recovered{}, fault.New(opRecover, "", "this host is leaving the cluster", "run it on another server")
	}
	if err := m.checkLost(ctx, c); err != nil {
		if errors.Is(err, errWorks) && m.isHalf(ctx, c) {
			return m.dropServers(ctx)
		}
		return Recovered{}, err
	}
	m.halt()
	if err := m.standAlone(ctx, c); err != nil {
		return Recovered{}, errors.Join(err, m.enter(r))
	}
	r.Servers, r.Initial = []enrol.Host{r.host(m.node)}, ""
	if err := c.identity.files.write(r); err != nil {
		return Recovered{}, errors.Join(err, m.enter(r))
	}
	if err := m.begin(ctx, r); err != nil {
		return Recovered{}, err
	}
	return m.dropServers(ctx)
}

var errWorks = errors.New("it works: nothing is to be recovered")

// isHalf says whether a former plugin has made this host the store's only server, and was
// killed before it could note that of the others.
func (m *Membership) isHalf(ctx context.Context, c *current) bool {
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	former, alone, err := c.server.former(ctx)
	return err == nil && alone && len(former) > 0
}

// former lists the other hosts that serve the store by the register and not by the store
// itself, and says whether no other has a vote.
func (s *serving) former(ctx context.Context) (former []enrol.Host, alone bool, err error) {
	members, err := s.client.Members(ctx)
	if err != nil {
		return nil, false, err
	}
	alone = !slices.ContainsFunc(members, func(m server.Member) bool { return m.Node != s.host.ID && !m.Learner })
	hosts, err := s.client.Register().Hosts(ctx)
	return slices.DeleteFunc(hosts, func(h enrol.Host) bool {
		return !h.Server || h.ID == s.host.ID || slices.ContainsFunc(members, func(m server.Member) bool { return m.Is(h) })
	}), alone, err
}

// checkLost refuses while the store works, or may by itself.
func (m *Membership) checkLost(ctx context.Context, c *current) error {
	bounded, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	if _, err := c.server.client.Register().Hosts(bounded); err == nil {
		return &fault.Error{Op: opRecover, Err: errWorks, Fix: "see `particle cluster status`"}
	}
	var answers []string
	for _, h := range m.others(c) {
		client, err := server.Dial(server.Target{Endpoints: []string{endpoint(h)}, TLS: c.identity.client()})
		if err != nil {
			return err
		}
		bounded, cancel := context.WithTimeout(ctx, aloneLimit)
		if health := client.Check(bounded, endpoint(h)); health.Version != "" {
			answers = append(answers, fmt.Sprintf("%s (%s)", h.Name, h.Address))
		}
		cancel()
		_ = client.Close() // it was for asking alone
	}
	if len(answers) > 0 {
		return fault.New(opRecover, "", "another server still answers: "+strings.Join(answers, ", "),
			"wait until they find each other; or, if that one is to go, run `particle cluster leave --force` there first")
	}
	return nil
}

// aloneLimit bounds the question to a server that is thought to be gone.
const aloneLimit = 2 * time.Second

// standAlone runs the store once as its only server.
func (m *Membership) standAlone(ctx context.Context, c *current) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	config := c.server.config()
	config.Alone = true
	store := server.Start(func() server.Config { return config }, m.o.Command, m.o.Log)
	defer store.Stop()
	switch state := store.Await(ctx); {
	case state.Ready:
		return nil
	case state.Problem != "":
		return errors.New(state.Problem)
	}
	return &fault.Error{Op: opRecover, Err: errors.New("it did not start in time"), Fix: "see the log of the Docker daemon, and try again"}
}

// dropServers notes in the register that the former servers serve the store no more.
func (m *Membership) dropServers(ctx context.Context) (Recovered, error) {
	c := m.state()
	former, _, err := c.server.former(ctx)
	if err != nil {
		return Recovered{}, err
	}
	register := c.server.client.Register()
	var done Recovered
	for _, h := range former {
		h.Server = false
		if _, err := register.Enter(ctx, h); err != nil {
			return done, err
		}
		done.Former = append(done.Former, h.Name)
	}
	return done, nil
}
