package lab

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/internal/fault"
)

const controlSocket = "init.sock"

// Node is a set of namespaces one can run commands in. Its methods may be called
// by several goroutines at once, except for [Host.Reboot].
type Node struct {
	lab   *Lab
	name  string
	index int
	// isolated nodes have a root and cgroups of their own.
	isolated bool
	// engine is what the node's environment leads to.
	engine Engine
}

// Name is the node's name: its host name and the name Command's errors carry.
func (n *Node) Name() string { return n.name }

// Pid is the machine's pid of the node's process 1. It changes with a reboot.
func (n *Node) Pid() int { return n.lab.nodeState(n.name).Init.Pid }

// Root is the path under which the machine sees the node's root.
func (n *Node) Root() string { return fmt.Sprintf("/proc/%d/root", n.Pid()) }

// NetNS is the path of the node's network namespace.
func (n *Node) NetNS() string { return fmt.Sprintf("/proc/%d/ns/net", n.Pid()) }

func (n *Node) dir() string { return filepath.Join(labDir(n.lab.name), n.name) }

// Command prepares a command that runs inside the node when started: in all its
// namespaces and cgroups. Its environment is a plain root login's, and may be
// extended through Env. When ctx ends, the command is killed.
func (n *Node) Command(ctx context.Context, argv ...string) *exec.Cmd {
	e := entrance{Init: n.lab.nodeState(n.name).Init, Node: n.name, Lab: n.lab.name}
	if n.isolated {
		e.Cgroups = n.lab.cgroups()
	}
	where, err := json.Marshal(e)
	cmd := exec.CommandContext(ctx, "/proc/self/exe", argv...)
	cmd.Args = append([]string{hookEnter, string(where)}, argv...)
	cmd.Env = n.environ()
	cmd.Cancel = func() error { return cmd.Process.Signal(signalKill) }
	cmd.Err = errors.Join(err, checkHook("run on "+n.name))
	// A daemon the command leaves behind may hold the pipes for ever.
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

func (n *Node) environ() []string {
	env := append(n.engine.environ(), "HOME=/root", "USER=root", "LANG=C.UTF-8")
	if term := os.Getenv("TERM"); term != "" {
		env = append(env, "TERM="+term)
	}
	return env
}

// Exec runs a command inside and returns its standard output without the final
// line break. The error carries the standard error's text.
func (n *Node) Exec(ctx context.Context, argv ...string) (string, error) {
	cmd := n.Command(ctx, argv...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	text := strings.TrimRight(out.String(), "\n")
	if err == nil {
		return text, nil
	}
	if said := strings.TrimSpace(errs.String()); said != "" {
		err = fmt.Errorf("%w: %s", err, said)
	}
	return text, &fault.Error{Op: "run on " + n.name, On: strings.Join(argv, " "), Err: err}
}

// boot starts the node's init and returns once the node is made. The init is
// recorded before it is let go.
func (n *Node) boot(ctx context.Context, spec bootSpec) error {
	file := filepath.Join(n.dir(), bootSpecFile)
	if err := writeJSON(file, spec); err != nil {
		return &fault.Error{Op: "boot", On: n.name, Err: err}
	}
	release, ready, err := n.startInit(file)
	if err != nil {
		return &fault.Error{Op: "boot", On: n.name, Err: err}
	}
	defer ready.Close()
	word := wordTie // the pipe stays open for as long as this process and the init live
	if !n.lab.tied {
		word = wordKeep
		defer release.Close()
	}
	if n.isolated {
		if err := joinCgroups(n.lab.cgroups(), n.lab.name, n.name, "", n.Pid()); err != nil {
			return err
		}
	}
	if _, err := fmt.Fprintln(release, word); err != nil {
		return &fault.Error{Op: "boot", On: n.name, Err: err}
	}
	stop := context.AfterFunc(ctx, func() { _ = ready.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	answer, err := bufio.NewReader(ready).ReadString('\n')
	switch answer = strings.TrimSpace(answer); {
	case answer == "ok":
		return nil
	case answer != "":
		return &fault.Error{Op: "boot", On: n.name, Err: errors.New(answer)}
	case ctx.Err() != nil:
		return &fault.Error{Op: "boot", On: n.name, Err: ctx.Err()}
	}
	return &fault.Error{Op: "boot", On: n.name, Err: fmt.Errorf("its init ended: %w", err), Fix: "look into " + filepath.Join(n.dir(), "init.log")}
}

// startInit starts the init and records it. The init waits on the release pipe.
func (n *Node) startInit(file string) (release, ready *os.File, err error) {
	listener, err := listenControl(filepath.Join(n.dir(), controlSocket))
	if err != nil {
		return nil, nil, err
	}
	defer listener.Close()
	log, err := os.OpenFile(filepath.Join(n.dir(), "init.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, nil, err
	}
	defer log.Close()
	releaseR, release, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	defer releaseR.Close()
	ready, readyW, err := os.Pipe()
	if err != nil {
		release.Close()
		return nil, nil, err
	}
	defer readyW.Close()

	flags := unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC
	cmd := &exec.Cmd{
		Path: "/proc/self/exe", Args: []string{hookInit, file}, Env: n.engine.environ(), Dir: "/",
		Stdout: log, Stderr: log, ExtraFiles: []*os.File{releaseR, readyW, listener},
		SysProcAttr: &syscall.SysProcAttr{Cloneflags: uintptr(flags), Setsid: true},
	}
	err = cmd.Start()
	if err == nil {
		go func() {
			_ = cmd.Wait()  // only to reap it, should it end before this process
			release.Close() // a file that nothing refers to would be closed before
		}()
		var p procID
		if p, err = processOf(cmd.Process.Pid); err == nil {
			err = n.lab.record(n.name, p)
		}
	}
	if err != nil {
		release.Close() // the init reads the end and leaves
		ready.Close()
		return nil, nil, &fault.Error{Op: "start init", On: n.name, Err: err, Fix: "run as root on a kernel with namespaces"}
	}
	return release, ready, nil
}

// listenControl returns the socket an init answers on, as a file to pass on.
func listenControl(path string) (*os.File, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	defer l.Close()
	l.SetUnlinkOnClose(false) // only this descriptor closes, the init keeps listening
	return l.File()
}

// control asks the node's init for something and waits for the answer.
func (n *Node) control(ctx context.Context, req controlRequest) (controlReply, error) {
	fail := func(err error) (controlReply, error) {
		return controlReply{}, &fault.Error{Op: req.Op + " " + req.Name, On: "on " + n.name, Err: err}
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", filepath.Join(n.dir(), controlSocket))
	if err != nil {
		return fail(err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	if err := json.NewEncoder(conn).Encode(req); err != nil {
		return fail(err)
	}
	var reply controlReply
	if err := json.NewDecoder(conn).Decode(&reply); err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		} else if errors.Is(err, io.EOF) {
			err = errors.New("its init has ended")
		}
		return fail(err)
	}
	if reply.Err != "" {
		return reply, &fault.Error{Op: req.Op + " " + req.Name, On: "on " + n.name, Err: errors.New(reply.Err)}
	}
	return reply, nil
}

// StartService runs a daemon as a child of the node's process 1, where it outlives
// the caller. argv[0] is an absolute path. Its output is appended to ServiceLog(name).
func (n *Node) StartService(ctx context.Context, name string, argv ...string) error {
	_, err := n.control(ctx, controlRequest{Op: "start", Name: name, Argv: argv, Env: n.environ()})
	return err
}

// StopService sends the signal to a daemon and waits until it has ended. It tells
// how it ended, as in "exit status 0" or "signal: killed"; "" if it never ran.
func (n *Node) StopService(ctx context.Context, name string, signal syscall.Signal) (string, error) {
	reply, err := n.control(ctx, controlRequest{Op: "stop", Name: name, Signal: int(signal)})
	return reply.Status, err
}

// ServiceLog is the machine's path of a daemon's output.
func (n *Node) ServiceLog(name string) string {
	return filepath.Join(n.dir(), dirShare, name+".log")
}
