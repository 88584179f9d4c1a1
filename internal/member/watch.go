package member

import (
	"context"
	"maps"
	"net/netip"
	"slices"

	"github.com/particle-net/particle/control"
	"github.com/particle-net/particle/topology"
)

// watchNodes follows which hosts there are. What comes while the kernel is told is
// told at once afterwards.
func (m *Member) watchNodes(ctx context.Context, s Store) {
	news := make(chan struct{}, 1)
	go func() {
		defer close(news)
		for u := range s.WatchNodes(ctx) {
			m.heardNodes(u)
			select {
			case news <- struct{}{}:
			default:
			}
		}
	}()
	for range news {
		m.setMembers(ctx, nil)
		m.saveNodes()
	}
}

func (m *Member) heardNodes(u control.Update[control.NodeState]) {
	m.mu.Lock()
	defer m.mu.Unlock()
	v := m.nodes.Update(u, m.o.Clock())
	if v.Loss == "" {
		return
	}
	m.o.Log.Warn("hosts were lost, and are kept: " + v.Loss)
	if m.session != nil {
		m.session.told = false
	}
	m.Wake()
}

// watchNetworks follows which networks there are, and whether the store answers.
func (m *Member) watchNetworks(ctx context.Context, s Store) {
	for u := range s.WatchNetworks(ctx) {
		m.mu.Lock()
		v := m.cluster.Update(u, m.o.Clock())
		m.listed = m.listed || u.Whole
		m.feel(u.Down)
		if v.Loss != "" {
			m.lostNetworks(v.Loss)
		}
		for _, record := range u.Put {
			if n := m.networks[record.ID]; n != nil {
				n.Network, n.Seen, n.dirty = record, true, true
			}
		}
		m.mu.Unlock()
		m.Wake()
	}
}

// feel notes whether the watch delivers. The caller holds mu.
func (m *Member) feel(down error) {
	if down == nil && m.session != nil {
		m.session.silent = false
	}
	h := Health{Healthy: down == nil}
	if down != nil {
		h.Problem = down.Error()
	}
	if h.Healthy == m.health.Healthy && !m.health.Since.IsZero() {
		m.health.Problem = h.Problem
		return
	}
	h.Since = m.o.Wall()
	m.health = h
	if h.Healthy {
		m.o.Log.Info("the cluster's store answers")
	} else {
		m.o.Log.WithError(down).Warn("the cluster's store does not answer; everything stays as it is")
	}
}

// lostNetworks prepares for claiming again what the store has lost: that it lacks
// a network says nothing now. The caller holds mu.
func (m *Member) lostNetworks(why string) {
	doubted := m.cluster.All(control.Doubted)
	m.settled = m.o.Clock() + settleFor
	for _, record := range doubted {
		if n := m.networks[record.ID]; n != nil {
			n.Seen, n.dirty = false, true
		}
	}
	m.o.Log.WithField("doubted", len(doubted)).Warn("networks were lost, and are kept: " + why)
}

// setMembers lets in the packets of all known hosts, suspects too, and of all
// who answer for addresses. more are about to.
func (m *Member) setMembers(ctx context.Context, more []topology.Peer) {
	m.pushing.Lock()
	defer m.pushing.Unlock()
	m.mu.Lock()
	all := m.admitted(more)
	same := m.members != nil && maps.Equal(all, m.members)
	ends := m.ends()
	m.mu.Unlock()
	m.setEnds(ctx, ends)
	if same {
		return
	}
	if err := m.o.Overlay.SetMembers(ctx, slices.SortedFunc(maps.Keys(all), netip.AddrPort.Compare)); err != nil {
		if ctx.Err() == nil {
			m.o.Log.WithError(err).Warn("the kernel does not know all hosts of the cluster; trying again")
		}
		all = nil
	}
	m.mu.Lock()
	m.members = all
	m.mu.Unlock()
}

// admitted are those whose packets are let in. The caller holds mu.
func (m *Member) admitted(more []topology.Peer) map[netip.AddrPort]bool {
	all := make(map[netip.AddrPort]bool, len(m.members)+len(more))
	m.nodes.Each(func(node control.NodeState) {
		all[netip.AddrPortFrom(node.VTEP, node.Port)] = true
	}, control.Current, control.Withdrawn, control.Doubted)
	for _, n := range m.networks {
		for _, p := range n.peers {
			all[netip.AddrPortFrom(p.VTEP, p.Port)] = true
		}
	}
	for _, p := range more {
		all[netip.AddrPortFrom(p.VTEP, p.Port)] = true
	}
	maps.DeleteFunc(all, func(at netip.AddrPort, _ bool) bool { return !at.Addr().IsValid() || !m.admits(at.Addr()) })
	return all
}

// lets says whether the overlay lets in what comes from a peer. The caller holds mu.
func (m *Member) lets(p topology.Peer) bool {
	return m.members[netip.AddrPortFrom(p.VTEP, p.Port)]
}
