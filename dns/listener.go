package dns

import (
	"net"
	"sync"
	"time"
)

// listener bounds what TCP clients can hold: the number of connections, each a
// file descriptor of the plugin, and the time a client may take to read an
// answer, for which the DNS library has no bound.
type listener struct {
	net.Listener
	slots   chan struct{} // one element for each open connection
	timeout time.Duration // for one write
}

func newListener(l net.Listener, max int, timeout time.Duration) *listener {
	return &listener{Listener: l, slots: make(chan struct{}, max), timeout: timeout}
}

// Accept waits for a connection within the bound; those beyond it are closed.
func (l *listener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		select {
		case l.slots <- struct{}{}:
			return &conn{Conn: c, of: l}, nil
		default:
			c.Close()
		}
	}
}

type conn struct {
	net.Conn
	of   *listener
	once sync.Once
}

func (c *conn) Write(b []byte) (int, error) {
	if err := c.SetWriteDeadline(time.Now().Add(c.of.timeout)); err != nil {
		return 0, err
	}
	n, err := c.Conn.Write(b)
	if err != nil {
		// The stream is cut inside a message, or the peer is gone: unusable
		// either way. The library would go on reading queries from it.
		c.Close()
	}
	return n, err
}

func (c *conn) Close() error {
	err := c.Conn.Close()
	c.once.Do(func() { <-c.of.slots })
	return err
}
