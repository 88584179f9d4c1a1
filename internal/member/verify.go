package member

import (
	"time"

	"github.com/particle-net/particle/fabric"
	"github.com/particle-net/particle/topology"
)

// stampEvery is how stale the disk's moment of the last verification may be.
const stampEvery = 10 * time.Minute

// verified notes that the store has all of this host's claims on a network.
func (m *Member) verified(id topology.SharedID) {
	m.mu.Lock()
	n := m.at(id)
	now := m.stamp()
	if n.saved.age(now) > stampEvery {
		n.dirty, n.saved = true, now
	}
	n.Verified = now
	resume := n.suspended
	n.suspended = false
	m.mu.Unlock()
	if resume {
		m.logFor(id).Info("claims are verified again")
		m.o.Fabric.SuspendClaims(id, false)
	}
}

// suspend stops giving out addresses that may have another owner by now (rule G).
func (m *Member) suspend(here map[topology.SharedID]fabric.SharedNetwork) {
	for id := range here {
		m.mu.Lock()
		n := m.at(id)
		if n.Verified == (Stamp{}) { // the disk does not know the network
			n.Verified, n.dirty = m.stamp(), true
		}
		late := m.enrolled != alone && !n.suspended && n.Verified.age(m.stamp()) >= unverifiedFor
		n.suspended = n.suspended || late
		m.mu.Unlock()
		if late {
			m.logFor(id).Error("claims were not verified for 12 h; no new addresses until they are")
			m.o.Fabric.SuspendClaims(id, true)
		}
	}
}
