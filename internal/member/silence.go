package member

import (
	"context"
	"time"

	"github.com/particle-net/particle/control"
)

// Docker starts one container of a network after the other. Where one waits for a
// store that does not answer, all behind it do. So nobody waits for a store that is
// known not to: its watch has said so, or somebody has waited in vain, which the
// watch may learn seconds later.

// ask is reach for those who are waited for.
func (m *Member) ask(ctx context.Context) (store Store, done func(), err error) {
	s, done, err := m.reach(ctx)
	if s == nil || err != nil {
		return s, done, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	down := !m.health.Healthy && !m.health.Since.IsZero() // before its first word nothing is known
	if down || m.session != nil && m.session.silent {
		done()
		return nil, nil, control.ErrUnreachable
	}
	return s, done, nil
}

// doubt notes the outcome of a question that somebody waited for. If there was no
// answer, the store is asked until it gives one.
func (m *Member) doubt(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.session
	if err == nil || !unreachable(err) || s == nil || !s.started || s.leaving || s.silent {
		return
	}
	s.silent = true
	s.running.Go(func() { m.listen(s) })
}

// listen asks the store for anything until it answers.
func (m *Member) listen(s *session) {
	for tries := 0; s.ctx.Err() == nil; tries++ {
		m.mu.Lock()
		node := m.node
		m.mu.Unlock()
		ctx, cancel := context.WithTimeout(s.ctx, storeLimit)
		err := s.store.SetNode(ctx, node)
		cancel()
		if err == nil || !unreachable(err) {
			m.mu.Lock()
			s.silent = false
			m.mu.Unlock()
			return
		}
		select {
		case <-time.After(backoff(min(tries, 3))):
		case <-s.ctx.Done():
		}
	}
}
