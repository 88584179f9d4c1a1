package member

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/particle-net/particle/control"
	"github.com/particle-net/particle/fabric"
	"github.com/particle-net/particle/internal/engine"
	"github.com/particle-net/particle/topology"
)

// registerAfter is how long the cluster's list may lack a network of ours that it
// never had: the watch lags behind Share.
const registerAfter = 15 * time.Second

// orphanAfter is how long a network that this host registered may stay without
// Docker having it.
const orphanAfter = 2 * time.Minute

// pass compares this host with the cluster and does what is due.
func (m *Member) pass(ctx context.Context) {
	here := m.here()
	m.suspend(here)
	m.followAll(here)
	m.mu.Lock()
	m.nodes.Tick(m.o.Clock())
	m.cluster.Tick(m.o.Clock())
	s, healthy, isAlone := m.session, m.cluster.Healthy(), m.enrolled == alone
	started := s != nil && s.started
	m.mu.Unlock()
	switch {
	case isAlone:
		m.forget(ctx, here)
		m.setMembers(ctx, nil) // none of the cluster that it has left
	case started:
		m.holdLeft(ctx, here, healthy)
		m.setMembers(ctx, nil)
		m.agree(ctx, s, here, healthy)
	}
	m.clean()
	m.flush()
}

// agree brings this host and the store together, unless the host is about to leave.
func (m *Member) agree(ctx context.Context, s *session, here map[topology.SharedID]fabric.SharedNetwork, healthy bool) {
	if !m.claims(s) {
		return
	}
	defer s.claiming.Done()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	defer context.AfterFunc(s.ctx, stop)() // Leave is not to wait for Docker
	err := m.tell(ctx, s)
	if err == nil {
		err = m.unshareAll(ctx, s, here)
	}
	if err == nil && healthy {
		err = errors.Join(m.compare(ctx, s.store, here), m.leaveAll(ctx, s, here))
	}
	if err != nil && ctx.Err() == nil {
		m.o.Log.WithError(err).Info("not in step with the cluster yet")
	}
}

// clean forgets what neither this host nor the cluster has any more.
func (m *Member) clean() {
	m.mu.Lock()
	listed := map[topology.SharedID]bool{}
	for _, record := range m.cluster.All(control.Current, control.Withdrawn, control.Doubted) {
		listed[record.ID] = true
	}
	var gone []topology.SharedID
	for id, n := range m.networks {
		if m.cluster.Healthy() && !listed[id] && !n.here && !n.Unshared && !n.making && len(n.releasing) == 0 {
			delete(m.networks, id)
			gone = append(gone, id)
		}
	}
	m.mu.Unlock()
	for _, id := range gone {
		if err := m.erase(id); err != nil {
			m.o.Log.WithError(err).Warn("forget a shared network")
		}
	}
}

// compare brings Docker and the cluster's list of networks together. It ends
// early if the store or Docker does not answer.
func (m *Member) compare(ctx context.Context, s Store, here map[topology.SharedID]fabric.SharedNetwork) error {
	if err := m.giveBackAll(ctx, s, here); err != nil {
		return err
	}
	m.findOrphans(here)
	bounded, cancel := context.WithTimeout(ctx, listLimit)
	specs, err := m.o.Engine.Specs(bounded)
	cancel()
	if err != nil {
		return err // dockerd may be down, or starting
	}
	if err := m.nameAll(ctx, s, here, specs); err != nil {
		return err
	}
	m.removeAll(ctx, here)
	m.removeTwins(ctx, here, specs)
	m.makeAll(ctx, here, specs)
	return nil
}

// tell lets the cluster know this host.
func (m *Member) tell(ctx context.Context, s *session) error {
	m.mu.Lock()
	node, told := m.node, s.told
	m.mu.Unlock()
	if told {
		return nil
	}
	bounded, cancel := context.WithTimeout(ctx, storeLimit)
	defer cancel()
	if err := s.store.SetNode(bounded, node); err != nil {
		return err
	}
	m.mu.Lock()
	s.told = s.told || m.node.VTEP == node.VTEP && m.node.Port == node.Port && sameEnd(m.node.WireGuard, node.WireGuard)
	m.mu.Unlock()
	return nil
}

// forget lets go of a cluster that this host has left. All networks that are here are its.
func (m *Member) forget(ctx context.Context, here map[topology.SharedID]fabric.SharedNetwork) {
	m.markLeft()
	m.mu.Lock()
	var gone []topology.SharedID
	for id := range m.networks {
		if _, stays := here[id]; !stays {
			gone = append(gone, id)
			delete(m.networks, id)
		}
	}
	m.mu.Unlock()
	m.saveNodes()
	m.holdLeft(ctx, here, true)
	for _, id := range gone {
		if err := m.erase(id); err != nil {
			m.o.Log.WithError(err).Warn("forget a shared network")
		}
	}
}

// letGo removes a network of the cluster that this host has left, which has no
// addresses to give out here any more. One that containers live on stays, cut off,
// until they end.
func (m *Member) letGo(ctx context.Context, local fabric.SharedNetwork) {
	if err := errors.Join(m.o.Fabric.SetPeers(ctx, local.ID, nil), m.o.Fabric.SavePeers(ctx, local.ID)); err != nil {
		m.o.Log.WithError(err).Warn("routes to the other hosts are left")
	}
	if local.Live || local.Doomed {
		return
	}
	bounded, cancel := context.WithTimeout(ctx, engineLimit)
	defer cancel()
	log := m.o.Log.WithField("net", local.Name)
	if err := m.o.Engine.Remove(bounded, local.Network); err != nil {
		log.WithError(err).Warn("network of the cluster that this host has left not removed; trying again")
		return
	}
	log.Info("network removed: it is the cluster's, which this host has left")
}

// unshareAll carries out what users have removed here.
func (m *Member) unshareAll(ctx context.Context, s *session, here map[topology.SharedID]fabric.SharedNetwork) error {
	m.mu.Lock()
	pending := map[topology.SharedID]bool{} // whether the cluster knows
	for id, n := range m.networks {
		if n.Unshared && m.o.Clock() >= n.leaveAt {
			pending[id] = n.Told
		}
	}
	m.mu.Unlock()
	for id, told := range pending {
		if !told {
			if err := m.removeShared(ctx, s.store, id); err != nil {
				return err
			}
		}
		if _, stays := here[id]; !stays {
			if err := m.leave(ctx, s.store, id); err != nil {
				return err
			}
			s.left[id] = true
			continue
		}
		m.mu.Lock()
		n := m.at(id) // its last container may end at once, or in a month
		n.phase, n.retry = Leaving, m.o.Clock()+backoff(n.fails)
		n.fails++
		m.mu.Unlock()
	}
	return nil
}

func (m *Member) removeShared(ctx context.Context, s Store, id topology.SharedID) error {
	ctx, cancel := context.WithTimeout(ctx, storeLimit)
	defer cancel()
	if err := s.RemoveNetwork(ctx, id); err != nil {
		m.failed(id, Leaving, err)
		return err
	}
	m.mu.Lock()
	n := m.at(id)
	n.Told, n.dirty = true, true
	m.mu.Unlock()
	m.logFor(id).Info("the cluster knows that the network is removed")
	return nil
}

// leave gives up what this host had of a network, and forgets it: no process of
// this host lives in it any more.
func (m *Member) leave(ctx context.Context, s Store, id topology.SharedID) error {
	ctx, cancel := context.WithTimeout(ctx, storeLimit)
	defer cancel()
	if err := m.depart(ctx, s, id); err != nil {
		m.failed(id, Leaving, err)
		return err
	}
	m.logFor(id).Info("network left")
	m.mu.Lock()
	n := m.at(id)
	follow := n.follow
	fresh := m.newNetwork(Known{Network: n.Network, Seen: n.Seen})
	fresh.Network.Removed = true
	m.networks[id] = fresh
	m.mu.Unlock()
	if follow != nil {
		follow()
	}
	return m.erase(id)
}

// giveBackAll gives back to the store the networks that it has lost.
func (m *Member) giveBackAll(ctx context.Context, s Store, here map[topology.SharedID]fabric.SharedNetwork) error {
	for id, local := range here {
		record, due := m.lost(id, local)
		if !due {
			continue
		}
		if err := m.giveBack(ctx, s, record, local); err != nil {
			m.failed(id, Pending, err)
			m.mu.Lock()
			m.at(id).giveAt = m.at(id).retry
			m.mu.Unlock()
			if unreachable(err) {
				return err
			}
			continue
		}
		m.mu.Lock()
		n := m.at(id)
		n.done()
		n.giveAt = m.o.Clock() + passEvery // if the list still lacks it then
		m.mu.Unlock()
		m.logFor(id).Warn("network given back to the cluster's store, which had lost it")
	}
	return nil
}

// lost says whether a network of ours is one that the store has lost, and not one
// that was removed.
func (m *Member) lost(id topology.SharedID, local fabric.SharedNetwork) (record control.Network, due bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n, now := m.at(id), m.o.Clock()
	_, standing, kept := m.cluster.Find(string(id))
	switch {
	case n.Seen, n.Unshared, n.Left, local.Doomed, kept && standing == control.Current:
		n.absent = 0
		return record, false
	case n.absent == 0:
		n.absent = now
	}
	if len(n.Network.Subnets) == 0 {
		n.Network = m.recordOf(local)
	}
	if !kept || standing != control.Doubted { // the watch may only lag behind Share
		n.giveAt = max(n.giveAt, n.absent+registerAfter)
	}
	return n.Network, now >= n.giveAt
}

func (m *Member) giveBack(ctx context.Context, s Store, record control.Network, local fabric.SharedNetwork) error {
	ctx, cancel := context.WithTimeout(ctx, storeLimit)
	defer cancel()
	if len(local.Claims) == 0 {
		_, err := s.ClaimNetwork(ctx, record)
		return err
	}
	_, err := m.restore(ctx, s, record, local.Claims)
	return err
}

// recordOf is what the fabric alone knows of a network.
func (m *Member) recordOf(s fabric.SharedNetwork) control.Network {
	return control.Network{
		ID: s.ID, VNI: s.VNI, MTU: s.MTU, Internal: s.Internal,
		Subnets: subnets(s.Subnets, s.Ranges, s.Blocks), Creator: m.o.Node.ID, Created: m.o.Wall().UTC(),
	}
}

// findOrphans notes, for unshareAll, the networks that this host registered and
// that its Docker never came to have: the plugin ended in between.
func (m *Member) findOrphans(here map[topology.SharedID]fabric.SharedNetwork) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, record := range m.cluster.All(control.Current) {
		if _, ok := here[record.ID]; ok || record.Creator != m.o.Node.ID || record.Name != "" || record.Removed {
			continue
		}
		n := m.at(record.ID)
		switch now := m.o.Clock(); {
		case n.absent == 0:
			n.Network, n.absent = record, now
		case now-n.absent > orphanAfter && !n.Unshared:
			n.Unshared, n.dirty = true, true
		}
	}
}

// nameAll tells the cluster what Docker calls the networks made here.
func (m *Member) nameAll(ctx context.Context, s Store, here map[topology.SharedID]fabric.SharedNetwork, specs []engine.Spec) error {
	for id, local := range here {
		record, ok := m.record(id)
		i := slices.IndexFunc(specs, func(e engine.Spec) bool { return e.ID == local.Network })
		m.mu.Lock()
		n := m.at(id)
		due := ok && i >= 0 && record.Name == "" && !record.Removed && !n.Unshared && !local.Doomed && m.o.Clock() >= n.retry
		if ok && record.Name != "" && n.phase != Leaving && n.phase != Conflict { // removeTwins ends that
			n.done()
		}
		m.mu.Unlock()
		if !due {
			continue
		}
		named := named(record, specs[i])
		bounded, cancel := context.WithTimeout(ctx, storeLimit)
		err := s.NameNetwork(bounded, named)
		cancel()
		switch {
		case errors.Is(err, control.ErrTaken):
			m.failed(id, Conflict, fmt.Errorf("the cluster has another network of this name, which was first; this one stays on this host alone, until you remove it (`docker network rm %s`)", local.Network.Short()))
		case err != nil:
			m.failed(id, Pending, err)
			if unreachable(err) {
				return err
			}
		default:
			m.mu.Lock()
			n.done()
			n.Network, n.dirty = named, true
			m.mu.Unlock()
			m.o.Log.WithFields(map[string]any{"net": named.Name, "vni": named.VNI}).Info("network named in the cluster")
		}
	}
	return nil
}

// named is the record with what Docker alone knows: the names, too, of the
// auxiliary addresses.
func named(record control.Network, spec engine.Spec) control.Network {
	record.Name, record.Options, record.Labels = spec.Name, spec.Options, spec.Labels
	record.Subnets = slices.Clone(record.Subnets)
	for i, subnet := range record.Subnets {
		for _, docker := range spec.Subnets {
			if docker.Prefix == subnet.Prefix && len(docker.Aux) > 0 {
				record.Subnets[i].Aux = docker.Aux
			}
		}
	}
	return record
}
