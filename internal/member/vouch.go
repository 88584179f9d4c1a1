package member

import (
	"context"
	"errors"
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

// leaveAll gives up what others have vouched for in this host's name of networks
// that were removed and that it does not have.
func (m *Member) leaveAll(ctx context.Context, s *session, here map[topology.SharedID]fabric.SharedNetwork) error {
	m.mu.Lock()
	var gone []topology.SharedID
	for _, record := range m.cluster.All(control.Current) {
		n := m.networks[record.ID] // who had it with this plugin has left it
		if _, ok := here[record.ID]; !ok && n == nil && record.Removed && !s.left[record.ID] {
			gone = append(gone, record.ID)
		}
	}
	m.mu.Unlock()
	for _, id := range gone {
		bounded, cancel := context.WithTimeout(ctx, storeLimit)
		err := s.store.LeaveNetwork(bounded, id)
		cancel()
		if err != nil {
			return err
		}
		s.left[id] = true // only the passes use it
	}
	return nil
}

// giveUp releases claims that the store has for us and that nobody here has.
func (m *Member) giveUp(s Store, id topology.SharedID, strays []netip.Prefix) {
	for _, p := range strays {
		if p.IsSingleIP() {
			m.ReleaseAddress(id, p.Addr())
		} else {
			m.release(s, id, p)
		}
	}
}
