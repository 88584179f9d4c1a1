package shim

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/particle-net/particle/internal/dockerdir"
	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/internal/process"
	"github.com/particle-net/particle/internal/runtimeapi"
	"github.com/particle-net/particle/topology"
)

// start claims the container's address for its process, its own or that of the
// container whose network it joined. It is the first moment
// at which all Docker versions have written the address into the hosts file,
// and the last at which nothing of the container has run: its process waits for
// the runtime's start.
func (h *Host) start(c Call) error {
	s, err := h.member(c)
	if s == nil || err != nil {
		return err
	}
	if err := h.claim(c, s); err != nil {
		h.abandon(c, s)
		return err
	}
	return nil
}

// abandon ends the container's first process, which waits for a start that will
// not come. Docker 20.10 cannot: it wants to delete the task, containerd wants
// it stopped first, and the process would stay in the tenant namespace for good
// (seen with 20.10.24; "task must be stopped before deletion: created").
// The runtime removes exec.fifo when it starts a container, so a container that
// runs is never ended by a start it did not need.
func (h *Host) abandon(c Call, s *state) {
	if _, err := os.Lstat(filepath.Join(c.Root, c.ID, "exec.fifo")); err != nil || !s.alive(h.Proc) {
		return
	}
	_ = syscall.Kill(s.pid, syscall.SIGKILL)
	h.removeResolvConf(c.ID)
}

func (h *Host) claim(c Call, s *state) error {
	if !s.complete() {
		return fault.New("start container", topology.ContainerID(c.ID).Short(), "it was created by another version of particle-runtime",
			"start it again")
	}
	claim, err := h.newClaim(c, s)
	if err != nil {
		return &fault.Error{Op: "start container", On: topology.ContainerID(c.ID).Short(), Err: err}
	}
	reply, err := h.insist(claimRequest(claim), claimLimit)
	switch {
	case errors.Is(err, runtimeapi.ErrUnreachable):
		return startError(claim.Name, "its network is a particle network", err)
	case err != nil:
		return &fault.Error{Op: "start container", On: claim.Name, Err: err}
	}
	return h.tellHolder(claim, s, reply.Claim)
}

func (h *Host) newClaim(c Call, s *state) (claim runtimeapi.Claim, err error) {
	id, err := topology.ParseContainerID(c.ID)
	if err != nil {
		return claim, err
	}
	container, err := dockerdir.Read(s.dir, id)
	if err != nil {
		return claim, err
	}
	var hosts []runtimeapi.HostLine
	if s.join == "" {
		if hosts, err = dockerdir.ReadHosts(container.HostsFile()); err != nil {
			return claim, err
		}
	}
	cgroup, err := h.cgroup(s.pid)
	if err != nil {
		return claim, err
	}
	return runtimeapi.Claim{
		Container: id,
		Name:      container.Label(),
		Network:   s.network,
		Pid:       s.pid,
		Cgroup:    cgroup,
		Join:      s.join,
		Own:       s.own,
		Reason:    s.reason,
		Hosts:     hosts,
		Hostname:  container.Hostname,
	}, nil
}

// cgroup returns the path of a process in the cgroup v2 hierarchy. It is empty
// if the process has no cgroup of its own there, which is so when the runtime
// uses v1 only: the process then stays where containerd's shim is, and to claim
// an address for that cgroup would give it to every container at once.
func (h *Host) cgroup(pid int) (string, error) {
	path, err := process.Unified(filepath.Join(h.Proc, strconv.Itoa(pid), "cgroup"))
	if err != nil {
		return "", err
	}
	own, err := process.Unified(filepath.Join(h.Proc, "self", "cgroup"))
	if err != nil {
		return "", err
	}
	if path == "/" || path == own {
		return "", nil
	}
	return path, nil
}
