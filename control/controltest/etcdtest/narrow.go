package etcdtest

import (
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Narrow stands between clients and a server, of which they hear so many bytes a second
// and no more, as by a link that is slow, or of a server that a thousand others ask.
type Narrow struct {
	listener  net.Listener
	to        string
	perSecond int
	passed    atomic.Int64
}

// NewNarrow opens one to the server; it ends with the test.
func NewNarrow(t testing.TB, s *Server, perSecond int) *Narrow {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	n := &Narrow{listener: l, to: s.Endpoint(), perSecond: perSecond}
	ended := make(chan struct{})
	var running sync.WaitGroup
	running.Go(func() { n.accept(&running, ended) })
	t.Cleanup(func() {
		l.Close()
		close(ended)
		running.Wait()
	})
	return n
}

// Endpoint is where clients find it.
func (n *Narrow) Endpoint() string { return n.listener.Addr().String() }

// Passed is how many bytes the server has said.
func (n *Narrow) Passed() int64 { return n.passed.Load() }

func (n *Narrow) accept(running *sync.WaitGroup, ended <-chan struct{}) {
	for {
		in, err := n.listener.Accept()
		if err != nil {
			return
		}
		out, err := net.Dial("tcp", n.to)
		if err != nil {
			in.Close()
			continue
		}
		// What waits in the kernel would be a delay of its own, for what is short too.
		_ = out.(*net.TCPConn).SetReadBuffer(32 << 10)
		spent := make(chan struct{})
		running.Go(func() {
			select {
			case <-ended:
			case <-spent:
			}
			in.Close()
			out.Close()
		})
		running.Go(func() {
			_, _ = io.Copy(out, in)
			out.Close()
		})
		running.Go(func() {
			defer close(spent)
			n.pass(in, out, ended)
		})
	}
}

// pass copies what the server says until one side ends.
func (n *Narrow) pass(to, from net.Conn, ended <-chan struct{}) {
	buf := make([]byte, 8<<10)
	for {
		some, err := from.Read(buf)
		n.passed.Add(int64(some))
		select {
		case <-time.After(time.Duration(some) * time.Second / time.Duration(n.perSecond)):
		case <-ended:
			return
		}
		if _, werr := to.Write(buf[:some]); werr != nil || err != nil {
			return
		}
	}
}
