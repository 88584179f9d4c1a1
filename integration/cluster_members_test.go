package integration

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/particle-net/particle/internal/lab"
	"github.com/particle-net/particle/internal/runtimeapi"
)

// TestClusterMembers has a host leave a cluster and join it again, and then be removed
// while it is cut off and lives. What those that stay say to each other is not
// interrupted. What it had is others' to use, and they use it; and while it is no host
// of the cluster it reaches nobody, and the store takes nothing from it.
func TestClusterMembers(t *testing.T) {
	firstEngine(t, func(t *testing.T, engine string) {
		m := &changingCluster{brokenCluster: newBrokenCluster(t, engine, func(b *bed) clusterStore { return ownStore{b} })}
		m.first, m.second, m.third = m.beds[0], m.beds[1], m.beds[2]
		for _, step := range []struct {
			name string
			do   func(context.Context) error
		}{
			{"a host leaves", m.leaves},
			{"it joins again", m.joins},
			{"a host that lives is removed", m.removed},
			{"it comes back, and is no host of the cluster", m.stranger},
			{"it joins again with containers that live", m.rejoins},
		} {
			began := time.Now()
			if err := step.do(t.Context()); err != nil {
				t.Fatalf("%s: %v", step.name, err)
			}
			pause, lost := m.alive(step.name)
			m.keepRoutes(step.name)
			t.Logf("%s: %s; longest silence %s, %d datagrams lost", step.name, time.Since(began).Round(time.Millisecond), pause, lost)
		}
		m.history.check(t)
		m.kept()
		if err := m.first.each(func(b *bed) error {
			return errors.Join(b.clear(t.Context()), until(t.Context(), func() error { return b.clean(t.Context()) }))
		}); err != nil {
			t.Error(err)
		}
	})
}

// changingCluster is one whose third host comes and goes.
type changingCluster struct {
	*brokenCluster
	first, second, third *bed
	gone                 []*talker  // those that had to do with the third host
	heir                 []string   // containers of the first host, which have what was the third's
	twin                 netip.Addr // of the third host's container on the small network
}

// small is a network of so few addresses that what one host gives up is soon another's.
const small = "few"

// smallNetwork makes it, with a container of the third host.
func (m *changingCluster) smallNetwork(ctx context.Context) error {
	err := m.first.shares(ctx, small, "--subnet", "10.79.0.0/27", "--gateway", "10.79.0.30", "--ip-range", "10.79.0.0/28", "-o", "particle.block=30")
	if err == nil {
		m.twin, err = m.namesItself(ctx, m.third, "twin")
	}
	return err
}

// namesItself starts a container on the small network that answers with its host's name.
func (m *changingCluster) namesItself(ctx context.Context, b *bed, name string) (netip.Addr, error) {
	if _, err := b.docker(ctx, "run", "-d", "--name", name, "--network", small,
		lab.TestImage, "probe", "serve", "-listen", "0.0.0.0:80", "-name", b.host.Name()); err != nil {
		return netip.Addr{}, err
	}
	v4, _, err := b.addresses(ctx, name)
	if err != nil {
		return netip.Addr{}, err
	}
	return netip.ParseAddr(v4)
}

// leaves has the third host leave, once nothing lives there any more.
func (m *changingCluster) leaves(ctx context.Context) error {
	if err := m.smallNetwork(ctx); err != nil {
		return err
	}
	const busy = "containers use its networks here: few, jobs"
	if _, err := m.third.particle(ctx, "cluster", "leave"); err == nil || !strings.Contains(err.Error(), busy) {
		return fmt.Errorf("a host with containers leaves: %w", err)
	}
	had, err := m.claims(ctx, m.third)
	if err != nil {
		return err
	}
	m.expected = append(m.expected, had...)
	if m.gone, err = m.empty(m.third, time.Now()); err != nil {
		return err
	}
	if err := errors.Join(m.third.gone(ctx, "twin"), m.leave(ctx)); err != nil {
		return err
	}
	minute, cancel := context.WithTimeout(ctx, staleFor)
	defer cancel()
	return errors.Join(m.without(minute), m.inherits(ctx))
}

// leave has the third host leave, which takes all its routes away.
func (m *changingCluster) leave(ctx context.Context, options ...string) error {
	_, err := m.third.host.StopService(ctx, routeLog, syscall.SIGTERM)
	if err == nil {
		_, err = m.third.particle(ctx, append([]string{"cluster", "leave"}, options...)...)
	}
	return err
}

// claims are the blocks and addresses that a host has of the network of the talkers.
func (m *changingCluster) claims(ctx context.Context, b *bed) (all []netip.Prefix, err error) {
	n, err := b.network(ctx, "jobs")
	for _, pool := range n.Pools {
		for _, block := range pool.Blocks {
			if block.State != runtimeapi.BlockLeaving {
				all = append(all, block.Prefix)
			}
		}
	}
	return all, err
}

// without waits until the others know nothing of the third host any more: their kernels
// have routes to each other alone, and nobody speaks of it.
func (m *changingCluster) without(ctx context.Context) error {
	others := []*bed{m.first, m.second}
	return until(ctx, func() error {
		var errs []error
		for _, network := range []string{"jobs", small} {
			errs = append(errs, agree(context.WithoutCancel(ctx), network, others, others))
		}
		for _, b := range others {
			out, err := b.particle(context.WithoutCancel(ctx), "status")
			if err == nil && (!strings.Contains(out, "cluster: its store answers, 2 hosts alive, 0 suspect") || strings.Contains(out, m.third.host.Name())) {
				err = errors.New(out)
			}
			errs = append(errs, err)
		}
		return errors.Join(errs...)
	})
}

// inherits has the first host take all addresses of the small network that are left. One
// of its containers gets the one that the third host's had; there the second finds it.
func (m *changingCluster) inherits(ctx context.Context) error {
	const most = 16
	found := false
	for i := range most {
		name := fmt.Sprintf("heir-%d", i)
		m.heir = append(m.heir, name) // also one that was created and does not start
		a, err := m.namesItself(ctx, m.first, name)
		if err != nil && strings.Contains(err.Error(), "no free block is left") {
			break
		}
		if err != nil {
			return err
		}
		found = found || a == m.twin
	}
	if !found {
		return fmt.Errorf("%s was the third host's and is nobody's to use: %d containers have other addresses", m.twin, len(m.heir))
	}
	return until(ctx, func() error {
		out, err := m.second.docker(ctx, "run", "--rm", "--network", small, lab.TestImage, "probe", "get", netip.AddrPortFrom(m.twin, 80).String())
		if err == nil && !strings.HasPrefix(out, m.first.host.Name()+" ") {
			err = fmt.Errorf("%s answers %q", m.twin, out)
		}
		return err
	})
}

// disinherits removes the small network with all who are on it.
func (m *changingCluster) disinherits(ctx context.Context) error {
	for _, name := range m.heir {
		if err := m.first.gone(ctx, name); err != nil {
			return err
		}
	}
	m.heir = nil
	if _, err := m.first.docker(ctx, "network", "rm", small); err != nil {
		return err
	}
	return m.first.each(func(b *bed) error {
		return until(ctx, func() error {
			if _, err := b.network(ctx, small); err == nil {
				return fmt.Errorf("%s still has network %s", b.host.Name(), small)
			}
			return nil
		})
	})
}

// joins has the third host join, and all is as it was in the beginning.
func (m *changingCluster) joins(ctx context.Context) error {
	if err := errors.Join(m.disinherits(ctx), m.join(ctx)); err != nil {
		return err
	}
	if err := errors.Join(m.third.logRoutes(ctx, "jobs"), m.serve(m.third, false)); err != nil {
		return err
	}
	return m.whole(ctx)
}

// join has it join, and waits for the network of the talkers.
func (m *changingCluster) join(ctx context.Context) error {
	token, err := m.first.particle(ctx, "cluster", "token", "-q")
	if err == nil {
		_, err = m.third.particle(ctx, "cluster", "join", m.first.host.Addr4().String(), "--token", token)
	}
	if err != nil {
		return err
	}
	return until(ctx, func() error {
		_, err := m.third.network(ctx, "jobs")
		return err
	})
}

// whole has those talk again who were gone, and waits until everybody reaches everybody.
func (m *changingCluster) whole(ctx context.Context) error {
	for _, b := range m.beds {
		if err := m.settled(ctx, b); err != nil {
			return err
		}
	}
	for _, k := range m.gone {
		if err := m.talk(k.bed, k.to, k.family, k.udp); err != nil {
			return err
		}
	}
	m.gone = nil
	return m.agrees(ctx)
}

// removed has the first host remove the third, which is cut off, and lives.
func (m *changingCluster) removed(ctx context.Context) error {
	if err := m.smallNetwork(ctx); err != nil {
		return err
	}
	// What is refused later works now.
	if err := errors.Join(m.forgery(ctx, m.third.host.Name(), true), m.write(ctx)); err != nil {
		return err
	}
	had, err := m.claims(ctx, m.third)
	if err != nil {
		return err
	}
	m.expected = append(m.expected, had...)
	if err := m.third.host.Cut(); err != nil {
		return err
	}
	// It keeps its server and loses all connections, from either side.
	m.gone = m.partings(m.third)
	for _, k := range m.gone {
		if err := m.drop(k.bed, k.name, time.Now()); err != nil {
			return err
		}
	}
	out, err := m.first.particle(ctx, "cluster", "remove", m.third.host.Name())
	if err != nil || !strings.Contains(out, "h3 is removed") {
		return fmt.Errorf("%s: %w", out, err)
	}
	return errors.Join(m.without(ctx), m.inherits(ctx))
}

// forgery says whether a packet of the network arrives that a node has made by hand, at
// a container that has heard nothing yet.
func (m *changingCluster) forgery(ctx context.Context, from string, wanted bool) error {
	name := stationName("jobs")
	if err := m.first.gone(ctx, name); err != nil {
		return err
	}
	if _, err := m.first.station(ctx, "jobs", name, nil); err != nil {
		return err
	}
	arrives, err := m.first.hears(ctx, from, "jobs")
	if err == nil && arrives != wanted {
		err = fmt.Errorf("a packet from %s arrives: %v", from, arrives)
	}
	return err
}

// write has the third host write to the store, as one who has its certificate can.
func (m *changingCluster) write(ctx context.Context) error {
	ctl := ownStore{m.third}.ctl()
	ctl.endpoint = "https://" + net.JoinHostPort(m.first.host.Addr4().String(), "7791")
	_, err := ctl.run(ctx, "put", "/particle/v1/any", "by-"+m.third.host.Name())
	return err
}

// stranger has the third host come back, which is told that it is none of the cluster's,
// and is no more than that to anybody.
func (m *changingCluster) stranger(ctx context.Context) error {
	if err := m.third.host.Heal(); err != nil {
		return err
	}
	told := regexp.MustCompile(`this host was removed from the cluster; run .particle cluster leave --force. on it, then join it again`)
	for _, command := range [][]string{{"status"}, {"cluster", "status"}} {
		err := until(ctx, func() error {
			out, err := m.third.particle(ctx, command...)
			if err == nil && !told.MatchString(out) {
				err = errors.New(out)
			}
			return err
		})
		if err != nil {
			return fmt.Errorf("particle %v: %w", command, err)
		}
	}
	if err := m.write(ctx); err == nil {
		return errors.New("the store takes what a removed host writes")
	}
	if _, err := m.third.docker(ctx, "network", "create", "-d", "particle", "--ipam-driver", "particle", "never"); err == nil {
		return errors.New("a removed host makes a network of the cluster")
	}
	for _, from := range []string{m.third.host.Name(), m.first.lab.Internet().Name()} {
		if err := m.forgery(ctx, from, false); err != nil {
			return err
		}
	}
	// Its kernel still has its routes; nobody listens.
	for _, to := range []*bed{m.first, m.second} {
		at := netip.AddrPortFrom(m.held[m.server(to)][0], 7).String()
		if out, err := m.third.docker(ctx, "exec", "echo", "sh", "-c", "echo here | nc -w 2 "+strings.Replace(at, ":", " ", 1)+" | grep here"); err == nil {
			return fmt.Errorf("a container of a removed host reaches %s: %s", at, out)
		}
	}
	out, err := m.third.docker(ctx, "exec", "twin", "probe", "get", netip.AddrPortFrom(m.twin, 80).String())
	if err != nil || !strings.HasPrefix(out, m.third.host.Name()+" ") {
		return fmt.Errorf("within the removed host %s answers %q: %w", m.twin, out, err)
	}
	return m.without(ctx)
}

// rejoins has the third host join again. Its server lives, and is found at its address;
// its other container's is another's by now, and stays so.
func (m *changingCluster) rejoins(ctx context.Context) error {
	if err := m.leave(ctx, "--force"); err != nil {
		return err
	}
	if err := m.join(ctx); err != nil {
		return err
	}
	if err := errors.Join(m.third.logRoutes(ctx, "jobs"), m.whole(ctx)); err != nil {
		return err
	}
	err := until(ctx, func() error { return agree(ctx, small, []*bed{m.first, m.second}, m.beds) })
	return errors.Join(err, m.third.gone(ctx, "twin"), m.first.gone(ctx, stationName("jobs")), m.disinherits(ctx))
}

// partings are the talkers that have to do with a host. They are asked no more.
func (c *brokenCluster) partings(b *bed) (gone []*talker) {
	c.talkers = slices.DeleteFunc(c.talkers, func(k *talker) bool {
		if k.bed != b && k.to != b {
			return false
		}
		gone = append(gone, k)
		return true
	})
	return gone
}

// empty removes what is on a host, and who talks to it. They may have ended any time
// since from.
func (c *brokenCluster) empty(b *bed, from time.Time) (gone []*talker, err error) {
	gone = c.partings(b)
	err = c.drop(b, "echo", from)
	for _, k := range gone {
		err = errors.Join(err, c.drop(k.bed, k.name, from))
	}
	return gone, err
}
