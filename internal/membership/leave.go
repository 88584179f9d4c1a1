package membership

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/particle-net/particle/control/enrol"
	"github.com/particle-net/particle/internal/fault"
)

// LeaveOptions are a user's.
type LeaveOptions struct {
	// Force goes on although containers use shared networks, other hosts lose
	// the store with this one, or no server can be told.
	Force bool
}

// Left is what leave tells.
type Left struct {
	Already bool  // it was in no cluster
	Untold  error // why no server could be told, with Force
}

// Leave ends membership. What it has begun it carries through, even if the
// plugin ends meanwhile.
func (m *Membership) Leave(ctx context.Context, o LeaveOptions) (Left, error) {
	m.change.Lock()
	defer m.change.Unlock()
	const op = "leave the cluster"
	if err := m.refuseExternal(op); err != nil {
		return Left{}, err
	}
	c := m.state()
	if c == nil {
		damage := m.damage()
		if damage == nil || !o.Force {
			return Left{Already: damage == nil}, damage
		}
		m.mu.Lock()
		m.broken = nil
		m.mu.Unlock()
		err := m.place.drop()
		m.deliver(nil)
		return Left{Untold: damage}, err
	}
	if r := m.recordOf(c); !r.Leaving {
		if err := m.mayLeave(ctx, c, o); err != nil {
			return Left{}, err
		}
		r.Leaving = true
		if err := c.identity.files.write(r); err != nil {
			return Left{}, err
		}
		m.mu.Lock()
		c.record.Leaving = true
		m.mu.Unlock()
	}
	var left Left
	if err := m.tellLeave(ctx, c); err != nil {
		if !o.Force {
			return left, &fault.Error{Op: op, Err: err, Fix: "the plugin goes on trying; or run `particle cluster leave --force`, and then `particle cluster remove` for this host on a server"}
		}
		left.Untold = err
	}
	m.halt()
	err := m.place.drop()
	m.deliver(nil)
	return left, err
}

// mayLeave checks what speaks against leaving, and gives up the host's part.
func (m *Membership) mayLeave(ctx context.Context, c *current, o LeaveOptions) error {
	const op = "leave the cluster"
	if !o.Force {
		if err := m.checkBusy(ctx); err != nil {
			return err
		}
		if err := m.checkAlone(ctx, c); err != nil {
			return err
		}
	}
	if m.o.Leaving == nil {
		return nil
	}
	if err := m.o.Leaving(ctx); err != nil && !o.Force {
		return &fault.Error{Op: op, Err: err, Fix: "try again when the cluster's store answers, or use --force and then `particle cluster remove` for this host on a server"}
	}
	return nil
}

func (m *Membership) checkBusy(ctx context.Context) error {
	if m.o.Busy == nil {
		return nil
	}
	busy, err := m.o.Busy(ctx)
	if err != nil || len(busy) == 0 {
		return err
	}
	return fault.New("leave the cluster", "", "containers use its networks here: "+strings.Join(busy, ", "),
		"stop them first, or use --force: they go on, but lose the other hosts")
}

// checkAlone refuses to take the store away from others. That this host's own server
// does not answer is nothing to others that do.
func (m *Membership) checkAlone(ctx context.Context, c *current) error {
	if c.server == nil {
		return nil
	}
	servers, err := m.servers(ctx, c)
	if err == nil && (len(servers) != 1 || servers[0].ID != m.node) {
		return nil
	}
	var hosts []enrol.Host
	if err == nil {
		bounded, cancel := context.WithTimeout(ctx, askLimit)
		defer cancel()
		hosts, err = c.server.client.Register().Hosts(bounded)
	}
	if err != nil {
		return &fault.Error{Op: "leave the cluster", Err: err, Fix: "use --force to leave it although its store does not answer"}
	}
	if len(hosts) > 1 {
		return fault.New("leave the cluster", "", fmt.Sprintf("this host alone serves the store, and %d others are in the cluster", len(hosts)-1),
			"let them leave first, make another one a server (`particle cluster join --server` there), or use --force: they keep what they have, and can share nothing new")
	}
	return nil
}

// tellLeave has a server revoke this host's certificate. The last server has
// nobody to tell.
func (m *Membership) tellLeave(ctx context.Context, c *current) error {
	if c.server != nil && len(m.others(c)) == 0 {
		return nil
	}
	err := m.anyServer(ctx, c, leaveLimit, func(ctx context.Context, s enrol.Host) error { return m.caller(c).Leave(ctx, s.Enrolment()) })
	if errors.Is(err, enrol.ErrRemoved) {
		return nil
	}
	return err
}

// finishLeaving carries through what a former plugin has begun.
func (m *Membership) finishLeaving(c *current) {
	ctx := m.ctx
	for ctx.Err() == nil {
		m.change.Lock()
		if m.state() != c {
			m.change.Unlock()
			return
		}
		err := m.tellLeave(ctx, c)
		if err == nil {
			m.halt()
			err = m.place.drop()
			m.deliver(nil)
			m.change.Unlock()
			if err != nil {
				m.o.Log.WithError(err).Error("cannot remove the membership that has ended")
			}
			return
		}
		m.change.Unlock()
		pause(ctx, 5*time.Second)
	}
}

// asServer gives the membership if this host serves the store.
func (m *Membership) asServer(op string) (*current, error) {
	if err := m.refuse(op); err != nil {
		return nil, err
	}
	c := m.state()
	switch {
	case c == nil:
		return nil, fault.New(op, "", "this host is in no cluster", "run `particle cluster init` or `particle cluster join`")
	case c.server == nil:
		return nil, fault.New(op, "", "this host does not serve the cluster's store", "run it on a server: "+names(m.recordOf(c).Servers))
	}
	return c, nil
}

func names(hosts []enrol.Host) string {
	var all []string
	for _, h := range hosts {
		all = append(all, h.Name+" ("+h.Address.String()+")")
	}
	return strings.Join(all, ", ")
}

// TokenOptions are a user's.
type TokenOptions struct {
	Rotate bool          // make a new one, and all older ones worthless
	Life   time.Duration // of a new one; 0: a day; negative: for ever
}

// Token gives the token that lets hosts in; an expired one is replaced. It works
// on servers alone.
func (m *Membership) Token(ctx context.Context, o TokenOptions) (Made, error) {
	c, err := m.asServer("show token")
	if err != nil {
		return Made{}, err
	}
	return m.token(ctx, c, o)
}

func (m *Membership) token(ctx context.Context, c *current, o TokenOptions) (Made, error) {
	made := Made{Address: c.server.host.Enrolment(), Encryption: m.recordOf(c).Encryption}
	register, err := c.server.Register(ctx)
	if err != nil {
		return made, err
	}
	life := o.Life
	if life == 0 {
		life = enrol.TokenLife
	}
	info, err := register.TokenInfo(ctx, life)
	if err == nil && (o.Rotate || info.Expired(time.Now())) {
		info, err = register.Rotate(ctx, life)
	}
	if err != nil {
		return made, err
	}
	t, err := c.server.authority.Token(info)
	made.Token, made.Expires = t.String(), info.Expires
	return made, err
}
