// Package sandboxkey looks after the files by which Docker knows a container's
// network namespace, /var/run/docker/netns/<sandbox>, from inside the plugin,
// which sees the host's /run elsewhere.
package sandboxkey

import (
	"errors"
	"io/fs"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/fabric"
	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/topology"
)

// Binder binds tenant namespaces on files; package overlay has it.
type Binder interface {
	SameNamespace(id topology.NetworkID, path string) (bool, error)
	Expose(id topology.NetworkID, target string) error
	Conceal(target string) error
	Rebind(namespace, target string) error
}

// Keys translates Docker's keys to paths of this process. It is safe for
// concurrent use.
type Keys struct {
	Binder Binder
	Root   string // where this process sees the host's root; only /run need be there
}

// path translates a key as Docker sends it. /var/run is a symbolic link to /run
// on every current distribution (FHS 3.0), and only /run is bound into the
// plugin.
func (k Keys) path(key string) (string, error) {
	clean := filepath.Clean(key)
	if rest, ok := strings.CutPrefix(clean, "/var/run/"); ok {
		clean = "/run/" + rest
	}
	if !strings.HasPrefix(clean, "/run/") {
		return "", fault.New("find sandbox key", key, "it is not under /run",
			"run the Docker daemon with its default --exec-root")
	}
	return filepath.Join(k.Root, clean), nil
}

// State tells what the key's file holds.
func (k Keys) State(id topology.NetworkID, key string) (fabric.SandboxState, error) {
	path, err := k.path(key)
	if err != nil {
		return fabric.SandboxAbsent, err
	}
	var fsinfo unix.Statfs_t
	err = unix.Statfs(path, &fsinfo)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fabric.SandboxAbsent, nil
	case err != nil:
		return fabric.SandboxAbsent, &fault.Error{Op: "look at sandbox key", On: key, Err: err}
	case fsinfo.Type != unix.NSFS_MAGIC:
		// Docker makes the file first and binds the namespace on it second.
		return fabric.SandboxAbsent, nil
	}
	same, err := k.Binder.SameNamespace(id, path)
	switch {
	case err != nil:
		return fabric.SandboxAbsent, err
	case same:
		return fabric.SandboxTenant, nil
	}
	return fabric.SandboxForeign, nil
}

// Expose binds the tenant namespace on the key.
func (k Keys) Expose(id topology.NetworkID, key string) error {
	path, err := k.path(key)
	if err != nil {
		return err
	}
	return k.Binder.Expose(id, path)
}

// Conceal undoes Expose.
func (k Keys) Conceal(key string) error {
	path, err := k.path(key)
	if err != nil {
		return err
	}
	return k.Binder.Conceal(path)
}

// Namespace is the key's path in this process.
func (k Keys) Namespace(key string) (string, error) { return k.path(key) }

// Restore binds a namespace on the key in place of all that is bound there.
func (k Keys) Restore(key, namespace string) error {
	path, err := k.path(key)
	if err != nil {
		return err
	}
	return k.Binder.Rebind(namespace, path)
}
