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
)

// maxBody bounds a request, in bytes. The largest real ones carry a few
// hundred published ports.
const maxBody = 4 << 20

// Server answers plugin calls on any number of sockets. Add all routes before
// the first Serve.
type Server struct {
	handler sdk.Handler
	limit   time.Duration
	log     *logrus.Entry
	calls   sync.WaitGroup
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
	return &Server{handler: sdk.NewHandler(string(manifest)), limit: limit, log: log}, nil
}

// Serve answers on l until l is closed.
func (s *Server) Serve(l net.Listener) error {
	if err := s.handler.Serve(l); err != nil && !errors.Is(err, net.ErrClosed) {
		return &fault.Error{Op: "serve plugin calls on", On: l.Addr().String(), Err: err}
	}
	return nil
}

// Drain waits for the calls in hand, until ctx ends.
func (s *Server) Drain(ctx context.Context) error {
	done := make(chan struct{})
	go func() { s.calls.Wait(); close(done) }()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Handle routes /method to fn. A request type of struct{} means that dockerd
// sends no body for the method.
func Handle[Req, Resp any](s *Server, method string, level logrus.Level, fn func(context.Context, Req) (Resp, error)) {
	_, bodiless := any(*new(Req)).(struct{})
	s.handler.HandleFunc("/"+method, func(w http.ResponseWriter, r *http.Request) {
		s.calls.Add(1)
		defer s.calls.Done()
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
			sdk.EncodeResponse(w, errorReply{Err: err.Error(), Error: err.Error()}, true)
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
