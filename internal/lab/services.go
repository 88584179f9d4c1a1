package lab

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/internal/fault"
)

// controlRequest is what the lab asks an init, one per connection.
type controlRequest struct {
	Op     string   `json:"op"` // start, stop, status
	Name   string   `json:"name"`
	Argv   []string `json:"argv,omitempty"`
	Env    []string `json:"env,omitempty"`
	Signal int      `json:"signal,omitempty"` // stop
}

// controlReply is an init's answer.
type controlReply struct {
	Err     string `json:"err,omitempty"`
	Running bool   `json:"running"`
	Pid     int    `json:"pid,omitempty"`    // in the node's pid namespace
	Status  string `json:"status,omitempty"` // how it ended: "exit status 1", "signal: killed"
}

// service is a daemon the init started.
type service struct {
	pid    int
	ended  chan struct{}
	status syscall.WaitStatus // valid once ended is closed
}

func (s *service) reply() controlReply {
	select {
	case <-s.ended:
		return controlReply{Pid: s.pid, Status: statusText(s.status)}
	default:
		return controlReply{Pid: s.pid, Running: true}
	}
}

func statusText(w syscall.WaitStatus) string {
	if w.Signaled() {
		return "signal: " + w.Signal().String()
	}
	return fmt.Sprintf("exit status %d", w.ExitStatus())
}

// services is an init's work: it starts and stops named daemons, and reaps every
// process of the pid namespace that has lost its parent.
type services struct {
	logs   string     // directory of the NAME.log files
	prefix []string   // a program that starts another, before each command line
	mu     sync.Mutex // guards byName, and orders fork before the reaping of the child
	byName map[string]*service
}

func newServices(logs string) *services {
	return &services{logs: logs, byName: map[string]*service{}}
}

// run reports that the node is ready and serves it. end is called when the creator has
// ended, if the node is tied to it.
func (s *services) run(word string, control *os.File, end func()) error {
	listener, err := net.FileListener(control)
	control.Close()
	if err != nil {
		return reportReady(&fault.Error{Op: "open control socket", Err: err})
	}
	if word == wordTie {
		go func() {
			_, _ = io.Copy(io.Discard, bufio.NewReader(os.NewFile(fdRelease, "release")))
			end()
		}()
	}
	if err := reportReady(nil); err != nil {
		return err
	}
	return s.serve(listener)
}

// serve answers requests until the process ends.
func (s *services) serve(l net.Listener) error {
	children := make(chan os.Signal, 1)
	signal.Notify(children, unix.SIGCHLD)
	go func() {
		for range children {
			s.reap()
		}
	}()
	for {
		conn, err := l.Accept()
		if err != nil {
			return &fault.Error{Op: "accept on control socket", Err: err}
		}
		go s.answer(conn)
	}
}

// reap collects all children that have ended: signals of several may arrive as one.
func (s *services) reap() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
		for _, svc := range s.byName {
			if svc.pid == pid && svc.reply().Running { // the number may have been another's before
				svc.status = status
				close(svc.ended)
			}
		}
	}
}

func (s *services) answer(conn net.Conn) {
	defer conn.Close()
	var req controlRequest
	if err := json.NewDecoder(conn).Decode(&req); err != nil {
		return // whoever only looks whether the socket answers
	}
	reply, err := s.do(req)
	if err != nil {
		reply.Err = err.Error()
	}
	_ = json.NewEncoder(conn).Encode(reply) // the asker may have left
}

func (s *services) do(req controlRequest) (controlReply, error) {
	if req.Op == "start" {
		return s.start(req)
	}
	s.mu.Lock()
	svc := s.byName[req.Name]
	s.mu.Unlock()
	if svc == nil {
		return controlReply{}, nil
	}
	if req.Op == "stop" {
		if svc.reply().Running {
			if err := unix.Kill(svc.pid, unix.Signal(req.Signal)); err != nil && !errors.Is(err, unix.ESRCH) {
				return svc.reply(), err
			}
		}
		<-svc.ended
	}
	return svc.reply(), nil
}

// start runs a daemon with its output appended to NAME.log.
func (s *services) start(req controlRequest) (controlReply, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if old := s.byName[req.Name]; old != nil && old.reply().Running {
		return old.reply(), fault.New("start", req.Name, "it is running", "stop it first")
	}
	log, err := os.OpenFile(filepath.Join(s.logs, req.Name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return controlReply{}, err
	}
	defer log.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return controlReply{}, err
	}
	defer null.Close()
	argv := append(slices.Clone(s.prefix), req.Argv...)
	pid, err := syscall.ForkExec(argv[0], argv, &syscall.ProcAttr{
		Dir:   "/",
		Env:   req.Env,
		Files: []uintptr{null.Fd(), log.Fd(), log.Fd()},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return controlReply{}, &fault.Error{Op: "start", On: req.Argv[0], Err: err}
	}
	svc := &service{pid: pid, ended: make(chan struct{})}
	s.byName[req.Name] = svc
	return svc.reply(), nil
}
