package member

import (
	"context"
	"maps"
	"net/netip"
	"slices"

	"github.com/particle-net/particle/control"
)

// watchNodes follows which hosts there are. What comes while the kernel is told is
// told at once afterwards.
func (m *Member) watchNodes(ctx context.Context, s Store) {
	news := make(chan []netip.AddrPort, 1)
	go func() {
		defer close(news)
		for u := range s.WatchNodes(ctx) {
			come := m.heardNodes(u)
			select {
			case before := <-news:
				if come != nil && before != nil {
					come = append(before, come...)
				} else {
					come = nil
				}
			default:
			}
			news <- come // only this goroutine writes, so there is room
		}
	}()
	for come := range news {
		if come != nil {
			m.letIn(ctx, come)
		} else {
			m.setMembers(ctx, nil)
		}
		m.saveNodes()
	}
}

// heardNodes follows one message, and says who has come; nil if other hosts have
// changed, too.
func (m *Member) heardNodes(u control.Update[control.NodeState]) []netip.AddrPort {
	m.mu.Lock()
	defer m.mu.Unlock()
	v := m.nodes.Update(u, m.o.Clock())
	if v.Loss != "" {
		m.o.Log.Warn("hosts were lost, and are kept: " + v.Loss)
		if m.session != nil {
			m.session.told = false
		}
		m.Wake()
	}
	if !v.Grown {
		return nil
	}
	come := make([]netip.AddrPort, 0, len(u.Put))
	for _, node := range u.Put {
		come = append(come, netip.AddrPortFrom(node.VTEP, node.Port))
	}
	return come
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
				n.back()
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
		for _, n := range m.networks {
			for subnet := range n.refills {
				n.tell(subnet, control.ErrUnreachable)
			}
		}
	}
}

// lostNetworks prepares for claiming again what the store has lost: that it lacks
// a network says nothing now, and that it calls a block ours says no more: it may be
// set back to when it was. The caller holds mu.
func (m *Member) lostNetworks(why string) {
	doubted := m.cluster.All(control.Doubted)
	m.settled = m.o.Clock() + settleFor
	for _, n := range m.networks {
		n.spare = nil // of one that is made at last, tend gives them back
	}
	for _, record := range doubted {
		if n := m.networks[record.ID]; n != nil {
			n.Seen, n.dirty = false, true
		}
	}
	m.o.Log.WithField("doubted", len(doubted)).Warn("networks were lost, and are kept: " + why)
}

// setMembers lets in the packets of all known hosts, suspects too, and of all
// who answer for addresses. more are about to.
func (m *Member) setMembers(ctx context.Context, more []netip.AddrPort) {
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
	if err := m.o.Overlay.SetMembers(ctx, slices.Collect(maps.Keys(all))); err != nil {
		if ctx.Err() == nil {
			m.o.Log.WithError(err).Warn("the kernel does not know all hosts of the cluster; trying again")
		}
		all = nil
	}
	m.mu.Lock()
	m.members = all
	m.mu.Unlock()
}

// letIn is setMembers where some come and nobody goes: one of a thousand hosts, whose
// routes wait for it.
func (m *Member) letIn(ctx context.Context, come []netip.AddrPort) {
	if len(come) > 0 && !m.addMembers(ctx, come) {
		m.setMembers(ctx, come)
	}
}

// addMembers says whether the overlay lets in those who come. Where it was not told of
// all others, or hosts have ends of WireGuard, whole lists are needed.
func (m *Member) addMembers(ctx context.Context, come []netip.AddrPort) bool {
	m.pushing.Lock()
	defer m.pushing.Unlock()
	m.mu.Lock()
	able := m.members != nil && m.node.WireGuard == nil
	var strangers []netip.AddrPort
	for _, at := range come {
		if !m.members[at] && m.admissible(at) {
			strangers = append(strangers, at)
		}
	}
	m.mu.Unlock()
	if !able || len(strangers) == 0 {
		return able
	}
	if m.o.Overlay.AddMembers(ctx, strangers) != nil {
		return false // setMembers tells why, if it cannot either
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, at := range strangers {
		m.members[at] = true
	}
	return true
}

// admitted are those whose packets are let in. The caller holds mu.
func (m *Member) admitted(more []netip.AddrPort) map[netip.AddrPort]bool {
	all := make(map[netip.AddrPort]bool, len(m.members)+len(more))
	m.nodes.Each(func(node control.NodeState) {
		all[netip.AddrPortFrom(node.VTEP, node.Port)] = true
	}, control.Current, control.Withdrawn, control.Doubted)
	for _, n := range m.networks {
		for _, p := range n.peers {
			all[netip.AddrPortFrom(p.VTEP, p.Port)] = true
		}
	}
	for _, at := range more {
		all[at] = true
	}
	maps.DeleteFunc(all, func(at netip.AddrPort, _ bool) bool { return !m.admissible(at) })
	return all
}

// admissible says whether a host of this cluster may have its end there. The kernel takes
// the list as a whole: one address that is none would keep it from changing. The caller
// holds mu.
func (m *Member) admissible(at netip.AddrPort) bool {
	addr := at.Addr()
	none := !addr.IsValid() || addr.Is4In6() || addr.Zone() != "" || addr.IsUnspecified() || addr.IsMulticast()
	return !none && m.admits(addr)
}
