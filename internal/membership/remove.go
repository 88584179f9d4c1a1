package membership

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/particle-net/particle/control"
	"github.com/particle-net/particle/control/enrol"
	"github.com/particle-net/particle/internal/fault"
)

// Removed is what remove tells.
type Removed struct {
	Name string
	// Pending: the host was alive. What it had is given up when it has been
	// silent for as long as a lease lasts.
	Pending bool
	// Readmits: the token that is good lets it in again. Authority: it served the store,
	// and has the key that lets hosts in. Neither matters of a host that is gone for good,
	// and both do of one that is somebody else's.
	Readmits, Authority bool
}

// pendingLimit is how long what a removed host had is tried to be given up. A
// lease lasts half a minute; what is left after all goes with the hosts that stay
// away for a day.
const pendingLimit = 5 * time.Minute

// Remove takes another host out of the cluster: its certificate is worth nothing
// from then on, and what it had can be had by others. It works on servers alone or,
// with External, on every host; and may be repeated.
func (m *Membership) Remove(ctx context.Context, ref string) (Removed, error) {
	m.change.Lock()
	defer m.change.Unlock()
	const op = "remove host"
	if m.external() != nil {
		return m.removeExternal(ctx, ref)
	}
	c, err := m.asServer(op)
	if err != nil {
		return Removed{}, err
	}
	register, err := c.server.Register(ctx)
	if err != nil {
		return Removed{}, err
	}
	h, err := removable(ctx, register, ref)
	if err != nil {
		return Removed{}, err
	}
	if h.ID == m.node {
		return Removed{}, fault.New(op, h.Name, "it is this one", "run `particle cluster leave`")
	}
	done := Removed{Name: h.Name, Authority: h.Server}
	if done.Readmits, err = readmits(ctx, register); err != nil {
		return Removed{}, err
	}
	// The certificate first: the host must not claim anew what is given up.
	if h.Server {
		err = c.server.Dismiss(ctx, h)
	}
	if err == nil {
		err = register.Remove(ctx, h.ID, true)
	}
	if err == nil {
		err = c.server.tend(ctx)
	}
	if err != nil || m.o.Removing == nil {
		return done, err
	}
	err = m.o.Removing(ctx, h.ID)
	if errors.Is(err, control.ErrAlive) {
		go m.finishRemoving(h)
		done.Pending = true
		return done, nil
	}
	if err != nil {
		err = &fault.Error{Op: op, On: h.Name, Err: err, Fix: "its certificate is worth nothing by now; run the same command again for the addresses that it had"}
	}
	return done, err
}

// readmits says whether there is a token that is good.
func readmits(ctx context.Context, register *enrol.Register) (bool, error) {
	info, err := register.TokenInfo(ctx, enrol.TokenLife)
	return err == nil && !info.Expired(time.Now()), err
}

// removable finds a host that is in the register, or was: it may have been
// removed by half.
func removable(ctx context.Context, register *enrol.Register, ref string) (enrol.Host, error) {
	hosts, err := register.Hosts(ctx)
	if err != nil {
		return enrol.Host{}, err
	}
	h, err := hostNamed(hosts, ref)
	if !errors.Is(err, enrol.ErrNotEnrolled) {
		return h, err
	}
	revoked, former := []enrol.Host(nil), err
	list, err := register.Revoked(ctx)
	if err != nil {
		return h, err
	}
	for _, r := range list {
		same := func(h enrol.Host) bool { return h.ID == r.Node }
		if r.Node != "" && !slices.ContainsFunc(hosts, same) && !slices.ContainsFunc(revoked, same) {
			revoked = append(revoked, enrol.Host{ID: r.Node, Name: r.Name})
		}
	}
	if h, err = hostNamed(revoked, ref); errors.Is(err, enrol.ErrNotEnrolled) {
		err = former
	}
	return h, err
}

// finishRemoving gives up what a host had that was alive when it was removed.
func (m *Membership) finishRemoving(h enrol.Host) {
	ctx, cancel := context.WithTimeout(m.ctx, pendingLimit)
	defer cancel()
	for {
		pause(ctx, time.Second)
		if ctx.Err() != nil {
			return
		}
		c := m.state()
		if c == nil || c.server == nil {
			return
		}
		if _, err := c.server.client.Register().Host(ctx, h.ID); !errors.Is(err, enrol.ErrNotEnrolled) {
			if err == nil {
				return // it has joined again
			}
			continue
		}
		err := m.o.Removing(ctx, h.ID)
		if err == nil {
			m.o.Log.WithField("host", h.Name).Info("what the removed host had is given up")
			return
		}
		if !errors.Is(err, control.ErrAlive) {
			m.o.Log.WithError(err).WithField("host", h.Name).Warn("what the removed host had is not given up yet")
		}
	}
}
