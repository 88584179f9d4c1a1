package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/internal/fault"
)

// entrance tells a command runner where to go; it is its first argument.
type entrance struct {
	Init    procID      `json:"init"`
	Node    string      `json:"node"` // for messages
	Cgroups []hierarchy `json:"cgroups,omitempty"`
	Lab     string      `json:"lab"`
}

// runEnter joins the node's cgroups and namespaces and runs a command there,
// passing signals on and returning its exit code (128 + n for signal n).
//
// The mount namespace can be joined by a thread that shares its root and working
// directory with no other, hence the unshare; the child inherits both from the
// thread it is forked on.
func runEnter(args []string) (int, error) {
	var e entrance
	if len(args) < 2 || json.Unmarshal([]byte(args[0]), &e) != nil {
		return 0, fault.New("enter node", "", "wrong arguments", "use particle-lab exec")
	}
	// No unlock: the thread is of no use to anything else afterwards.
	runtime.LockOSThread()
	if !e.Init.alive() {
		return 0, fault.New("enter node", e.Node, "its init has ended", "take the lab down and up again")
	}
	if len(e.Cgroups) > 0 {
		if err := joinCgroups(e.Cgroups, e.Lab, e.Node, cgroupLeaf, os.Getpid()); err != nil {
			return 0, err
		}
	}
	dir := "/"
	if len(e.Cgroups) == 0 { // a node on the machine's own root: stay where the caller is
		var err error
		if dir, err = os.Getwd(); err != nil {
			return 0, err
		}
	}
	if err := joinNamespaces(e); err != nil {
		return 0, err
	}
	if err := unix.Chdir(dir); err != nil {
		return 0, err
	}
	path, err := exec.LookPath(args[1])
	if err != nil {
		return 0, &fault.Error{Op: "run on " + e.Node, On: args[1], Err: err}
	}
	cmd := &exec.Cmd{Path: path, Args: args[1:], Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr}
	return runPassingSignals(cmd)
}

// joinNamespaces opens all namespaces before it joins the first: afterwards /proc
// would be another one.
func joinNamespaces(e entrance) error {
	names := []string{"ipc", "uts", "net", "pid", "mnt"}
	if len(e.Cgroups) > 0 {
		names = append([]string{"cgroup"}, names...)
	}
	fds := make([]int, len(names))
	for i, name := range names {
		fd, err := unix.Open(filepath.Join("/proc", fmt.Sprint(e.Init.Pid), "ns", name), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return &fault.Error{Op: "open namespace " + name, On: e.Node, Err: err}
		}
		defer unix.Close(fd)
		fds[i] = fd
	}
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return &fault.Error{Op: "unshare root", On: e.Node, Err: err}
	}
	for i, fd := range fds {
		if err := unix.Setns(fd, 0); err != nil {
			return &fault.Error{Op: "join namespace " + names[i], On: e.Node, Err: err, Fix: "run as root"}
		}
	}
	return nil
}

// signalKill asks a command runner to end its command with SIGKILL. A parent death
// signal would do without, but os/exec sets it up by comparing parent pids, and the
// parent of a process in another pid namespace reads as 0 there.
const signalKill = syscall.Signal(40)

// runPassingSignals runs the command to its end. A terminal sends its own signals
// to the whole foreground group, so those are not sent a second time.
func runPassingSignals(cmd *exec.Cmd) (int, error) {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGHUP, unix.SIGUSR1, unix.SIGUSR2, signalKill)
	if err := cmd.Start(); err != nil {
		return 0, &fault.Error{Op: "run", On: cmd.Path, Err: err}
	}
	_, err := unix.IoctlGetTermios(0, unix.TCGETS)
	terminal := err == nil
	go func() {
		for s := range signals {
			if terminal && (s == unix.SIGINT || s == unix.SIGQUIT) {
				continue
			}
			if s == signalKill {
				s = unix.SIGKILL
			}
			_ = cmd.Process.Signal(s) // it may just have ended
		}
	}()
	err = cmd.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		if w, ok := exit.Sys().(syscall.WaitStatus); ok && w.Signaled() {
			return 128 + int(w.Signal()), nil
		}
		return exit.ExitCode(), nil
	}
	return 0, err
}
