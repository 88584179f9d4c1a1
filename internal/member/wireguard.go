package member

import (
	"context"
	"net/netip"
	"slices"

	"github.com/particle-net/particle/control"
	"github.com/particle-net/particle/topology"
)

// SetReach follows how other hosts reach this one: its tunnel address with the UDP
// port and, in an encrypted cluster, its end of WireGuard.
func (m *Member) SetReach(at netip.AddrPort, end *control.WireGuard) {
	m.mu.Lock()
	changed := m.node.VTEP != at.Addr() || m.node.Port != at.Port() || !sameEnd(m.node.WireGuard, end)
	m.node.VTEP, m.node.Port, m.node.WireGuard = at.Addr(), at.Port(), end
	if s := m.session; s != nil && changed {
		s.told = false
	}
	m.mu.Unlock()
	if changed {
		m.pushing.Lock()
		m.pushed = nil // the device goes with the membership, and a new one has no peers
		m.pushing.Unlock()
		m.Wake()
	}
}

func sameEnd(a, b *control.WireGuard) bool {
	return a == b || a != nil && b != nil && *a == *b
}

// admits says whether a tunnel address is one that a host of this cluster may have:
// in an encrypted one it is WireGuard's, so that no packet to it leaves in plain,
// and in any other it is not. The caller holds mu.
func (m *Member) admits(vtep netip.Addr) bool {
	return topology.WireGuardRange.Contains(vtep) == (m.node.WireGuard != nil)
}

// ends are the other hosts' ends of WireGuard. A host has the tunnel address of its
// id and no other; of two with one key the first has it. The caller holds mu.
func (m *Member) ends() (list []topology.WireGuardPeer) {
	if m.node.WireGuard == nil {
		return nil
	}
	nodes := m.nodes.All(control.Current, control.Withdrawn, control.Doubted)
	if len(nodes) == 0 {
		return nil // the list of hosts was not heard yet: it has this one, too
	}
	list = []topology.WireGuardPeer{}
	taken := map[topology.WireGuardKey]bool{m.node.WireGuard.Key: true}
	for _, n := range nodes {
		addr, err := topology.WireGuardAddress(n.ID)
		if n.ID == m.node.ID || n.WireGuard == nil || err != nil || n.VTEP != addr || taken[n.WireGuard.Key] {
			continue
		}
		taken[n.WireGuard.Key] = true
		list = append(list, topology.WireGuardPeer{Address: addr, Key: n.WireGuard.Key, Endpoint: n.WireGuard.Endpoint})
	}
	return list
}

// setEnds tells the kernel who is at the other ends, if that is news. pushing is
// held.
func (m *Member) setEnds(ctx context.Context, list []topology.WireGuardPeer) {
	if list == nil || m.pushed != nil && slices.Equal(list, m.pushed) {
		return
	}
	if err := m.o.Overlay.SetWireGuardPeers(ctx, list); err != nil {
		if ctx.Err() == nil {
			m.o.Log.WithError(err).Warn("WireGuard does not know all hosts of the cluster; trying again")
		}
		list = nil
	}
	m.pushed = list
}

// saveNodes has the hosts of an encrypted cluster on disk: after a boot without the
// store nothing else tells their keys.
func (m *Member) saveNodes() {
	m.mu.Lock()
	now := map[string]control.Node{}
	if m.node.WireGuard != nil {
		for _, n := range m.nodes.All(control.Current, control.Withdrawn, control.Doubted) {
			now[string(n.ID)] = n.Node
		}
	}
	m.mu.Unlock()
	m.saving.Lock()
	defer m.saving.Unlock()
	for id, n := range now {
		had, ok := m.stored[id]
		if ok && had.VTEP == n.VTEP && sameEnd(had.WireGuard, n.WireGuard) {
			continue
		}
		if err := m.o.Hosts.Put(id, n); err != nil {
			m.o.Log.WithError(err).Warn("what is known of a host is not on disk")
			continue
		}
		m.stored[id] = n
	}
	for id := range m.stored {
		if _, ok := now[id]; ok {
			continue
		}
		if err := m.o.Hosts.Delete(id); err != nil {
			m.o.Log.WithError(err).Warn("a host that has left is still on disk")
			continue
		}
		delete(m.stored, id)
	}
}
