package membership

import "context"

// Connections delivers how the store is reached: at once, and whenever that
// changes; nil while the host is in no cluster. A value that was not taken yet
// gives way to a later one, but that the host has left one is told before another.
// There is one channel, for one receiver, which connects by Use; Close closes it.
func (m *Membership) Connections() <-chan *Connection { return m.conns }

// Use has connect called, unless the host has begun to leave its cluster since c was
// taken: what connects anew claims again what is given up. The host begins to give it up
// when connect has returned.
func (m *Membership) Use(c *Connection, connect func()) {
	m.using.Lock()
	defer m.using.Unlock()
	defer m.used()
	if c != nil && c.of != nil {
		m.mu.Lock()
		leaves := c.of.leaves()
		m.mu.Unlock()
		if leaves {
			return // it is told of another connection if it stays
		}
	}
	connect()
}

// used notes that one delivery less is not in use yet.
func (m *Membership) used() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.behind--
	close(m.caught)
	m.caught = make(chan struct{})
}

// Followed returns when all that was delivered is in use: what a user does after a command
// is to meet the host as the command has left it. Should that take long, it is not waited
// for.
func (m *Membership) Followed(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	for {
		m.mu.Lock()
		behind, caught := m.behind > 0, m.caught
		m.mu.Unlock()
		if !behind {
			return
		}
		select {
		case <-caught:
		case <-ctx.Done():
			return
		case <-m.ctx.Done():
			return
		}
	}
}

// leaves says whether the host gives up its part, or has. The caller holds mu.
func (c *current) leaves() bool { return c.going || c.record.Leaving }

// isLeaving is leaves for who does not hold mu.
func (m *Membership) isLeaving(c *current) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return c.leaves()
}

func (m *Membership) deliver(c *Connection) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.replace(c)
}

// replace delivers. The caller holds mu.
func (m *Membership) replace(c *Connection) {
	if m.closed {
		return
	}
	alone := m.withdraw()
	if alone && c != nil {
		m.send(nil)
	}
	m.send(c)
}

// send delivers to a channel in which there is room. The caller holds mu.
func (m *Membership) send(c *Connection) {
	m.behind++
	m.conns <- c
}

// withdraw takes back what nobody has taken yet, and says whether it was told in it that
// the host is in no cluster. The caller holds mu.
func (m *Membership) withdraw() (alone bool) {
	for len(m.conns) > 0 {
		select {
		case before := <-m.conns:
			m.behind--
			alone = alone || before == nil
		default: // it was taken meanwhile
		}
	}
	return alone
}

// connect delivers how the store is reached by now, unless the host is leaving: what
// connects anew claims again what is given up.
func (m *Membership) connect(c *current) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !c.leaves() {
		m.replace(c.connection(c.record))
	}
}

// setGoing says whether the host is giving up its part.
func (m *Membership) setGoing(c *current, going bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if c.going = going; going && m.withdraw() {
		m.send(nil)
	}
}
