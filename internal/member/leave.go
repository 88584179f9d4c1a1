package member

import (
	"context"
	"errors"
	"slices"

	"github.com/particle-net/particle/control"
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
	var errs []error
	for _, here := range m.o.Fabric.Shared() {
		errs = append(errs, s.store.LeaveNetwork(ctx, here.ID))
	}
	err := errors.Join(errs...)
	if err == nil {
		err = s.store.RemoveNode(ctx, m.o.Node.ID)
	}
	if err != nil {
		m.mu.Lock()
		s.started, s.leaving = false, false
		m.mu.Unlock()
		m.Wake()
		return err
	}
	m.o.Log.Info("this host has given up its part of all networks")
	return nil
}

// RemoveNode gives up what another host had, which must be suspect.
func (m *Member) RemoveNode(ctx context.Context, id topology.NodeID) error {
	s, err := m.reach(ctx)
	if err != nil || s == nil {
		return err
	}
	return s.RemoveNode(ctx, id)
}
