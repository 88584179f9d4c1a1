package etcdtest

import (
	"encoding/binary"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
)

// Gate stands between one client and a server. Closed, it holds back every byte
// in both directions and lets no connection through; opened, what was held goes
// on its way, as packets do that TCP sends again after a partition.
type Gate struct {
	listener net.Listener
	to       string
	muted    atomic.Bool

	mu    sync.Mutex
	open  chan struct{} // closed while bytes pass
	conns []net.Conn
	ended bool
}

// NewGate opens a gate to the server; it ends with the test.
func NewGate(t testing.TB, s *Server) *Gate {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := &Gate{listener: l, to: s.Endpoint(), open: make(chan struct{})}
	close(g.open)
	var running sync.WaitGroup
	running.Go(func() { g.accept(&running) })
	t.Cleanup(func() {
		g.end()
		running.Wait()
	})
	return g
}

// Endpoint is where the client finds the gate.
func (g *Gate) Endpoint() string { return g.listener.Addr().String() }

// Close holds everything back.
func (g *Gate) Close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	select {
	case <-g.open:
		g.open = make(chan struct{})
	default:
	}
}

// Open lets everything pass.
func (g *Gate) Open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	select {
	case <-g.open:
	default:
		close(g.open)
	}
}

// Mute has the server answer no question any more, on connections that stay well, as one
// does whose disk hangs.
func (g *Gate) Mute() { g.muted.Store(true) }

// end breaks all connections.
func (g *Gate) end() {
	g.listener.Close()
	g.Open()
	g.mu.Lock()
	defer g.mu.Unlock()
	g.ended = true
	for _, c := range g.conns {
		c.Close()
	}
}

// wait returns when bytes pass.
func (g *Gate) wait() {
	g.mu.Lock()
	open := g.open
	g.mu.Unlock()
	<-open
}

func (g *Gate) keep(c net.Conn) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.conns = append(g.conns, c)
	return !g.ended
}

func (g *Gate) accept(running *sync.WaitGroup) {
	for {
		in, err := g.listener.Accept()
		if err != nil {
			return
		}
		running.Go(func() {
			defer in.Close()
			g.wait()
			out, err := net.Dial("tcp", g.to)
			if err != nil {
				return
			}
			defer out.Close()
			if !g.keep(in) || !g.keep(out) {
				return
			}
			var both sync.WaitGroup
			both.Go(func() { g.pass(out, in) })
			both.Go(func() { g.answers(in, out) })
			both.Wait()
		})
	}
}

// pass copies bytes while the gate is open, until one side ends.
func (g *Gate) pass(to, from net.Conn) {
	defer to.Close()
	defer from.Close()
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		g.wait()
		if _, werr := to.Write(buf[:n]); werr != nil || err != nil {
			return
		}
	}
}

// Frames of HTTP/2 that are about the connection alone (RFC 9113, section 6).
var ofConnection = map[byte]bool{0x4: true, 0x6: true, 0x7: true, 0x8: true} // SETTINGS, PING, GOAWAY, WINDOW_UPDATE

// answers copies what a server says, frame by frame, while the gate is open.
func (g *Gate) answers(to, from net.Conn) {
	defer to.Close()
	defer from.Close()
	for {
		head := make([]byte, 9)
		if _, err := io.ReadFull(from, head); err != nil {
			return
		}
		frame := append(head, make([]byte, binary.BigEndian.Uint32(head)>>8)...)
		if _, err := io.ReadFull(from, frame[len(head):]); err != nil {
			return
		}
		g.wait()
		if g.muted.Load() && !ofConnection[head[3]] {
			continue
		}
		if _, err := to.Write(frame); err != nil {
			return
		}
	}
}
