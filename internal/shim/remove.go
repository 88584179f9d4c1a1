package shim

import (
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"syscall"

	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/topology"
)

// remove is `delete`. An address must not be released while a process may still
// use it, and after execve of the runtime there is nobody to release it. So:
//
//   - The container's processes are gone, which is so after every `docker stop`
//     or exit: release, then become the runtime. What the runtime removes
//     afterwards (the cgroup, its state) uses no address.
//   - They may be alive (--force, or a container that was created and never
//     started, whose process the runtime kills now; or one in the host's pid
//     namespace): run the runtime as a child, which costs a fork, and release
//     after it has succeeded. If it fails, the container is alive and keeps
//     its address.
//
// done says that the runtime has run and code is its exit code.
func (h *Host) remove(c Call, env []string) (done bool, code int, err error) {
	s, err := h.member(c)
	if err != nil {
		// A state that cannot be read belongs to a start that did not get far;
		// deleting must go on, and the plugin sweeps what is left.
		return false, 0, nil
	}
	if s == nil {
		// `create` may have failed in the runtime, which then removes its state
		// and leaves our file.
		if h.removeResolvConf(c.ID) {
			h.forgetGuard(c.ID)
			h.release(c.ID)
		}
		return false, 0, nil
	}
	if !s.gone(h.Proc) {
		code, err := h.runChild(c, env)
		if err != nil || code != 0 {
			return err == nil, code, err
		}
		done = true
	}
	h.removeResolvConf(c.ID)
	h.forgetGuard(c.ID)
	h.release(c.ID)
	return done, 0, nil
}

// runChild runs the real runtime to its end and returns its exit code.
func (h *Host) runChild(c Call, env []string) (int, error) {
	// The child must not outlive a shim that containerd kills for taking too
	// long. The kernel sends the signal when the parent's *thread* ends.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	child, err := os.StartProcess(h.Runtime, slices.Insert(slices.Clone(c.Args), 0, h.Runtime), &os.ProcAttr{
		Env:   env,
		Files: []*os.File{os.Stdin, os.Stdout, os.Stderr},
		Sys:   &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL},
	})
	var end *os.ProcessState
	if err == nil {
		end, err = child.Wait()
	}
	if err != nil {
		return 1, &fault.Error{Op: "execute", On: h.Runtime, Err: err}
	}
	if status, ok := end.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return 128 + int(status.Signal()), nil // as a shell reports it
	}
	return end.ExitCode(), nil
}

// removeResolvConf returns true if there was one.
func (h *Host) removeResolvConf(id string) bool {
	if _, err := topology.ParseContainerID(id); err != nil {
		return false
	}
	return os.Remove(filepath.Join(h.Resolv, id)) == nil
}

// release tells the plugin. If it is not there, it finds out by itself when it
// comes back; a container's end waits for nobody.
func (h *Host) release(id string) {
	_, _ = ask(h.Socket, releaseRequest(topology.ContainerID(id)), releaseLimit)
}
