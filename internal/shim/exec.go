package shim

import (
	"bytes"
	"os"

	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/seccomp"
	"github.com/particle-net/particle/topology"
)

// exec takes what cannot be shared from a process that joins a container in
// a tenant namespace, and returns the command line to go on with and what else
// confines the process; nil leaves it as it is. Docker gives
// such a process its default capabilities anew, and all of them with
// `docker exec --privileged`; nothing of the container's own confinement holds
// for it.
func (h *Host) exec(c Call) ([]string, *confinement, error) {
	s, err := h.member(c)
	if s == nil || s.own || err != nil {
		return c.Args, nil, err
	}
	inherited := &confinement{container: topology.ContainerID(c.ID), supervised: s.guarded}
	if c.Process == "" {
		return c.confined(), inherited, nil
	}
	info, err := os.Stat(c.Process)
	var process, edited []byte
	if err == nil {
		process, err = os.ReadFile(c.Process)
	}
	if err == nil {
		edited, err = seccomp.Confine(process)
	}
	if err == nil && !bytes.Equal(edited, process) {
		err = writeFile(c.Process, edited, info.Mode().Perm())
	}
	if err != nil {
		return nil, nil, &fault.Error{Op: "run process in container", On: topology.ContainerID(c.ID).Short(), Err: err}
	}
	return c.confined(), inherited, nil
}
