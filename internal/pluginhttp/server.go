package pluginhttp

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/docker/go-plugins-helpers/sdk"
	"github.com/sirupsen/logrus"

	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/internal/hostview"
)

// maxBody bounds a request, in bytes. The largest real ones carry a few
// hundred published ports.
const maxBody = 4 << 20

// Server answers plugin calls on any number of sockets. Add all routes before
// the first Serve.
//
// The handler of go-plugins-helpers keeps its HTTP server to itself, so that its
// connections could not be closed; only its encoding is used.
type Server struct {
	routes *http.ServeMux
	http   http.Server
	limit  time.Duration
	log    *logrus.Entry

	mu       sync.Mutex        // guards what follows
	conns    map[net.Conn]bool // open connections; true while a call is in hand there
	draining bool
	drained  chan struct{} // closed when draining and no call is in hand
}

// Log levels of a call's line. A call that fails is always a warning.
const (
	Rare  = logrus.InfoLevel  // once in the life of a network
	Often = logrus.DebugLevel // once or more in the life of a container
)

// NewServer makes a server for a plugin that implements the named interfaces
// ("NetworkDriver"). Every call ends within limit.
func NewServer(implements []string, limit time.Duration, log *logrus.Entry) (*Server, error) {
	manifest, err := json.Marshal(map[string][]string{"Implements": implements})
	if err != nil {
		return nil, err
	}
	s := &Server{routes: http.NewServeMux(), limit: limit, log: log, conns: map[net.Conn]bool{}, drained: make(chan struct{})}
	s.http.Handler, s.http.ConnState = http.HandlerFunc(s.answer), s.follow
	s.http.ConnContext = func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, connKey{}, c) }
	s.routes.HandleFunc("/Plugin.Activate", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", sdk.DefaultContentTypeV1_1)
		_, _ = w.Write(append(manifest, '\n')) // dockerd may have gone
	})
	return s, nil
}

// connKey finds a call's connection in its context.
type connKey struct{}

// Serve answers on l until l is closed. The end of one listener is the end of
// all: from then on the server takes no more calls, on any socket.
func (s *Server) Serve(l net.Listener) error {
	err := s.http.Serve(l)
	s.refuse()
	if err != nil && !errors.Is(err, net.ErrClosed) {
		return &fault.Error{Op: "serve plugin calls on", On: l.Addr().String(), Err: err}
	}
	return nil
}

// Drain takes no more calls and waits, until ctx ends, for those in hand: their
// header was read, and they get their reply.
func (s *Server) Drain(ctx context.Context) error {
	s.refuse()
	select {
	case <-s.drained:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// refuse closes the connections that dockerd keeps for its next call. It then
// repeats that call until the next plugin listens, for up to 30 s, and nothing of
// it was done here. It matters that most connections are closed before a call
// is written to them, because dockerd repeats without its body one that was
// (moby issue 39331).
func (s *Server) refuse() {
	s.mu.Lock()
	s.draining = true
	var idle []net.Conn
	for c, inHand := range s.conns {
		if !inHand {
			idle = append(idle, c)
		}
	}
	s.endDrain()
	s.mu.Unlock()
	s.http.SetKeepAlivesEnabled(false) // the others end with their reply
	for _, c := range idle {
		_ = c.Close() // it may be on its way out
	}
}

// endDrain is called with mu held.
func (s *Server) endDrain() {
	for _, inHand := range s.conns {
		if inHand {
			return
		}
	}
	select {
	case <-s.drained:
	default:
		close(s.drained)
	}
}

// follow is told of a connection's life. It becomes active when a call's header
// has been read, and idle when its reply has been written.
func (s *Server) follow(c net.Conn, state http.ConnState) {
	s.mu.Lock()
	switch state {
	case http.StateNew, http.StateIdle:
		s.conns[c] = false
	case http.StateActive:
		s.conns[c] = !s.draining
	default:
		delete(s.conns, c)
	}
	unwanted := s.draining && !s.conns[c]
	if s.draining {
		s.endDrain()
	}
	s.mu.Unlock()
	if unwanted {
		_ = c.Close() // it may be closed already
	}
}

// answer lets the calls in hand through. Another one came while the server was
// closing its connection.
func (s *Server) answer(w http.ResponseWriter, r *http.Request) {
	c, _ := r.Context().Value(connKey{}).(net.Conn)
	s.mu.Lock()
	inHand := s.conns[c]
	s.mu.Unlock()
	if !inHand {
		panic(http.ErrAbortHandler) // net/http closes the connection and says nothing
	}
	s.routes.ServeHTTP(w, r)
}

// Handle routes /method to fn. A request type of struct{} means that dockerd
// sends no body for the method.
func Handle[Req, Resp any](s *Server, method string, level logrus.Level, fn func(context.Context, Req) (Resp, error)) {
	_, bodiless := any(*new(Req)).(struct{})
	s.routes.HandleFunc("/"+method, func(w http.ResponseWriter, r *http.Request) {
		began := time.Now()
		// Docker may hang up and retry while the work goes on; a half-done
		// change would be worse than one that finishes unseen.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), s.limit)
		defer cancel()
		var req Req
		resp, err := *new(Resp), error(nil)
		if !bodiless {
			err = decode(method, r.Body, &req)
		}
		if err == nil {
			resp, err = fn(ctx, req)
		}
		line := s.log.WithFields(logrus.Fields{"call": method, "took": time.Since(began).Round(time.Microsecond).String()})
		if d, ok := any(req).(describer); ok {
			line = line.WithFields(d.Describe())
		}
		if err != nil {
			line.WithError(err).Warn("call failed")
			text := hostview.Text(err.Error())
			sdk.EncodeResponse(w, errorReply{Err: text, Error: text}, true)
			return
		}
		line.Log(level, "call")
		sdk.EncodeResponse(w, resp, false)
	})
}

// describer is a request that names its objects for the log line.
type describer interface{ Describe() logrus.Fields }

// errorReply serves both interfaces: dockerd reads Err from a network driver
// and Error from an IPAM driver.
type errorReply struct{ Err, Error string }

func decode(method string, body io.Reader, into any) error {
	data, err := io.ReadAll(io.LimitReader(body, maxBody+1))
	switch {
	case err != nil:
		return &fault.Error{Op: "read call", On: method, Err: err}
	case len(data) > maxBody:
		return fault.New("read call", method, fmt.Sprintf("the body is longer than %d bytes", maxBody), "")
	case len(bytes.TrimSpace(data)) == 0:
		return fault.New("read call", method, "the body is empty: Docker repeated a call whose first try broke off",
			"repeat the docker command")
	}
	if err := json.Unmarshal(data, into); err != nil {
		return &fault.Error{Op: "read call", On: method, Err: err}
	}
	return nil
}
