package member

import (
	"cmp"
	"context"
	"errors"
	"net/netip"
	"slices"
	"time"

	"github.com/particle-net/particle/control"
	"github.com/particle-net/particle/fabric"
	"github.com/particle-net/particle/topology"
)

// restorePeers takes over what the fabric has kept, until a store answers: of the
// routes, the disk may lack what came last.
func (m *Member) restorePeers(ctx context.Context) {
	here := m.o.Fabric.Shared()
	m.mu.Lock()
	for _, s := range here {
		n := m.at(s.ID)
		n.peers, n.peersSet = s.Peers, true
	}
	m.mu.Unlock()
	m.setMembers(ctx, nil)
}

// followAll has one goroutine for each shared network of this host.
func (m *Member) followAll(here map[topology.SharedID]fabric.SharedNetwork) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for id, n := range m.networks {
		var local fabric.SharedNetwork
		local, n.here = here[id]
		n.called = cmp.Or(local.Name, n.called)
		if !n.here {
			n.peers, n.peersSet = nil, false // one that is made again has none
		}
	}
	s := m.session
	if s == nil || !s.started || s.leaving {
		return
	}
	for id, n := range m.networks {
		if _, ok := here[id]; !ok && n.follow != nil {
			n.follow()
			n.follow = nil
		}
	}
	for id := range here {
		n := m.at(id)
		if n.follow != nil || len(n.Network.Subnets) == 0 {
			continue
		}
		own, stop := context.WithCancel(s.ctx)
		n.follow = stop
		record := n.Network
		s.running.Go(func() { m.follow(own, s.store, record) })
	}
}

// follow keeps one network's peers and claims as the store has them. What comes
// while it is at that is applied at once afterwards.
func (m *Member) follow(ctx context.Context, s Store, record control.Network) {
	m.mu.Lock()
	kick := m.at(record.ID).kick
	m.mu.Unlock()
	news := make(chan bool, 1)
	go m.hear(s.WatchRoutes(ctx, record), record.ID, news)
	tick := time.NewTicker(lowEvery)
	defer tick.Stop()
	var tended, save time.Duration
	for {
		due, open := false, true
		select {
		case due, open = <-news:
			if !open {
				return
			}
		case <-kick:
		case <-tick.C:
			m.mu.Lock()
			n := m.at(record.ID)
			if n.routes.Waiting() && n.routes.Tick(m.o.Clock()) {
				n.dirty = true
			}
			due = n.routes.Healthy() && (n.untended || m.o.Clock()-tended > passEvery)
			m.mu.Unlock()
		}
		m.setPeers(ctx, record.ID)
		if now := m.o.Clock(); now >= save {
			save = now + m.saveEvery(record.ID)
			if !m.save(ctx, record.ID) {
				save = now + passEvery // each of many networks asks the same disk
			}
		}
		if due {
			tended = m.o.Clock()
			m.tend(ctx, s, record.ID)
		}
		m.vouch(ctx, s, record.ID)
		m.claimMore(ctx, s, record.ID)
	}
}

// hear follows a network's watch until that ends. news holds one word for all that
// has come since it was read: whether to tend.
func (m *Member) hear(updates <-chan control.Update[control.Route], id topology.SharedID, news chan bool) {
	defer close(news)
	for u := range updates {
		due := m.heard(id, u)
		select {
		case before := <-news:
			due = due || before
		default:
		}
		news <- due // only this goroutine writes, so there is room
	}
}

// heard follows one message, and says whether our claims are to be compared with
// the store's.
func (m *Member) heard(id topology.SharedID, u control.Update[control.Route]) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.at(id)
	own := func(r control.Route) bool { return r.Node == m.o.Node.ID }
	ours := u.Whole || slices.ContainsFunc(u.Put, own) || slices.ContainsFunc(u.Deleted, own)
	var before []netip.Prefix
	if ours {
		before = n.routes.Own()
	}
	v := n.routes.Update(u, m.o.Clock())
	n.dirty, n.heard = n.dirty || v.Changed, n.heard || u.Whole
	m.forgotten(n, v.Forgotten)
	log := m.o.Log.WithField("net", n.label())
	if v.Loss != "" {
		m.settled = m.o.Clock() + settleFor
		clear(n.announced)
		log.WithField("doubted", n.routes.Count(control.Doubted)).Warn("routes were lost, and are kept: " + v.Loss)
	}
	d := len(n.routes.Duplicates())
	if d > n.doubles {
		log.WithField("duplicates", d).Error("two hosts answer for the same addresses")
	}
	n.doubles = d
	return u.Down == nil && (u.Whole || ours && !slices.Equal(before, n.routes.Own()))
}

// setPeers tells the fabric who the peers are, if that is known and news.
func (m *Member) setPeers(ctx context.Context, id topology.SharedID) {
	m.mu.Lock()
	n := m.at(id)
	peers := n.routes.Peers(m.node.VTEP)
	if foreign := func(p topology.Peer) bool { return !m.admits(p.VTEP) }; slices.ContainsFunc(peers, foreign) {
		peers = slices.DeleteFunc(slices.Clone(peers), foreign)
	}
	news := n.heard && (!n.peersSet || !slices.EqualFunc(peers, n.peers, topology.Peer.Equal))
	if !news {
		m.mu.Unlock()
		return
	}
	var strangers []netip.AddrPort
	for _, p := range peers {
		if at := netip.AddrPortFrom(p.VTEP, p.Port); !m.members[at] {
			strangers = append(strangers, at)
		}
	}
	m.mu.Unlock()
	m.letIn(ctx, strangers)
	err := m.o.Fabric.SetPeers(ctx, id, peers)
	unset := ""
	if err != nil && !errors.Is(err, fabric.ErrNoNetwork) { // it is being made
		unset = err.Error()
	}
	m.mu.Lock()
	n.peers, n.peersSet = peers, err == nil
	news = unset != "" && unset != n.unset
	n.unset = unset
	m.mu.Unlock()
	if news && ctx.Err() == nil {
		m.logFor(id).WithError(err).Warn("routes to the other hosts are not in the kernel; trying again")
	}
}

// saveEvery is how long what comes waits to be written: a burst is not written one by
// one, and all routes of a network are each time. If the plugin is killed meanwhile, the
// next tells of them to nobody but a store that answers, which has them too.
func (m *Member) saveEvery(id topology.SharedID) time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	return min(lowEvery+time.Duration(m.at(id).routes.Count(control.Current))*saveEach, passEvery)
}

// save has on disk what is known of a network, and says whether it could.
func (m *Member) save(ctx context.Context, id topology.SharedID) bool {
	written := m.flush(id)
	return m.savePeers(ctx, id) && written
}

// savePeers has on disk what setPeers has told the fabric, and says whether it could.
func (m *Member) savePeers(ctx context.Context, id topology.SharedID) bool {
	err := m.o.Fabric.SavePeers(ctx, id)
	m.mu.Lock()
	n := m.at(id)
	news := err != nil && !n.unkept
	n.unkept = err != nil
	m.mu.Unlock()
	if news {
		m.logFor(id).WithError(err).Warn("routes to the other hosts are not on disk; trying again")
	}
	return err == nil
}

// tend compares this host's claims with the store's: what it lacks is claimed again,
// and what it has for us and we do not know of is given back. The answer to a claim may
// have been lost, or the store was set back to when that was ours; it may be another's
// since, and have containers on it.
func (m *Member) tend(ctx context.Context, s Store, id topology.SharedID) {
	here, ok := m.o.Fabric.FindShared(id)
	if !ok {
		return
	}
	m.mu.Lock()
	n := m.at(id)
	if n.untended = !m.standing(n) || m.o.Clock()-n.sharedAt < shareLimit; n.untended {
		m.mu.Unlock()
		return
	}
	own, record := n.routes.Own(), n.Network
	var lost []netip.Prefix
	for _, d := range n.routes.Duplicates() {
		if d.Loser == m.o.Node.ID {
			lost = append(lost, d.Prefix)
		}
	}
	var strays, missing []netip.Prefix
	for _, p := range own {
		switch {
		case slices.Contains(here.Claims, p), slices.Contains(lost, p):
		case p.IsSingleIP() && (n.singles[p.Addr()] || n.releasing[p.Addr()] != nil): // on its way
		default:
			strays = append(strays, p)
		}
	}
	m.mu.Unlock()
	for _, p := range here.Claims {
		if !slices.Contains(own, p) {
			missing = append(missing, p)
		}
	}
	bounded, cancel := context.WithTimeout(ctx, storeLimit)
	defer cancel()
	m.giveUp(s, id, strays)
	taken, err := m.restore(bounded, s, record, missing)
	lost = append(lost, taken...)
	for _, p := range here.Claims {
		if err == nil && !slices.Contains(lost, p) {
			err = m.announce(bounded, s, id, p)
		}
	}
	if slices.ContainsFunc(lost, func(p netip.Prefix) bool { return slices.Contains(here.Claims, p) }) {
		m.logFor(id).WithField("lost", lost).Warn("claims are not what this host thought")
		err = errors.Join(err, m.setClaims(ctx, id, func(have []netip.Prefix) []netip.Prefix {
			return slices.DeleteFunc(have, func(p netip.Prefix) bool { return slices.Contains(lost, p) })
		}))
		here, ok = m.o.Fabric.FindShared(id)
	}
	if err == nil && ok {
		err = m.answer(bounded, s, here)
	}
	if err != nil {
		if ctx.Err() == nil && !errors.Is(err, fabric.ErrNoNetwork) {
			m.logFor(id).WithError(err).Warn("claims not compared with the store; trying again")
		}
		return
	}
	m.verified(id)
}

// standing says whether the cluster has the network, or has lost it. To claim
// again what is in a network that was removed would bring it back. The caller
// holds mu.
func (m *Member) standing(n *network) bool {
	_, standing, kept := m.cluster.Find(string(n.Network.ID))
	return !n.Seen || m.cluster.Healthy() && kept && standing != control.Withdrawn
}

// restore claims again what the store does not have. taken is what others have
// by now.
func (m *Member) restore(ctx context.Context, s Store, record control.Network, missing []netip.Prefix) (taken []netip.Prefix, err error) {
	for _, p := range missing {
		e := s.Restore(ctx, record, control.Claim{Network: record.ID, Prefix: p, Node: m.o.Node.ID})
		switch {
		case errors.Is(e, control.ErrTaken):
			m.o.Log.WithError(e).WithField("net", record.Name).Error("another host has " + p.String() + " by now; it is given out no more here")
			taken = append(taken, p)
		case e != nil:
			return taken, e
		}
	}
	return taken, nil
}
