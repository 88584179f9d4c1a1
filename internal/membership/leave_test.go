package membership

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/particle-net/particle/control/enrol"
	"github.com/particle-net/particle/control/server"
)

// others are servers that a host has not heard of before.
func others() []enrol.Host {
	return []enrol.Host{{ID: "other", Name: "h9", Port: 7790}}
}

// leaver is a member in whose background nothing runs.
func leaver(t *testing.T, dir string) (*Membership, *current) {
	t.Helper()
	m, c, _ := dueMember(t, dir)
	m.conns, m.caught = make(chan *Connection, 1), make(chan struct{})
	m.now = c
	if err := c.identity.files.write(c.record); err != nil {
		t.Fatal(err)
	}
	return m, c
}

// undelivered is how many connections nobody has taken.
func (m *Membership) undelivered() int { return len(m.conns) }

// A host that is leaving hears that the servers are others: it stays about to leave, on
// disk too, and is not connected anew, which would claim again what it has given up.
func TestOtherServersWhileLeaving(t *testing.T) {
	stuck := errors.New("the store is away")
	for name, failure := range map[string]error{"leaving": nil, "could not leave": stuck} {
		t.Run(name, func(t *testing.T) {
			m, c := leaver(t, t.TempDir())
			m.conns <- &Connection{} // that nobody has taken yet
			m.o.Leaving = func(context.Context) error {
				if err := m.update(c, others()); err != nil || m.undelivered() > 0 {
					t.Errorf("%d connections while it gives up its part, %v", m.undelivered(), err)
				}
				return failure
			}
			if err := m.depart(t.Context(), c, LeaveOptions{}); !errors.Is(err, failure) {
				t.Fatal(err)
			}
			if failure == nil {
				more := append(others(), enrol.Host{ID: "another", Port: 7790})
				if err := m.update(c, more); err != nil || m.undelivered() > 0 {
					t.Errorf("%d connections since it has given up its part, %v", m.undelivered(), err)
				}
			} else if m.undelivered() != 1 || len((<-m.conns).Endpoints) != 1 {
				t.Error("no connection of a host that stays")
			}
			r, err := c.identity.files.read()
			if err != nil || r.Leaving != (failure == nil) || !slices.EqualFunc(r.Servers[:1], others(), func(a, b enrol.Host) bool { return a.ID == b.ID }) {
				t.Errorf("on disk: %+v, %v", r, err)
			}
		})
	}
}

// A connection that was taken and is not made yet when the host begins to give up its part
// is made before that, or not at all.
func TestConnectsWhileLeaving(t *testing.T) {
	m, c := leaver(t, t.TempDir())
	taken := c.connection(c.record)
	using, proceed, made := make(chan struct{}), make(chan struct{}), make(chan struct{})
	go m.Use(taken, func() {
		close(using)
		<-proceed
		close(made)
	})
	<-using
	stuck := errors.New("the store is away")
	m.o.Leaving = func(context.Context) error {
		select {
		case <-made:
		default:
			t.Error("it gives up its part while it connects")
		}
		m.Use(taken, func() { t.Error("it connects while it gives up its part") })
		return stuck
	}
	departed := make(chan error)
	go func() { departed <- m.depart(t.Context(), c, LeaveOptions{}) }()
	select {
	case err := <-departed:
		t.Error("it was told that it may leave while it connects:", err)
		return
	case <-time.After(100 * time.Millisecond):
	}
	close(proceed)
	if err := <-departed; !errors.Is(err, stuck) {
		t.Fatal(err)
	}
	again := false
	if m.Use(<-m.conns, func() { again = true }); !again {
		t.Error("a host that stays does not connect")
	}
	m.o.Leaving = nil
	if err := m.depart(t.Context(), c, LeaveOptions{}); err != nil {
		t.Fatal(err)
	}
	m.Use(taken, func() { t.Error("it connects when it has given up its part") })
	none := false
	if m.Use(nil, func() { none = true }); !none {
		t.Error("it is not told that it is in no cluster")
	}
}

// The word that the host leaves and another list of servers come at the same moment: the
// disk has both.
func TestRecordIsAmendedByOneAtATime(t *testing.T) {
	m, c := leaver(t, t.TempDir())
	updated := make(chan error, 1)
	_, err := m.amend(c, func(r *record) {
		r.Leaving = true
		go func() { updated <- m.update(c, others()) }()
		select {
		case err := <-updated:
			t.Error("the list is written while the word is")
			updated <- err
		case <-time.After(100 * time.Millisecond):
		}
	})
	if err = errors.Join(err, <-updated); err != nil {
		t.Fatal(err)
	}
	if r, err := c.identity.files.read(); err != nil || !r.Leaving || r.Servers[0].ID != "other" || m.undelivered() > 0 {
		t.Errorf("on disk: %+v, %v; %d connections", r, err, m.undelivered())
	}
}

// A host that cannot write down that it leaves stays the member that it was: it gives up
// nothing if it sees that before, and is connected anew, to claim all again, if not.
func TestLeaveThatCannotBeWritten(t *testing.T) {
	t.Run("seen before", func(t *testing.T) {
		m, c, _ := dueMember(t, Tight(t, t.TempDir(), "cluster.json"))
		m.now, m.conns = c, make(chan *Connection, 1)
		m.o.Leaving = func(context.Context) error { t.Error("it has given up its part"); return nil }
		_, err := m.Leave(t.Context(), LeaveOptions{})
		if err == nil || !strings.Contains(err.Error(), "cluster.json") || !strings.Contains(err.Error(), "make the directory writable") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("seen after", func(t *testing.T) {
		m, c := leaver(t, t.TempDir())
		dir := c.identity.files.dir
		m.o.Leaving = func(context.Context) error { return os.Rename(dir, dir+"-away") }
		_, err := m.Leave(t.Context(), LeaveOptions{})
		if err == nil || !strings.Contains(err.Error(), "run the same command again") {
			t.Errorf("got %v", err)
		}
		if m.undelivered() != 1 || m.recordOf(c).Leaving {
			t.Errorf("%d connections; leaving: %t", m.undelivered(), m.recordOf(c).Leaving)
		}
		if err := os.Rename(dir+"-away", dir); err != nil {
			t.Fatal(err)
		}
		if err := m.update(c, others()); err != nil || m.undelivered() != 1 {
			t.Errorf("%d connections of a member, %v", m.undelivered(), err)
		}
	})
}

// Unvoted makes this server one that has caught up with another and has no vote yet, and
// ends it.
func (m *Membership) Unvoted(ctx context.Context) error {
	c := m.state()
	other, err := server.Dial(server.Target{Endpoints: []string{endpoint(m.others(c)[0])}, TLS: c.identity.client()})
	if err != nil {
		return err
	}
	defer other.Close()
	if err := other.Remove(ctx, c.server.host); err != nil { // with its own vote
		return err
	}
	m.halt()
	if err := os.RemoveAll(c.identity.files.data()); err != nil {
		return err
	}
	config := c.server.config()
	if config.Initial, err = other.Add(ctx, c.server.host); err != nil {
		return err
	}
	s := server.Start(func() server.Config { return config }, m.o.Command, m.o.Log)
	defer s.Stop()
	if state := s.Await(ctx); !state.Ready {
		return errors.New(state.Problem)
	}
	return nil
}

// RecoverHalf does what Recover does until it is killed in its second half.
func (m *Membership) RecoverHalf(ctx context.Context) error {
	c := m.state()
	m.halt()
	return m.standAlone(ctx, c)
}
