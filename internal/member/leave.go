package member

import (
	"context"
	"errors"
	"slices"

	"github.com/particle-net/particle/control"
	"github.com/particle-net/particle/fabric"
	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/topology"
)

// Busy lists the shared networks that containers of this host live on.
func (m *Member) Busy(context.Context) ([]string, error) {
	var busy []string
	for _, s := range m.o.Fabric.Shared() {
		if s.Live {
			busy = append(busy, s.Name)
		}
	}
	slices.Sort(busy)
	return busy, nil
}

// Leave gives up all that this host has in its cluster. Disconnect is to follow;
// if Leave fails the host stays a member.
func (m *Member) Leave(ctx context.Context) error {
	m.mu.Lock()
	s := m.session
	if s != nil {
		s.leaving = true
	}
	m.mu.Unlock()
	if s == nil {
		return &fault.Error{Op: "leave the cluster", Err: control.ErrUnreachable, Fix: "repeat when the store answers"}
	}
	s.halt() // the watches would claim again what is given up
	s.claiming.Wait()
	err := m.answers(ctx, s.store)
	if err == nil {
		err = m.unshareAll(ctx, s, m.here()) // nobody is here to tell of it later
	}
	if err == nil {
		err = m.giveUpAll(ctx, s.store)
	}
	if err == nil {
		err = s.store.RemoveNode(ctx, m.o.Node.ID)
	}
	if err != nil {
		m.mu.Lock()
		s.started, s.leaving = false, false
		s.told = false // it may have been forgotten all the same
		m.mu.Unlock()
		m.Wake()
		return err
	}
	m.o.Log.Info("this host has given up its part of all networks")
	return nil
}

// answers asks the store for something that changes nothing: while it is known to be away
// nothing is given up by halves.
func (m *Member) answers(ctx context.Context, s Store) error {
	m.mu.Lock()
	node := m.node
	m.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, storeLimit)
	defer cancel()
	return s.SetNode(ctx, node)
}

// giveUpAll gives up what this host has of all networks, which others may have from then
// on. The host gives out none of it until it has verified that it has it still, also if
// the plugin ends meanwhile.
func (m *Member) giveUpAll(ctx context.Context, s Store) error {
	before := map[topology.SharedID]error{} // why nothing was given out
	for _, here := range m.o.Fabric.Shared() {
		before[here.ID] = m.setSuspended(here.ID, fabric.ErrLeaving)
	}
	failed, _ := m.write()
	errs := []error{failed}
	for id, why := range before {
		if failed == nil {
			err := s.LeaveNetwork(ctx, id)
			errs = append(errs, err)
			if unreachable(err) {
				failed = err // no container starts while the next is waited for as long
			}
			continue // if it has failed some may be given up: it is verified first
		}
		if !errors.Is(why, fabric.ErrLeaving) {
			m.setSuspended(id, why)
		}
	}
	return errors.Join(errs...)
}

// setSuspended gives the reason that there was before.
func (m *Member) setSuspended(id topology.SharedID, why error) (before error) {
	m.mu.Lock()
	n := m.at(id)
	before, n.suspended = n.suspended, why
	n.GivenUp, n.dirty, n.here = errors.Is(why, fabric.ErrLeaving), true, true
	m.mu.Unlock()
	m.tellSuspended(id)
	return before
}

// RemoveNode gives up what another host had, which must be suspect.
func (m *Member) RemoveNode(ctx context.Context, id topology.NodeID) error {
	s, err := m.connected(ctx)
	if err != nil || s == nil {
		return err
	}
	return s.store.RemoveNode(ctx, id)
}
