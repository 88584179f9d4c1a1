package holder

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/topology"
)

// startLimit bounds the start of a holder. That takes milliseconds where there is
// nothing else to do.
const startLimit = orderLimit

// Line is a connection to the holder, for one order.
type Line struct{ fd int }

// Connect calls the holder of a directory, and starts one if there is none: program
// is run with Command as its argument, apart from this process in every way. The
// connection is made before a filter is installed, under which it could not be.
func Connect(dir, program string, env []string) (Line, error) {
	deadline := time.Now().Add(startLimit)
	for {
		line, err := dial(dir)
		if err == nil {
			return line, nil
		}
		if errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ECONNREFUSED) {
			err = start(program, env, deadline)
		}
		if err == nil && time.Now().After(deadline) {
			err = fmt.Errorf("it does not come up within %s", startLimit)
		}
		if err != nil {
			return Line{}, &fault.Error{Op: "call the holder of address guards in", On: dir, Err: err,
				Fix: "run `" + program + " " + Command + "` to see why"}
		}
	}
}

func dial(dir string) (Line, error) {
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_SEQPACKET|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return Line{}, err
	}
	wait := syscall.Timeval{Sec: int64(orderLimit / time.Second)}
	for _, step := range []error{
		syscall.SetsockoptTimeval(fd, syscall.SOL_SOCKET, syscall.SO_RCVTIMEO, &wait),
		syscall.SetsockoptTimeval(fd, syscall.SOL_SOCKET, syscall.SO_SNDTIMEO, &wait),
		uninterrupted(func() error {
			return syscall.Connect(fd, &syscall.SockaddrUnix{Name: filepath.Join(dir, socketName)})
		}),
	} {
		if step != nil {
			_ = syscall.Close(fd)
			return Line{}, step
		}
	}
	return Line{fd}, nil
}

// uninterrupted repeats a call that a signal of Go's own ended: with a limit to wait
// for, the kernel does not resume it (signal(7)).
func uninterrupted(call func() error) error {
	for {
		if err := call(); err != syscall.EINTR {
			return err
		}
	}
}

// start runs a holder and waits until it answers or has ended: another may have been
// faster. It gets no terminal, no directory and no descriptor of ours, in which
// somebody may wait for an end.
func start(program string, env []string, deadline time.Time) error {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	heard, ready, err := os.Pipe()
	if err != nil {
		return err
	}
	defer heard.Close()
	process, err := os.StartProcess(program, []string{"particle-runtime", Command}, &os.ProcAttr{
		Dir: "/", Env: env, Files: []*os.File{null, null, null, ready}, Sys: &syscall.SysProcAttr{Setsid: true},
	})
	_ = ready.Close()
	if err != nil {
		return err
	}
	_ = process.Release()
	if err := heard.SetReadDeadline(deadline); err != nil {
		return err
	}
	_, err = heard.Read(make([]byte, 1)) // the end of the file
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	return nil
}

// Close ends the connection.
func (l Line) Close() { _ = syscall.Close(l.fd) }

// Hold hands over the listener of a filter, which may be closed then. fresh says that
// the container has no process yet.
func (l Line) Hold(id topology.ContainerID, fresh bool, listener int) error {
	_, err := l.ask(order{Hold: id, Fresh: fresh}, listener)
	return err
}

func (l Line) ask(o order, listener int) (receipt, error) {
	var rights []byte
	if listener >= 0 {
		rights = syscall.UnixRights(listener)
	}
	raw, err := json.Marshal(o)
	if err == nil {
		err = uninterrupted(func() error { return syscall.Sendmsg(l.fd, raw, rights, nil, syscall.MSG_NOSIGNAL) })
	}
	buf := make([]byte, maxReceipt)
	n := 0
	if err == nil {
		err = uninterrupted(func() (err error) { n, err = syscall.Read(l.fd, buf); return err })
	}
	var r receipt
	if err == nil {
		err = json.Unmarshal(buf[:n], &r)
	}
	if err == nil && r.Err != "" {
		err = errors.New(r.Err)
	}
	if err != nil {
		return r, &fault.Error{Op: "ask the holder of address guards", Err: err}
	}
	return r, nil
}

// Count lists the containers that the holder of a directory serves; none without one.
func Count(dir string) (map[topology.ContainerID]Denials, error) {
	line, err := dial(dir)
	if absent(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer line.Close()
	r, err := line.ask(order{Count: true}, -1)
	return r.Containers, err
}

// Pid is the process of the holder of a directory.
func Pid(dir string) (int, error) {
	line, err := dial(dir)
	if err != nil {
		return 0, err
	}
	defer line.Close()
	peer, err := syscall.GetsockoptUcred(line.fd, syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	if err != nil {
		return 0, err
	}
	return int(peer.Pid), nil
}

// End ends the holder of a directory if it serves nobody; none is success.
func End(dir string) error {
	line, err := dial(dir)
	if absent(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer line.Close()
	_, err = line.ask(order{End: true}, -1)
	return err
}

func absent(err error) bool {
	return errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ECONNREFUSED)
}
