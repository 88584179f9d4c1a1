package server

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/internal/fault"
)

const (
	firstPause = time.Second
	longPause  = 30 * time.Second
	// fine is how long a child must have been ready for the next pause to be
	// short again.
	fine = time.Minute
)

// Server keeps one child running, from Start to Stop. It is safe for concurrent
// use.
type Server struct {
	config  Config
	command []string
	log     *logrus.Entry
	stop    context.CancelFunc
	done    chan struct{} // closed when no child is left

	mu      sync.Mutex // guards what follows
	state   State
	changed chan struct{} // closed when it is ready or not, or has a problem
	kill    func()        // of the child that runs
}

// State is how a server is.
type State struct {
	Ready bool
	// Problem is why it is not, empty while it is starting.
	Problem string
	// Removed: another server has ended this one's part in the store.
	Removed bool
	Starts  int // of children, so far
	Pid     int // of the child that runs, or ran last
}

// Start runs the child until Stop. The command is this program and Argument.
func Start(c Config, command []string, log *logrus.Entry) *Server {
	ctx, stop := context.WithCancel(context.Background())
	s := &Server{config: c, command: command, log: log, stop: stop, done: make(chan struct{}), changed: make(chan struct{})}
	go s.keep(ctx)
	return s
}

// State tells how it is now.
func (s *Server) State() State {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state
}

// Await is State, once the server is no more starting or ctx has ended.
func (s *Server) Await(ctx context.Context) State {
	for {
		s.mu.Lock()
		state, changed := s.state, s.changed
		s.mu.Unlock()
		if state.Ready || state.Problem != "" {
			return state
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return state
		}
	}
}

// tell wakes those who wait for another state. s.mu is held.
func (s *Server) tell() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// Stop ends the child and returns when it is gone.
func (s *Server) Stop() {
	s.stop()
	<-s.done
}

// Restart ends the child, so that connections end that a revoked certificate
// has opened; the next one is started at once.
func (s *Server) Restart() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.kill != nil {
		s.kill()
		s.state.Ready = false
		s.tell()
	}
}

func (s *Server) keep(ctx context.Context) {
	defer close(s.done)
	pause := firstPause
	for ctx.Err() == nil {
		began := time.Now()
		err := s.child(ctx)
		if ctx.Err() != nil {
			return
		}
		wasFine := time.Since(began) > fine
		s.mu.Lock()
		asked := errors.Is(err, errRestart)
		s.state.Ready = false
		if !asked {
			s.state.Problem = err.Error()
			s.state.Removed = errors.Is(err, ErrRemoved)
		}
		s.tell()
		s.mu.Unlock()
		if asked {
			continue
		}
		s.log.WithError(err).Error("the cluster's store on this host has ended; it will be started again")
		if wasFine {
			pause = firstPause
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
		pause = min(2*pause, longPause)
	}
}

var errRestart = errors.New("restart")

// child runs one child to its end.
func (s *Server) child(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if err := os.MkdirAll(s.config.Dir, 0o700); err != nil {
		return err
	}
	input, keepOpen, err := os.Pipe()
	if err != nil {
		return err
	}
	defer keepOpen.Close()
	cmd := exec.CommandContext(ctx, s.command[0], s.command[1:]...)
	cmd.Stdin = input
	last := &logWriter{log: s.log}
	cmd.Stderr = last
	output, err := cmd.StdoutPipe()
	if err != nil {
		return errors.Join(err, input.Close())
	}
	err = cmd.Start()
	_ = input.Close() // the child has its own
	if err != nil {
		return &fault.Error{Op: "start the cluster's store", Err: err}
	}
	s.mu.Lock()
	s.state.Starts++
	s.state.Pid = cmd.Process.Pid
	s.kill = func() { cancel(errRestart) }
	s.mu.Unlock()
	if err := json.NewEncoder(keepOpen).Encode(s.config); err == nil {
		s.await(output)
	}
	err = cmd.Wait()
	s.mu.Lock()
	s.kill = nil
	s.mu.Unlock()
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return s.explain(last.text(), err)
}

// await reads the child's output to its end.
func (s *Server) await(output io.Reader) {
	for lines := bufio.NewScanner(output); lines.Scan(); {
		if lines.Text() != readyLine {
			continue
		}
		s.mu.Lock()
		s.state.Ready, s.state.Removed, s.state.Problem = true, false, ""
		s.tell()
		s.mu.Unlock()
	}
}

// explain makes an error of how a child ended and of what it said last.
func (s *Server) explain(said string, err error) error {
	f := &fault.Error{Op: "serve the cluster's store", On: s.config.Dir, Err: errors.New(said), Fix: "see the log of the Docker daemon"}
	switch {
	case said == "" && err != nil:
		f.Err = err
	case said == "":
		f.Err = errors.New("it ended")
	case strings.Contains(said, ErrRemoved.Error()):
		f.Err, f.Fix = ErrRemoved, "`particle cluster join --server` with a server's address makes it one again, without what it had"
	case strings.Contains(said, unix.ENOSPC.Error()):
		f.Err, f.Fix = errors.New("the disk is full"), "make room; it goes on by itself then"
	case strings.Contains(said, "address already in use"):
		f.Fix = "end what uses the port, or set PARTICLE_CLUSTER_PORT to another before `particle cluster init`"
	case strings.Contains(said, "cannot assign requested address"):
		f.Fix = "give the host its address back; or, if others serve the store too, run `particle cluster leave` and then `particle cluster join ADDRESS --server`"
	}
	return f
}

// logWriter passes a child's log on, and keeps the last error.
type logWriter struct {
	log  *logrus.Entry
	mu   sync.Mutex // guards what follows
	rest []byte
	last string
	// removed: etcd has said so, and says other things after it.
	removed bool
}

func (w *logWriter) text() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.removed {
		return ErrRemoved.Error()
	}
	return w.last
}

// Write takes whole lines out of what comes.
func (w *logWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.rest = append(w.rest, p...)
	for {
		line, rest, found := strings.Cut(string(w.rest), "\n")
		if !found {
			return len(p), nil
		}
		w.rest = []byte(rest)
		w.line(line)
	}
}

func (w *logWriter) line(text string) {
	var fields map[string]any
	if json.Unmarshal([]byte(text), &fields) != nil { // a panic's stack, line by line
		if strings.HasPrefix(text, "panic:") || strings.HasPrefix(text, "fatal error:") {
			w.last = text
		}
		w.log.Warn("store: " + text)
		return
	}
	message, _ := fields["msg"].(string)
	if cause, ok := fields["error"].(string); ok {
		message += ": " + cause
	}
	w.removed = w.removed || strings.Contains(message, "permanently removed from the cluster")
	if fields["level"] == "warn" {
		w.log.Warn("store: " + message)
		return
	}
	w.last = message
	w.log.Error("store: " + message)
}
