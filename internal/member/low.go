package member

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/particle-net/particle/control"
	"github.com/particle-net/particle/fabric"
	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/topology"
)

// Low implements fabric.Cluster.
func (m *Member) Low(id topology.SharedID, subnet netip.Prefix) {
	m.mu.Lock()
	n := m.networks[id]
	if n != nil {
		n.low[subnet] = true
	}
	m.mu.Unlock()
	if n != nil {
		m.kick(id)
	}
}

// Refill implements fabric.Cluster.
func (m *Member) Refill(ctx context.Context, id topology.SharedID, subnet netip.Prefix) error {
	s, err := m.ask(ctx)
	if err != nil {
		return explain("claim block of", subnet.String(), err)
	}
	if s == nil {
		return fault.New("claim block of", subnet.String(), "this host is in no cluster any more", "remove the network and create it anew")
	}
	answer := make(chan error, 1)
	m.mu.Lock()
	n := m.at(id)
	n.refills[subnet] = append(n.refills[subnet], answer)
	m.mu.Unlock()
	m.kick(id)
	select {
	case err = <-answer:
	case <-ctx.Done():
		err = ctx.Err()
		m.mu.Lock()
		n.refills[subnet] = slices.DeleteFunc(n.refills[subnet], func(c chan error) bool { return c == answer })
		m.mu.Unlock()
	}
	m.doubt(err)
	if err != nil {
		return explain("claim block of", subnet.String(), err)
	}
	return nil
}

// kick has the network's follower look what there is to do.
func (m *Member) kick(id topology.SharedID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	select {
	case m.at(id).kick <- struct{}{}:
	default:
	}
}

// claimMore claims the next block of the subnets that are nearly used up, and of
// those that are. The follower of the network calls it, so there is one attempt
// at a time.
func (m *Member) claimMore(ctx context.Context, s Store, id topology.SharedID) {
	for _, subnet := range m.wanted(id) {
		err := m.claimNext(ctx, s, id, subnet)
		m.mu.Lock()
		n := m.at(id)
		if err == nil || errors.Is(err, control.ErrNoNetwork) {
			delete(n.low, subnet)
			n.lowFails, n.lowRetry = 0, 0
		} else {
			n.lowRetry = m.o.Clock() + backoff(n.lowFails)
			n.lowFails++
		}
		for _, answer := range n.refills[subnet] {
			answer <- err
		}
		delete(n.refills, subnet)
		m.mu.Unlock()
		if err != nil && ctx.Err() == nil {
			m.logFor(id).WithError(err).Warn("no further block of " + subnet.String())
		}
	}
}

// wanted are the subnets of which to claim a block now. Only those of which
// somebody waits for one do not mind that the last attempt has just failed.
func (m *Member) wanted(id topology.SharedID) []netip.Prefix {
	m.mu.Lock()
	defer m.mu.Unlock()
	n, now := m.at(id), m.o.Clock()
	// A store that has just lost what it had must hear of it before it can tell
	// what is free.
	if now < m.settled || !n.routes.Healthy() || n.routes.Count(control.Doubted) > 0 {
		return nil
	}
	all := slices.Collect(maps.Keys(n.refills))
	for subnet := range n.low {
		if now >= n.lowRetry && !slices.Contains(all, subnet) {
			all = append(all, subnet)
		}
	}
	return all
}

func (m *Member) claimNext(ctx context.Context, s Store, id topology.SharedID, subnet netip.Prefix) error {
	if _, ok := m.shared(id); !ok {
		return control.ErrNoNetwork // nobody here would use it
	}
	ctx, cancel := context.WithTimeout(ctx, storeLimit)
	defer cancel()
	c, err := s.ClaimBlock(ctx, id, subnet)
	if err != nil {
		return err // if it was claimed all the same, the watch tells and tend gives it back
	}
	m.mu.Lock()
	_, another := m.at(id).routes.Owner(c.Prefix)
	m.mu.Unlock()
	if another {
		// The store has lost that, or our watch lags; either way another block does.
		m.release(s, id, c.Prefix)
		return &claimedByAnother{c.Prefix}
	}
	if err := m.announce(ctx, s, id, c.Prefix); err != nil {
		return err
	}
	m.logFor(id).WithField("block", c.Prefix.String()).Info("block claimed")
	return m.setClaims(ctx, id, func(have []netip.Prefix) []netip.Prefix { return append(have, c.Prefix) })
}

type claimedByAnother struct{ prefix netip.Prefix }

func (e *claimedByAnother) Error() string {
	return "another host answers for " + e.prefix.String() + ", which the store gave us"
}

// shared finds the network on this host.
func (m *Member) shared(id topology.SharedID) (fabric.SharedNetwork, bool) {
	all := m.o.Fabric.Shared()
	i := slices.IndexFunc(all, func(s fabric.SharedNetwork) bool { return s.ID == id })
	if i < 0 {
		return fabric.SharedNetwork{}, false
	}
	return all[i], true
}

// setClaims changes the fabric's claims. Only the network's follower calls it.
func (m *Member) setClaims(ctx context.Context, id topology.SharedID, edit func([]netip.Prefix) []netip.Prefix) error {
	s, ok := m.shared(id)
	if !ok {
		return nil
	}
	claims := edit(slices.Clone(s.Claims))
	slices.SortFunc(claims, netip.Prefix.Compare)
	return m.o.Fabric.SetClaims(ctx, id, slices.Compact(claims))
}

// lowEvery is how soon a follower tries again what did not succeed.
const lowEvery = time.Second
