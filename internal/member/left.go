package member

import (
	"context"
	"errors"

	"github.com/particle-net/particle/control"
	"github.com/particle-net/particle/fabric"
	"github.com/particle-net/particle/topology"
)

// A host that leaves its cluster may have containers on that one's networks. Such a network
// stays until they end, cut off, and is marked as left, on the disk too. If the host joins
// a cluster that has the network it is the host's again, as when it comes back to the one
// that it left. Any other cluster, or the same where the network was removed meanwhile, is
// not told of it: it has lost nothing.

// errLeft is for people.
var errLeft = errors.New("it is of a cluster that this host has left, and containers of this host still live on it; it goes when they end")

// markLeft forgets the cluster that this host has left, all but which of its networks the
// host knew.
func (m *Member) markLeft() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for id, n := range m.networks {
		if n.Left {
			continue
		}
		left := m.newNetwork(Known{Network: control.Network{ID: id}, Left: true})
		left.here, left.called, left.suspended, left.dirty = n.here, n.called, n.suspended, true
		m.networks[id] = left
	}
	m.cluster, m.nodes, m.listed = newClusterHold(), newNodeHold(), false
	m.health = Health{}
}

// holdLeft has no addresses given out of the networks that were left: others may have them.
// known says that this host's cluster, if it is in one, has not got them: those that no
// container lives on go.
func (m *Member) holdLeft(ctx context.Context, here map[topology.SharedID]fabric.SharedNetwork, known bool) {
	for id, local := range here {
		m.mu.Lock()
		n := m.at(id)
		left, suspended, inCluster := n.Left, n.suspended == fabric.ErrLeft, m.enrolled == enrolled
		if left && known {
			n.peers, n.peersSet = nil, false // of those that the disk had
		}
		m.mu.Unlock()
		if !left {
			continue
		}
		if !suspended {
			m.setSuspended(id, fabric.ErrLeft)
		}
		if known && inCluster && local.Live {
			m.failed(id, Leaving, errLeft)
		}
		if known {
			m.letGo(ctx, local)
		}
	}
}

// back notes that a network that was left is the cluster's that this host is in. The caller
// holds mu.
func (n *network) back() {
	if n.Left {
		n.Left, n.GivenUp = false, true // until it is verified what of it is still this host's
		n.done()
	}
}
