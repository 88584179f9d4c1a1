package membership

import (
	"context"
	"errors"
	"fmt"
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
	const op = "recover the cluster's store"
	c, err := m.asServer(op)
	if err != nil {
		return Recovered{}, err
	}
	r := m.recordOf(c)
	if r.Leaving {
		return Recovered{}, fault.New(op, "", "this host is leaving the cluster", "run it on another server")
	}
	if err := m.checkLost(ctx, c); err != nil {
		return Recovered{}, err
	}
	m.halt()
	if err := m.standAlone(ctx, c); err != nil {
		return Recovered{}, errors.Join(err, m.enter(r))
	}
	r.Servers = []enrol.Host{r.host(m.node)}
	if err := c.identity.files.write(r); err != nil {
		return Recovered{}, errors.Join(err, m.enter(r))
	}
	if err := m.begin(ctx, r); err != nil {
		return Recovered{}, err
	}
	return m.dropServers(ctx)
}

// checkLost refuses while the store works, or may by itself.
func (m *Membership) checkLost(ctx context.Context, c *current) error {
	const op = "recover the cluster's store"
	bounded, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	if _, err := c.server.client.Register().Hosts(bounded); err == nil {
		return fault.New(op, "", "it works: nothing is to be recovered", "see `particle cluster status`")
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
		return fault.New(op, "", "another server still answers: "+strings.Join(answers, ", "),
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
	store := server.Start(config, m.o.Command, m.o.Log)
	defer store.Stop()
	switch state := store.Await(ctx); {
	case state.Ready:
		return nil
	case state.Problem != "":
		return errors.New(state.Problem)
	}
	return &fault.Error{Op: "recover the cluster's store", Err: errors.New("it did not start in time"), Fix: "see the log of the Docker daemon, and try again"}
}

// dropServers notes in the register that the others serve the store no more.
func (m *Membership) dropServers(ctx context.Context) (Recovered, error) {
	register := m.state().server.client.Register()
	hosts, err := register.Hosts(ctx)
	if err != nil {
		return Recovered{}, err
	}
	var done Recovered
	for _, h := range hosts {
		if !h.Server || h.ID == m.node {
			continue
		}
		h.Server = false
		if err := register.Enter(ctx, h); err != nil {
			return done, err
		}
		done.Former = append(done.Former, h.Name)
	}
	return done, nil
}
