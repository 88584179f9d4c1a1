package shim

import (
	"os"
	"path/filepath"
	"syscall"

	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/topology"
)

// ownCgroup is where a container is in the version 2 hierarchy if its runtime knows
// version 1 alone.
func (h *Host) ownCgroup(id topology.ContainerID) string {
	return filepath.Join(h.Cgroups, "particle", string(id))
}

// enterCgroup puts this process, and so what the runtime makes, into a cgroup by which
// the address guard knows the container. Where the host has mounted the version 2
// hierarchy, the runtime does so itself, and there is nothing to enter: the plugin
// mounts it for us on other hosts alone. It has no controllers there, and limits
// nothing.
func (h *Host) enterCgroup(id topology.ContainerID) error {
	const magic = 0x63677270 // of cgroup2
	var st syscall.Statfs_t
	if h.Cgroups == "" || syscall.Statfs(h.Cgroups, &st) != nil || st.Type != magic {
		return nil
	}
	dir := h.ownCgroup(id)
	err := os.MkdirAll(dir, 0o755)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte("0"), 0) // the caller
	}
	if err != nil {
		return &fault.Error{Op: "enter cgroup", On: dir, Err: err}
	}
	return nil
}
