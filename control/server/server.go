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
	config  func() Config
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
	// Lost: its data is gone, or was set back, while others serve the store.
	Lost bool
	// Unmet: no other server has answered this one, which is new, in the second that etcd
	// gives them. It tries again.
	Unmet  bool
	Starts int // of children, so far
	Pid    int // of the child that runs, or ran last
}

// Out says whether this server has no part in the store any more, and can only get one
// anew.
func (s State) Out() bool { return s.Removed || s.Lost }

// Start runs the child until Stop. The command is this program and Argument; config is
// asked before each start of one.
func Start(config func() Config, command []string, log *logrus.Entry) *Server {
	ctx, stop := context.WithCancel(context.Background())
	s := &Server{config: config, command: command, log: log, stop: stop, done: make(chan struct{}), changed: make(chan struct{})}
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
			s.state.Removed, s.state.Lost = errors.Is(err, ErrRemoved), errors.Is(err, ErrLost) || errors.Is(err, ErrSetBack)
			s.state.Unmet = errors.Is(err, errUnmet)
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

// errUnmet is what etcd calls incompatible, also if it was not told a version at all.
var errUnmet = errors.New("no other server has told it in time that they are of versions that go together")

// child runs one child to its end.
func (s *Server) child(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	config := s.config()
	if config.lost() {
		return &fault.Error{Op: "serve the cluster's store", On: config.Dir, Err: ErrLost,
			Fix: "`particle cluster join --server` with the address of one of them (" + config.Others + ") makes it one again; if all of them are gone for good, `particle cluster recover` makes an empty store here, which the hosts fill"}
	}
	if err := os.MkdirAll(config.Dir, 0o700); err != nil {
		return err
	}
	input, keepOpen, err := os.Pipe()
	if err != nil {
		return err
	}
	defer keepOpen.Close()
	cmd := exec.CommandContext(ctx, s.command[0], s.command[1:]...)
	cmd.Stdin = input
	cmd.Cancel, cmd.WaitDelay = keepOpen.Close, 2*endLimit
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
	if err := json.NewEncoder(keepOpen).Encode(config); err == nil {
		s.await(output)
	}
	err = cmd.Wait()
	s.mu.Lock()
	s.kill = nil
	s.mu.Unlock()
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return explainEnd(config.Dir, last.text(), err)
}

// await reads the child's output to its end.
func (s *Server) await(output io.Reader) {
	for lines := bufio.NewScanner(output); lines.Scan(); {
		if lines.Text() != readyLine {
			continue
		}
		s.mu.Lock()
		s.state.Ready, s.state.Removed, s.state.Lost, s.state.Unmet, s.state.Problem = true, false, false, false, ""
		s.tell()
		s.mu.Unlock()
	}
}

// outOfRange is what etcd's raft says of ErrSetBack, with numbers around it.
const outOfRange = " is out of range [lastIndex("

// noVoter is what it says where Alone has ended the others' part in a store in which, by
// this server's own data, it had no vote.
const noVoter = "removed all voters"

// explainEnd makes an error of how a child ended and of what it said last.
func explainEnd(dir, said string, err error) error {
	f := &fault.Error{Op: "serve the cluster's store", On: dir, Err: errors.New(said), Fix: "see the log of the Docker daemon"}
	switch {
	case said == "" && err != nil:
		f.Err = err
	case said == "":
		f.Err = errors.New("it ended")
	case strings.Contains(said, ErrRemoved.Error()):
		f.Err, f.Fix = ErrRemoved, "`particle cluster join --server` with a server's address makes it one again, without what it had"
	case strings.Contains(said, outOfRange):
		f.Err, f.Fix = ErrSetBack, "`particle cluster join --server` with the address of another server makes it one again, with what the others have"
	case strings.Contains(said, "incompatible with current running cluster"), strings.Contains(said, "cannot fetch cluster info"):
		f.Err, f.Fix = errUnmet, "see that the other servers run, have the same version of particle and are not overloaded"
	case strings.Contains(said, noVoter):
		f.Err = errors.New("this server was still joining the store, and cannot serve it alone")
		f.Fix = "run `particle cluster leave --force` here; and if no other server is left, on all hosts, and make the cluster anew"
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
	alike   map[string]alike // what was said, by message
}

// alike is how often a message was passed on since a moment.
type alike struct {
	since time.Time
	count int
}

// mostAlike is how often a message is passed on in alikeSpan: of each connection that comes
// to nothing there is one, which anybody can make, and hosts that were removed do for as
// long as they are on.
const (
	mostAlike = 10
	alikeSpan = time.Minute
	// manyMessages bounds what is remembered: etcd has no more.
	manyMessages = 1000
)

// worth says whether a message is to be passed on.
func (w *logWriter) worth(message string, now time.Time) bool {
	a := w.alike[message]
	if now.Sub(a.since) > alikeSpan {
		a = alike{since: now}
	}
	a.count++
	if w.alike == nil || len(w.alike) >= manyMessages {
		w.alike = map[string]alike{}
	}
	w.alike[message] = a
	return a.count <= mostAlike
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
	worth := w.worth(message, time.Now())
	if cause, ok := fields["error"].(string); ok {
		message += ": " + cause
	}
	w.removed = w.removed || strings.Contains(message, "permanently removed from the cluster")
	level := logrus.ErrorLevel
	if fields["level"] == "warn" {
		level = logrus.WarnLevel
	} else {
		w.last = message
	}
	if worth {
		w.log.Log(level, "store: "+message)
	}
}
