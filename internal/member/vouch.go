package member

import (
	"context"
	"errors"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"github.com/particle-net/particle/control"
	"github.com/particle-net/particle/fabric"
	"github.com/particle-net/particle/topology"
)

// A host that does not reach a store which has lost everything cannot claim again
// what it had, and may live all the same. The others tell the store what they
// remember of it, once those who are there have had time to come, and each of them
// begins at another moment: what one has told, the next need not.

// vouchEach is how much later hosts begin on average for each host there is.
const vouchEach = 100 * time.Millisecond

// vouchMost bounds what a host tells before it looks at the watch again.
const vouchMost = 32

// forgotten notes what the store has lost of other hosts. The caller holds mu.
func (m *Member) forgotten(n *network, lost []control.Route) {
	if len(lost) == 0 {
		return
	}
	for _, r := range lost {
		if r.Node != m.o.Node.ID && !slices.ContainsFunc(n.Vouch, same(r)) {
			n.Vouch = append(n.Vouch, r)
		}
	}
	hosts := len(m.nodes.All(control.Current, control.Withdrawn, control.Doubted))
	n.vouchAt = m.o.Clock() + settleFor + rand.N(2*vouchEach*time.Duration(hosts)+1)
}

// same finds what a host answers for, wherever it was reached.
func same(r control.Route) func(control.Route) bool {
	return func(v control.Route) bool { return v.Node == r.Node && v.Prefix == r.Prefix }
}

// vouch tells the store what this host remembers of those who have not come.
func (m *Member) vouch(ctx context.Context, s Store, id topology.SharedID) {
	m.mu.Lock()
	n := m.at(id)
	had := len(n.Vouch)
	n.Vouch = slices.DeleteFunc(n.Vouch, n.routes.Told)
	n.dirty = n.dirty || len(n.Vouch) != had
	due := n.routes.Healthy() && m.o.Clock() >= n.vouchAt
	record, todo := n.Network, slices.Clone(n.Vouch[:min(len(n.Vouch), vouchMost)])
	m.mu.Unlock()
	if !due {
		return
	}
	for _, r := range todo {
		if err := m.vouchFor(ctx, s, record, r); err != nil {
			m.logFor(id).WithError(err).Warn("what the store has lost of a host that is away is not kept for it yet")
			m.mu.Lock()
			n.vouchAt = m.o.Clock() + settleFor
			m.mu.Unlock()
			return
		}
		m.mu.Lock()
		n.dirty = true
		n.Vouch = slices.DeleteFunc(n.Vouch, same(r))
		m.mu.Unlock()
	}
}

// vouchFor tells of one route. An error is worth another attempt.
func (m *Member) vouchFor(ctx context.Context, s Store, record control.Network, r control.Route) error {
	owner := control.Node{ID: r.Node, VTEP: r.VTEP, MAC: r.MAC, Port: r.Port}
	m.mu.Lock()
	if known, _, ok := m.nodes.Find(string(r.Node)); ok {
		owner = known.Node
	}
	m.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, storeLimit)
	defer cancel()
	err := s.Vouch(ctx, record, r, owner)
	log := m.o.Log.WithFields(map[string]any{"net": record.Name, "prefix": r.Prefix.String(), "node": r.Node})
	switch {
	case err == nil:
		log.Warn("kept for a host that has not come back to the store that lost it")
	case errors.Is(err, control.ErrSettled), errors.Is(err, control.ErrTaken):
		log.WithError(err).Error("not kept for a host that has not come back: another may get it")
		return nil
	}
	return err
}

// answer says what is true of that which others have vouched for in this host's
// name. What it has is claimed again by tend; what it has no more but in the hands
// of containers stays so marked until they end, and so does what another host has
// got meanwhile.
func (m *Member) answer(ctx context.Context, s Store, here fabric.SharedNetwork) error {
	m.mu.Lock()
	n := m.at(here.ID)
	record, own, vouched, node := n.Network, n.routes.Own(), n.routes.Vouched(), m.node
	m.mu.Unlock()
	for _, p := range vouched {
		if !slices.Contains(here.Claims, p) && !slices.Contains(here.Leaving, p) {
			m.release(s, here.ID, p)
		}
	}
	for _, p := range here.Leaving {
		if slices.Contains(vouched, p) || slices.Contains(own, p) {
			continue
		}
		if err := s.Vouch(ctx, record, node.Route(here.ID, p), node); err != nil {
			return err
		}
	}
	return nil
}

// leaveAll gives up what the store has for this host of networks that were removed
// and that it does not have: what others have vouched for in its name, and what it
// had claimed to make one.
func (m *Member) leaveAll(ctx context.Context, s *session, here map[topology.SharedID]fabric.SharedNetwork) error {
	for _, id := range m.strange(s, here) {
		bounded, cancel := context.WithTimeout(ctx, storeLimit)
		err := m.depart(bounded, s.store, id)
		cancel()
		if err != nil {
			return err
		}
		s.left[id] = true
	}
	return nil
}

// strange are the removed networks that leaveAll is to leave. Only the passes call
// it, as s.left is theirs.
func (m *Member) strange(s *session, here map[topology.SharedID]fabric.SharedNetwork) []topology.SharedID {
	m.mu.Lock()
	defer m.mu.Unlock()
	var all []topology.SharedID
	for _, record := range m.cluster.All(control.Current) {
		n := m.networks[record.ID]
		// One that Share is at is here, and one that a user has removed is unshareAll's.
		if _, ok := here[record.ID]; ok || !record.Removed || n != nil && (n.here || n.Unshared || n.making) {
			continue
		}
		if n != nil && len(n.spare) > 0 { // claimed since it was left
			n.spare = nil
			delete(s.left, record.ID)
		}
		if !s.left[record.ID] {
			all = append(all, record.ID)
		}
	}
	return all
}

// depart takes back what this host has announced of a network, and gives up its
// claims on it.
func (m *Member) depart(ctx context.Context, s Store, id topology.SharedID) error {
	m.mu.Lock()
	var said []netip.Prefix
	if n := m.networks[id]; n != nil {
		said = slices.Collect(maps.Keys(n.announced))
	}
	m.mu.Unlock()
	var err error
	for _, p := range said {
		err = errors.Join(err, m.withdraw(ctx, s, id, p))
	}
	return errors.Join(err, s.LeaveNetwork(ctx, id))
}

// giveUp releases claims that the store has for us and that nobody here has.
func (m *Member) giveUp(s Store, id topology.SharedID, strays []netip.Prefix) {
	for _, p := range strays {
		if p.IsSingleIP() {
			m.giveBackAddress(id, p.Addr(), true)
		} else {
			m.release(s, id, p)
		}
	}
}
