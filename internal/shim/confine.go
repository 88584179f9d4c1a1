package shim

import (
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/internal/holder"
	"github.com/particle-net/particle/internal/runtimeapi"
	"github.com/particle-net/particle/seccomp/filter"
	"github.com/particle-net/particle/topology"
)

// confinement is what the shim puts on itself before it becomes the runtime, so
// that the container's processes inherit it. It holds for the runtime too, which
// needs nothing of what is denied.
type confinement struct {
	container  topology.ContainerID
	supervised bool // the holder answers the calls that choose addresses
	fresh      bool // the container has no process yet
}

// enter must be followed by execve, on the same thread.
func (h *Host) enter(c *confinement, env []string) error {
	switch {
	case c == nil:
		return nil
	case !c.supervised:
		err := h.enterCgroup(c.container)
		if err == nil {
			_, err = filter.Install(filter.Harden)
		}
		return err
	case c.fresh:
		holder.Forget(h.Holder, c.container) // of an earlier run
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	line, err := holder.Connect(h.Holder, self, env)
	if err != nil {
		return err
	}
	defer line.Close()
	listener, err := filter.Install(filter.Supervise)
	if err != nil {
		return err
	}
	// Nobody but the holder may answer, and without it nothing passes.
	defer func() { _ = syscall.Close(listener) }()
	return line.Hold(c.container, c.fresh, listener)
}

func guardName(supervised bool) string {
	if supervised {
		return guardSeccomp
	}
	return ""
}

// supervised tells how the container is guarded whose network a joiner shares.
func (h *Host) supervised(c Call, target topology.ContainerID) (bool, error) {
	c.ID = string(target)
	s, err := h.member(c)
	return s != nil && s.guarded, err
}

// tellHolder writes down what a container was created to be held to. It was created
// under the guard that its network had then; if that has changed it must be created
// anew, because the one is begun at create and the other at start.
func (h *Host) tellHolder(claim runtimeapi.Claim, s *state, claimed *runtimeapi.Claimed) error {
	supervise := claimed != nil && claimed.Addresses != nil
	switch {
	case s.own:
		return nil
	case supervise != s.guarded:
		return fault.New("start container", claim.Name, "the address guard of its network was changed meanwhile", "start it again")
	case !supervise:
		return nil
	}
	return holder.Tell(h.Holder, claim.Container, holder.Identity(*claimed.Addresses))
}

func (h *Host) forgetGuard(id string) {
	if parsed, err := topology.ParseContainerID(id); err == nil {
		holder.Forget(h.Holder, parsed)
		_ = os.Remove(h.ownCgroup(parsed)) // there is none on most hosts
	}
}

// hold is the command by which the shim is the holder. It keeps no descriptor that
// it was started with: containerd waits for the ends of some.
func (h *Host) hold(c Call) int {
	const three = 3
	var ready *os.File
	if isPipe(three) { // not if somebody typed the command
		ready = os.NewFile(three, "ready")
	}
	closeInherited(three + 1)
	// A host that runs out of memory must not end it: it would end every bind.
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte("-999"), 0o644)
	if err := holder.Serve(h.Holder, ready); err != nil {
		c.report(err)
		return 1
	}
	return 0
}

func isPipe(fd int) bool {
	var stat syscall.Stat_t
	return syscall.Fstat(fd, &stat) == nil && stat.Mode&syscall.S_IFMT == syscall.S_IFIFO
}

// closeInherited closes what does not bear the mark of this process's own.
func closeInherited(from int) {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return
	}
	for _, entry := range entries {
		fd, err := strconv.Atoi(filepath.Base(entry.Name()))
		if err != nil || fd < from {
			continue
		}
		flags, _, errno := syscall.Syscall(syscall.SYS_FCNTL, uintptr(fd), syscall.F_GETFD, 0)
		if errno == 0 && flags&syscall.FD_CLOEXEC == 0 {
			_ = syscall.Close(fd)
		}
	}
}
