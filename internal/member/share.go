package member

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"github.com/particle-net/particle/control"
	"github.com/particle-net/particle/fabric"
	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/topology"
)

var _ fabric.Cluster = (*Member)(nil)

// Share implements fabric.Cluster.
func (m *Member) Share(ctx context.Context, spec fabric.SharedSpec) (fabric.Shared, bool, error) {
	ctx, cancel := context.WithTimeout(ctx, shareLimit)
	defer cancel()
	s, done, err := m.reach(ctx)
	if s == nil || err != nil {
		return fabric.Shared{}, false, err
	}
	defer done()
	id := spec.ID
	if id == "" {
		id = topology.SharedID(spec.Network)
	}
	record, err := m.register(ctx, s, spec)
	if err != nil {
		return fabric.Shared{}, false, explain("share network", id.Short(), err)
	}
	m.mu.Lock()
	n := m.at(id)
	n.Network, n.Verified, n.dirty = record, m.stamp(), true
	n.Unshared, n.Told, n.here, n.sharedAt = false, false, true, m.o.Clock()
	m.mu.Unlock()
	shared := fabric.Shared{ID: id, VNI: record.VNI, MTU: record.MTU}
	for i, subnet := range record.Subnets {
		if i < len(spec.Subnets) && !spec.Subnets[i].Managed {
			continue
		}
		var block netip.Prefix
		if block, err = m.block(ctx, s, record, subnet.Prefix); err != nil {
			break
		}
		shared.Claims = append(shared.Claims, block)
	}
	if spec.ID == "" { // nobody tries that again under this id
		m.mu.Lock()
		n.spare = nil
		m.mu.Unlock()
	}
	if err != nil {
		if spec.ID == "" {
			err = errors.Join(err, m.Unshare(id))
		}
		return fabric.Shared{}, false, explain("share network", id.Short(), err)
	}
	m.o.Log.WithFields(map[string]any{"net": id.Short(), "vni": record.VNI, "blocks": fmt.Sprint(shared.Claims)}).Info("network shared")
	return shared, true, nil
}

// Joined implements fabric.Cluster. A host of which it is not known is taken for a
// member: to keep a network to itself would be a mistake that nobody notices.
func (m *Member) Joined() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.enrolled != alone
}

// reach waits until it is known whether this host is in a cluster. A nil Store
// without an error says that it is in none. A host that has given up its part, or
// is about to, claims nothing any more: who does before that calls done when it has.
func (m *Member) reach(ctx context.Context) (store Store, done func(), err error) {
	s, err := m.connected(ctx)
	if s == nil || err != nil {
		return nil, nil, err
	}
	if !m.claims(s) {
		return nil, nil, explain("reach the cluster", "", control.ErrUnreachable)
	}
	return s.store, s.claiming.Done, nil
}

// connected is reach for what does not claim anything for this host.
func (m *Member) connected(ctx context.Context) (*session, error) {
	select {
	case <-m.decided:
	case <-ctx.Done():
		return nil, explain("reach the cluster", "", control.ErrUnreachable)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.session == nil && m.enrolled == enrolled {
		return nil, explain("reach the cluster", "", control.ErrUnreachable)
	}
	return m.session, nil
}

// claims says whether claims may be made over a session. If so, Leave waits for
// s.claiming.Done.
func (m *Member) claims(s *session) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if s.leaving {
		return false
	}
	s.claiming.Add(1)
	return true
}

// explain adds what a user can do.
func explain(op, on string, err error) error {
	fix := ""
	switch {
	case unreachable(err):
		err, fix = control.ErrUnreachable, "repeat when `particle status` shows the store as healthy"
	case errors.Is(err, control.ErrExhausted):
		fix = "remove a host that is gone with `particle cluster remove`, or create the network with a larger --subnet or smaller blocks (-o particle.block=N)"
	case errors.Is(err, control.ErrSettling):
		fix = "repeat in ten minutes: the cluster's store has lost its data, and some host may not have been there since"
	case errors.Is(err, control.ErrNoNetwork): // a store that has lost all is told of it in a moment
		fix = "repeat in a minute, and create it anew if another host has removed it"
	case errors.Is(err, control.ErrTaken):
		fix = "choose another"
	}
	var told *fault.Error
	switch known := errors.As(err, &told); {
	case known && told.Fix != "" && errors.Is(err, control.ErrTaken):
		return err // by whom, and what to do about it
	case known && fix != "":
		err = told.Err // the rest would be said twice
	}
	return &fault.Error{Op: op, On: on, Err: err, Fix: fix}
}

// register makes the network known to the cluster, or finds it there.
func (m *Member) register(ctx context.Context, s Store, spec fabric.SharedSpec) (control.Network, error) {
	if spec.ID != "" {
		record, ok := m.record(spec.ID)
		if !ok || record.Removed {
			return record, control.ErrNoNetwork
		}
		return record, nil
	}
	record := control.Network{
		ID: topology.SharedID(spec.Network), VNI: spec.VNI, MTU: spec.MTU, Internal: spec.Internal,
		Subnets: subnets(spec.Subnets, spec.Ranges, spec.Blocks), Creator: m.o.Node.ID, Created: m.o.Wall().UTC(),
	}
	vni, err := s.ClaimNetwork(ctx, record)
	record.VNI = vni
	return record, err
}

// record is the network as the cluster has it now.
func (m *Member) record(id topology.SharedID) (control.Network, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	record, standing, kept := m.cluster.Find(string(id))
	if !kept || standing == control.Withdrawn {
		return control.Network{}, false
	}
	return record, true
}

// subnets translates the fabric's. It does not know the names of auxiliary
// addresses; NameNetwork tells them.
func subnets(of []fabric.Subnet, ranges []netip.Prefix, blocks fabric.BlockSizes) []control.Subnet {
	var all []control.Subnet
	for i, f := range of {
		s := control.Subnet{Prefix: f.Subnet, Gateway: f.Gateway}
		if i < len(ranges) {
			s.Range = ranges[i]
		}
		if len(f.Aux) > 0 {
			s.Aux = map[string]netip.Addr{}
		}
		for _, a := range f.Aux {
			s.Aux[a.String()] = a
		}
		cut := s.Prefix
		if s.Range.IsValid() {
			cut = s.Range
		}
		s.Block = blocks.Of(cut)
		all = append(all, s)
	}
	return all
}

// block claims one, or takes one that an earlier attempt has claimed. The next one
// begins with it: our own part is not all that can fail.
func (m *Member) block(ctx context.Context, s Store, n control.Network, subnet netip.Prefix) (netip.Prefix, error) {
	p, err := m.claimSpare(ctx, s, n, subnet)
	if err == nil && !p.IsValid() {
		p, err = m.claimFresh(ctx, s, n.ID, subnet)
	}
	if err != nil {
		return netip.Prefix{}, err
	}
	return p, m.announce(ctx, s, n.ID, p)
}

// claimSpare claims again what an earlier attempt has left of a subnet. The zero
// prefix says that there is nothing, or that another host has it by now.
func (m *Member) claimSpare(ctx context.Context, s Store, n control.Network, subnet netip.Prefix) (netip.Prefix, error) {
	m.mu.Lock()
	spare := m.at(n.ID).spare
	i := slices.IndexFunc(spare, func(p netip.Prefix) bool { return subnet.Contains(p.Addr()) })
	if i < 0 {
		m.mu.Unlock()
		return netip.Prefix{}, nil
	}
	p := spare[i]
	m.mu.Unlock()
	err := s.Restore(ctx, n, control.Claim{Network: n.ID, Prefix: p, Node: m.o.Node.ID})
	if !errors.Is(err, control.ErrTaken) {
		return p, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	entry := m.at(n.ID)
	entry.spare = slices.DeleteFunc(entry.spare, func(lost netip.Prefix) bool { return lost == p })
	return netip.Prefix{}, nil
}

func (m *Member) claimFresh(ctx context.Context, s Store, id topology.SharedID, subnet netip.Prefix) (netip.Prefix, error) {
	c, err := s.ClaimBlock(ctx, id, subnet)
	if err != nil {
		return netip.Prefix{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.at(id)
	n.spare = append(n.spare, c.Prefix)
	return c.Prefix, nil
}

// announce tells the other hosts that this one answers for a prefix. A host
// without a tunnel address announces when it has one.
func (m *Member) announce(ctx context.Context, s Store, id topology.SharedID, p netip.Prefix) error {
	m.mu.Lock()
	r := m.node.Route(id, p)
	at := netip.AddrPortFrom(r.VTEP, r.Port)
	done := m.at(id).announced[p] == at
	m.mu.Unlock()
	if !r.VTEP.IsValid() || done {
		return nil
	}
	if err := s.Announce(ctx, r); err != nil {
		return err
	}
	m.mu.Lock()
	m.at(id).announced[p] = at
	m.mu.Unlock()
	return nil
}

// leaveEach is how much later, for each host there is, hosts leave at most a network that
// one has removed: all hear of it at once, and who leaves reads all of it in the store.
const leaveEach = 20 * time.Millisecond

// Unshare implements fabric.Cluster. A network that is only being made here at
// the cluster's request is not taken from the others because that has failed.
func (m *Member) Unshare(id topology.SharedID) error {
	m.saving.Lock()
	defer m.saving.Unlock()
	m.mu.Lock()
	n := m.networks[id]
	if n == nil || n.making || n.Unshared || n.Left || m.enrolled == alone {
		m.mu.Unlock()
		return nil
	}
	n.Unshared, n.Told, n.fails, n.retry = true, n.Network.Removed, 0, m.o.Clock()+time.Second
	if n.Told {
		n.leaveAt = m.o.Clock() + rand.N(leaveEach*time.Duration(m.nodes.Count(control.Current))+1)
	}
	known := n.Known
	m.mu.Unlock()
	m.logFor(id).Info("network removed here")
	defer m.Wake()
	err := m.o.Known.Put(string(id), known)
	if err != nil { // tried again with what else changes
		m.mu.Lock()
		n.dirty = true
		m.mu.Unlock()
	}
	return err
}

// ClaimAddress implements fabric.Cluster.
func (m *Member) ClaimAddress(ctx context.Context, id topology.SharedID, addr netip.Addr, holder string) error {
	ctx, cancel := context.WithTimeout(ctx, shareLimit)
	defer cancel()
	s, done, err := m.ask(ctx)
	if err != nil {
		return explain("claim address", addr.String(), err)
	}
	if s == nil {
		return fault.New("claim address", addr.String(), "this host is in no cluster any more", "remove the network and create it anew")
	}
	defer done()
	m.mu.Lock()
	n := m.at(id)
	n.singles[addr] = true
	before := n.releasing[addr]
	m.mu.Unlock()
	if before != nil {
		select {
		case <-before:
		case <-ctx.Done():
		}
	}
	c, err := s.ClaimAddress(ctx, id, addr, holder)
	if err == nil {
		err = m.announce(ctx, s, id, c.Prefix)
	}
	m.doubt(err)
	if err != nil {
		m.ReleaseAddress(id, addr) // it may have been claimed all the same
		return explain("claim address", addr.String(), err)
	}
	return nil
}

// ReleaseAddress implements fabric.Cluster. What does not succeed now is found by
// the watch: an address that the store says is ours, and that nobody here has.
func (m *Member) ReleaseAddress(id topology.SharedID, addr netip.Addr) {
	m.giveBackAddress(id, addr, false)
}

// giveBackAddress is ReleaseAddress; a stray that was claimed meanwhile is none.
func (m *Member) giveBackAddress(id topology.SharedID, addr netip.Addr, stray bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.at(id)
	if stray && n.singles[addr] {
		return
	}
	delete(n.singles, addr)
	s := m.session
	if s == nil || !s.started || s.leaving || n.releasing[addr] != nil {
		return
	}
	done := make(chan struct{})
	n.releasing[addr] = done
	s.running.Go(func() {
		m.release(s.store, id, netip.PrefixFrom(addr, addr.BitLen()))
		m.mu.Lock()
		delete(n.releasing, addr)
		m.mu.Unlock()
		close(done)
	})
}

// release gives up a claim; if it cannot, tend tries again.
func (m *Member) release(s Store, id topology.SharedID, p netip.Prefix) {
	ctx, cancel := context.WithTimeout(context.Background(), storeLimit)
	defer cancel()
	err := errors.Join(m.withdraw(ctx, s, id, p), s.Release(ctx, control.Claim{Network: id, Prefix: p, Node: m.o.Node.ID}))
	if err != nil {
		m.logFor(id).WithError(err).Info("address not released yet")
	}
}

func (m *Member) withdraw(ctx context.Context, s Store, id topology.SharedID, p netip.Prefix) error {
	m.mu.Lock()
	r := m.node.Route(id, p)
	delete(m.at(id).announced, p)
	m.mu.Unlock()
	return s.Withdraw(ctx, r)
}
