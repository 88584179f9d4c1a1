package enrol

import (
	"net"
	"net/netip"
	"sync"
)

const (
	maxConns     = 1024 // at the enrolment port
	maxConnsEach = 32   // of one address; a host has one open, for a moment
	maxConnsNear = 512  // of a network of IPv6: whoever is in it has all of its addresses, and so may many hosts
)

// Bound keeps a listener's connections to a number that costs the host little, in all
// and from one address. Anybody may open some at the enrolment port, and containers'
// starts depend on the process that listens there. What is beyond is closed at once.
func Bound(l net.Listener) net.Listener {
	return &bounded{Listener: l, open: map[netip.Addr]int{}, near: map[netip.Addr]int{}}
}

type bounded struct {
	net.Listener

	mu   sync.Mutex         // guards what follows
	open map[netip.Addr]int // by address
	near map[netip.Addr]int // by source
	all  int
}

// Accept implements net.Listener.
func (b *bounded) Accept() (net.Conn, error) {
	for {
		conn, err := b.Listener.Accept()
		if err != nil {
			return nil, err
		}
		var from netip.Addr
		if at, ok := conn.RemoteAddr().(*net.TCPAddr); ok {
			from = at.AddrPort().Addr().Unmap()
		}
		if b.enter(from) {
			return &counted{Conn: conn, leave: sync.OnceFunc(func() { b.leave(from) })}, nil
		}
		_ = conn.Close() // nobody has been promised anything
	}
}

func (b *bounded) enter(from netip.Addr) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.all >= maxConns || b.open[from] >= maxConnsEach || b.near[source(from)] >= maxConnsNear {
		return false
	}
	b.all++
	b.open[from]++
	b.near[source(from)]++
	return true
}

func (b *bounded) leave(from netip.Addr) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.all--
	if b.open[from]--; b.open[from] == 0 {
		delete(b.open, from)
	}
	if b.near[source(from)]--; b.near[source(from)] == 0 {
		delete(b.near, source(from))
	}
}

// counted is a connection that makes room for another when it ends.
type counted struct {
	net.Conn
	leave func()
}

// Close implements net.Conn.
func (c *counted) Close() error {
	defer c.leave()
	return c.Conn.Close()
}
