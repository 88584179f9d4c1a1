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
	n.GivenUp, n.dirty = false, n.dirty || n.GivenUp
	again := n.suspended != nil
	resume := again || !n.resumed
	n.suspended, n.resumed = nil, true
	m.mu.Unlock()
	if again {
		m.logFor(id).Info("claims are verified again")
	}
	if resume {
		m.tellSuspended(id)
	}
}

// tellSuspended tells the fabric whether addresses are given out, as it is by now: who has
// decided earlier, and comes later, does not have the last word.
func (m *Member) tellSuspended(id topology.SharedID) {
	m.telling.Lock()
	defer m.telling.Unlock()
	m.mu.Lock()
	why := m.at(id).suspended
	m.mu.Unlock()
	m.o.Fabric.SuspendClaims(id, why)
}

// Restore stops giving out addresses that may have another owner by now, as far as the
// disk tells. It waits for nobody, and comes before anything can ask for an address: Run
// has other things to do first.
func (m *Member) Restore() { m.suspend(m.here()) }

// here is what this host has of the networks that hosts share.
func (m *Member) here() map[topology.SharedID]fabric.SharedNetwork {
	here := map[topology.SharedID]fabric.SharedNetwork{}
	for _, s := range m.o.Fabric.Shared() {
		here[s.ID] = s
	}
	return here
}

// suspend stops giving out addresses that may have another owner by now: they were
// given up, or rule G has it so.
func (m *Member) suspend(here map[topology.SharedID]fabric.SharedNetwork) {
	for id := range here {
		why, news := m.unfit(id)
		if why == nil {
			continue
		}
		if news {
			m.logFor(id).WithError(why).Error("no new addresses until the claims are verified")
		}
		m.tellSuspended(id)
	}
}

// unfit says why a network's addresses are to be given out no more, and whether people
// are to hear of it; nil if they may be, or are not already.
func (m *Member) unfit(id topology.SharedID) (why error, news bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.at(id)
	if n.Verified == (Stamp{}) { // the disk does not know the network
		n.Verified, n.dirty = m.stamp(), true
	}
	switch {
	case n.suspended != nil:
		return nil, false
	case n.Left:
		n.suspended = fabric.ErrLeft
		return n.suspended, false // people have left it
	case n.GivenUp:
		n.suspended = fabric.ErrLeaving
	case n.Verified.age(m.stamp()) >= unverifiedFor:
		n.suspended = fabric.ErrUnverified
	}
	return n.suspended, true
}
