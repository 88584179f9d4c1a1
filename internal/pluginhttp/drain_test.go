package pluginhttp_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/particle-net/particle/internal/pluginhttp"
)

type order struct{ Item string }

// shop is a plugin whose one method waits until it may answer.
type shop struct {
	server  *pluginhttp.Server
	l       net.Listener
	began   chan string   // what was ordered
	proceed chan struct{} // closed to let all answers go
	served  chan error
}

func open(t *testing.T, path string) *shop {
	t.Helper()
	log := logrus.New()
	log.SetOutput(io.Discard)
	server, err := pluginhttp.NewServer([]string{"Shop"}, time.Minute, logrus.NewEntry(log))
	if err != nil {
		t.Fatal(err)
	}
	s := &shop{server: server, began: make(chan string, 10), proceed: make(chan struct{}), served: make(chan error, 1)}
	pluginhttp.Handle(server, "Shop.Order", pluginhttp.Often, func(_ context.Context, o order) (order, error) {
		if o.Item == "" {
			return order{}, &fs.PathError{Op: "open", Path: "/host/run/particle/live.db", Err: fs.ErrPermission}
		}
		s.began <- o.Item
		<-s.proceed
		return order{"one " + o.Item}, nil
	})
	if s.l, err = net.Listen("unix", path); err != nil {
		t.Fatal(err)
	}
	go func() { s.served <- server.Serve(s.l) }()
	return s
}

// end does what the plugin does at SIGTERM, up to where it waits.
func (s *shop) end(t *testing.T) {
	t.Helper()
	if err := s.l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-s.served; err != nil {
		t.Fatal(err)
	}
}

// client is a connection that is kept alive.
type client struct {
	t    *testing.T
	conn net.Conn
	r    *bufio.Reader
}

func dial(t *testing.T, path string) *client {
	t.Helper()
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil { // a hang is told as such
		t.Fatal(err)
	}
	return &client{t, conn, bufio.NewReader(conn)}
}

func (c *client) send(item string) error {
	body := `{"Item":"` + item + `"}`
	req, err := http.NewRequest(http.MethodPost, "http://plugin/Shop.Order", strings.NewReader(body))
	if err != nil {
		c.t.Fatal(err)
	}
	return req.Write(c.conn)
}

func (c *client) receive() (string, error) {
	resp, err := http.ReadResponse(c.r, nil)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return strings.TrimSpace(string(body)), err
}

func TestDrain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "plugin.sock")
	s := open(t, path)
	idle, busy, fresh := dial(t, path), dial(t, path), dial(t, path)
	if err := idle.send("apple"); err != nil {
		t.Fatal(err)
	}
	<-s.began
	s.proceed <- struct{}{}
	if got, err := idle.receive(); got != `{"Item":"one apple"}` {
		t.Fatal(got, err)
	}
	if err := busy.send("pear"); err != nil {
		t.Fatal(err)
	}
	<-s.began
	s.end(t)

	// Connections that wait for a call are closed before one comes.
	for name, c := range map[string]*client{"idle": idle, "fresh": fresh} {
		if _, err := c.r.Peek(1); !errors.Is(err, io.EOF) {
			t.Errorf("the %s connection is open: %v", name, err)
		}
	}
	short, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := s.server.Drain(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Drain did not wait for the call in hand: %v", err)
	}
	// The call in hand gets its answer, and the next one on its connection none.
	close(s.proceed)
	if err := s.server.Drain(t.Context()); err != nil {
		t.Error(err)
	}
	if got, err := busy.receive(); got != `{"Item":"one pear"}` {
		t.Error(got, err)
	}
	err := busy.send("plum")
	if err == nil {
		_, err = busy.receive()
	}
	if err == nil {
		t.Error("a call after the one in hand was answered")
	}
	select {
	case item := <-s.began:
		t.Errorf("an order of a %s was begun", item)
	default:
	}
}

// Docker shows the text to a person on the host.
func TestErrorsNameTheHostsFiles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "plugin.sock")
	s := open(t, path)
	c := dial(t, path)
	if err := c.send(""); err != nil {
		t.Fatal(err)
	}
	const text = `"open /run/particle/live.db: permission denied"`
	if got, err := c.receive(); err != nil || got != `{"Err":`+text+`,"Error":`+text+`}` {
		t.Errorf("got %s, %v", got, err)
	}
	s.end(t)
}

// Whatever the moment, a call that is begun gets its answer.
func TestNoCallIsHalfDone(t *testing.T) {
	for range 20 {
		path := filepath.Join(t.TempDir(), "plugin.sock")
		s := open(t, path)
		close(s.proceed)
		var begun, answered atomic.Int64
		done := make(chan struct{})
		go func() {
			defer close(done)
			for range s.began {
				begun.Add(1)
			}
		}()
		var clients sync.WaitGroup
		warm := make(chan struct{}, 8)
		for range 8 {
			c := dial(t, path)
			clients.Go(func() {
				for i := 0; ; i++ {
					if c.send("apple") != nil {
						return
					}
					if _, err := c.receive(); err != nil {
						return
					}
					answered.Add(1)
					if i == 10 {
						warm <- struct{}{}
					}
				}
			})
		}
		for range 8 {
			<-warm
		}
		s.end(t)
		if err := s.server.Drain(t.Context()); err != nil {
			t.Error(err)
		}
		clients.Wait()
		close(s.began)
		<-done
		if begun.Load() != answered.Load() {
			t.Fatalf("%d calls were begun, %d answered", begun.Load(), answered.Load())
		}
	}
}

// noticed tells when its user has closed it.
type noticed struct {
	net.Conn
	closed chan<- struct{}
}

func (n noticed) Close() error {
	n.closed <- struct{}{}
	return n.Conn.Close()
}

// dockerd repeats a call after a transport error, from the same buffer: what was
// written once is not there the second time (moby pkg/plugins/client.go). It must
// find its connection closed before it writes.
func TestDockerRepeatsWhatWasRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "plugin.sock")
	first := open(t, path)
	close(first.proceed)
	closed := make(chan struct{}, 10)
	docker := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
		return noticed{conn, closed}, err
	}}}
	defer docker.CloseIdleConnections()
	refused := make(chan struct{}, 1)
	call := func() {
		buffer := bytes.NewBufferString(`{"Item":"apple"}`)
		for t.Context().Err() == nil {
			resp, err := docker.Post("http://plugin/Shop.Order", "application/json", buffer)
			if err != nil {
				select {
				case refused <- struct{}{}:
				default:
				}
				continue
			}
			body, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if got := strings.TrimSpace(string(body)); got != `{"Item":"one apple"}` || err != nil {
				t.Errorf("got %s, %v", got, err)
			}
			return
		}
	}
	call()
	first.end(t)
	if err := first.server.Drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	<-closed
	answered := make(chan struct{})
	go func() { call(); close(answered) }()
	<-refused
	second := open(t, path)
	close(second.proceed)
	<-answered
	second.end(t)
	if err := second.server.Drain(t.Context()); err != nil {
		t.Error(err)
	}
}
