package membership

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/particle-net/particle/control"
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
	// External: PARTICLE_ETCD has the host in the cluster again when the plugin starts.
	External bool
}

// Leave ends membership. What it has begun it carries through, even if the
// plugin ends meanwhile.
func (m *Membership) Leave(ctx context.Context, o LeaveOptions) (Left, error) {
	m.change.Lock()
	defer m.change.Unlock()
	const op = "leave the cluster"
	if m.external() != nil {
		return m.leaveExternal(ctx, o)
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
	if !m.recordOf(c).Leaving {
		if err := m.mayLeave(ctx, c, o); err != nil {
			return Left{}, err
		}
		if err := m.depart(ctx, c, o); err != nil {
			return Left{}, err
		}
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

// mayLeave checks what speaks against leaving.
func (m *Membership) mayLeave(ctx context.Context, c *current, o LeaveOptions) error {
	if err := writable(c.identity.files.record()); err != nil {
		return unwritten(c, err)
	}
	if o.Force {
		return nil
	}
	if err := m.checkBusy(ctx); err != nil {
		return err
	}
	return m.checkAlone(ctx, c)
}

// depart gives up the host's part, and writes down that it goes. Meanwhile nothing
// connects it to the store anew. After an error it is the member that it was.
func (m *Membership) depart(ctx context.Context, c *current, o LeaveOptions) error {
	m.using.Lock() // who is connecting goes first
	m.setGoing(c, true)
	m.using.Unlock()
	err := m.giveUpPart(ctx, o)
	if err == nil {
		if _, err = m.amend(c, func(r *record) { r.Leaving = true }); err != nil {
			err = unwritten(c, err)
		}
	}
	if err != nil {
		m.setGoing(c, false)
		m.connect(c) // claims again what is given up; the servers may be others by now, too
	}
	return err
}

// unwritten says that the host stays because it could not write down that it goes.
func unwritten(c *current, err error) error {
	return &fault.Error{Op: "leave the cluster", On: c.identity.files.record(), Err: err,
		Fix: "make the directory writable, or room on its disk, and run the same command again; the host stays a member until then"}
}

func (m *Membership) giveUpPart(ctx context.Context, o LeaveOptions) error {
	if m.o.Leaving == nil {
		return nil
	}
	err := m.o.Leaving(ctx)
	if errors.Is(err, control.ErrDouble) { // it has the certificate of that host, which would be out
		return err
	}
	if err != nil && !o.Force {
		return &fault.Error{Op: "leave the cluster", Err: err, Fix: "try again when the cluster's store answers, or use --force and then `particle cluster remove` for this host on a server"}
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
	if err == nil && !m.isOnly(servers) {
		return nil
	}
	var others int
	if err == nil {
		others, err = c.server.countOthers(ctx)
	}
	if err != nil {
		return &fault.Error{Op: "leave the cluster", Err: err, Fix: "use --force to leave it although its store does not answer"}
	}
	if others > 0 {
		return fault.New("leave the cluster", "", servesAlone(others),
			"let them leave first, make another one a server (`particle cluster join --server` there), or use --force: they keep what they have, and can share nothing new")
	}
	return nil
}

// isOnly says whether this host alone serves the store.
func (m *Membership) isOnly(servers []enrol.Host) bool {
	return len(servers) == 1 && servers[0].ID == m.node
}

func servesAlone(others int) string {
	return fmt.Sprintf("this host alone serves the store, and %d others are in the cluster", others)
}

// countOthers counts the cluster's other hosts.
func (s *serving) countOthers(ctx context.Context) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	hosts, err := s.client.Register().Hosts(ctx)
	return len(slices.DeleteFunc(hosts, func(h enrol.Host) bool { return h.ID == s.host.ID })), err
}

// tellLeave has a server revoke this host's certificate. The last server has
// nobody to tell.
func (m *Membership) tellLeave(ctx context.Context, c *current) error {
	if c.server != nil && len(m.others(c)) == 0 {
		return nil
	}
	err := m.anyServer(ctx, c, leaveLimit, func(ctx context.Context, s enrol.Host) error { return m.caller(c).Leave(ctx, s.Enrolment()) })
	switch {
	case errors.Is(err, enrol.ErrRemoved):
		return nil
	case err == nil, !c.serves():
		return err
	}
	// They may have left at the same time, or be others by now.
	servers, unknown := m.servers(ctx, c)
	switch {
	case unknown != nil:
		return err
	case !m.isOnly(servers):
		return errors.Join(err, m.update(c, servers))
	}
	others, err := c.server.countOthers(ctx)
	if err == nil && others > 0 {
		err = errors.New(servesAlone(others))
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
	c, err := m.asServer(opToken)
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
