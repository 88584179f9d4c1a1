package member

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/particle-net/particle/control"
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
	s, done, err := m.ask(ctx)
	if err != nil {
		return explain("claim block of", subnet.String(), err)
	}
	if s == nil {
		return fault.New("claim block of", subnet.String(), "this host is in no cluster any more", "remove the network and create it anew")
	}
	done() // it is the follower that claims
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
	m.refuseWhileSettling(id)
	for _, subnet := range m.wanted(id) {
		m.mu.Lock()
		said := m.at(id).low[subnet]
		delete(m.at(id).low, subnet) // what is said from here on is of the block that comes
		m.mu.Unlock()
		err := m.claimNext(ctx, s, id, subnet)
		m.mu.Lock()
		n := m.at(id)
		if err == nil || errors.Is(err, control.ErrNoNetwork) && (!n.here || n.Network.Removed) {
			n.lowFails, n.lowRetry = 0, 0
		} else {
			if said {
				n.low[subnet] = true
			}
			n.lowRetry = m.o.Clock() + backoff(n.lowFails)
			n.lowFails++
		}
		n.tell(subnet, err)
		m.mu.Unlock()
		if err != nil && ctx.Err() == nil {
			m.logFor(id).WithError(err).Warn("no further block of " + subnet.String())
		}
	}
}

// tell answers those who wait for a block of the subnet. The caller holds mu.
func (n *network) tell(subnet netip.Prefix, err error) {
	for _, answer := range n.refills[subnet] {
		answer <- err
	}
	delete(n.refills, subnet)
}

// refuseWhileSettling answers those who would wait in vain, and hold up all starts
// behind theirs: the store is there, but may not be asked yet.
func (m *Member) refuseWhileSettling(id topology.SharedID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if n := m.at(id); n.routes.Healthy() && m.settling(n) {
		for subnet := range n.refills {
			n.tell(subnet, control.ErrSettling)
		}
	}
}

// settling says whether the store has lost what it had, and hosts claim it again: it
// must hear of that before it can tell what is free. The caller holds mu.
func (m *Member) settling(n *network) bool {
	return m.o.Clock() < m.settled || n.routes.Count(control.Doubted) > 0
}

// wanted are the subnets of which to claim a block now. Only those of which
// somebody waits for one do not mind that the last attempt has just failed.
func (m *Member) wanted(id topology.SharedID) []netip.Prefix {
	m.mu.Lock()
	defer m.mu.Unlock()
	n, now := m.at(id), m.o.Clock()
	if !n.routes.Healthy() || m.settling(n) {
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

// claimNext has the host serve one block more, if it needs one still. What it has
// claimed before serves first: where the network cannot be made so, or not be written
// down, each attempt would take another block, which would serve nobody here and be to
// be had by nobody else.
func (m *Member) claimNext(ctx context.Context, s Store, id topology.SharedID, subnet netip.Prefix) error {
	if _, ok := m.o.Fabric.FindShared(id); !ok {
		return control.ErrNoNetwork // nobody here would use it
	}
	if err := m.setClaims(ctx, id, func(have []netip.Prefix) []netip.Prefix { return have }); err != nil {
		return err
	}
	if !m.o.Fabric.NeedsBlock(id, subnet) {
		return nil
	}
	p, err := m.claimFree(ctx, s, id, subnet)
	if err != nil {
		return err
	}
	return m.setClaims(ctx, id, func(have []netip.Prefix) []netip.Prefix { return append(have, p) })
}

// claimFree claims a block that no other host has, and tells them.
func (m *Member) claimFree(ctx context.Context, s Store, id topology.SharedID, subnet netip.Prefix) (netip.Prefix, error) {
	ctx, cancel := context.WithTimeout(ctx, storeLimit)
	defer cancel()
	c, err := s.ClaimBlock(ctx, id, subnet)
	if err != nil {
		return netip.Prefix{}, err // if it was claimed all the same, the watch tells and tend gives it back
	}
	m.mu.Lock()
	_, another := m.at(id).routes.Owner(c.Prefix)
	m.mu.Unlock()
	if another {
		// The store has lost that, or our watch lags; either way another block does.
		m.release(s, id, c.Prefix)
		return netip.Prefix{}, &claimedByAnother{c.Prefix}
	}
	if err := m.announce(ctx, s, id, c.Prefix); err != nil {
		return netip.Prefix{}, err
	}
	m.logFor(id).WithField("block", c.Prefix.String()).Info("block claimed")
	return c.Prefix, nil
}

type claimedByAnother struct{ prefix netip.Prefix }

func (e *claimedByAnother) Error() string {
	return "another host answers for " + e.prefix.String() + ", which the store gave us"
}

// setClaims changes the fabric's claims. Only the network's follower calls it.
func (m *Member) setClaims(ctx context.Context, id topology.SharedID, edit func([]netip.Prefix) []netip.Prefix) error {
	s, ok := m.o.Fabric.FindShared(id)
	if !ok {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, fabricLimit)
	defer cancel()
	claims := edit(slices.Clone(s.Claims))
	slices.SortFunc(claims, netip.Prefix.Compare)
	return m.o.Fabric.SetClaims(ctx, id, slices.Compact(claims))
}

// lowEvery is how soon a follower tries again what did not succeed.
const lowEvery = time.Second
