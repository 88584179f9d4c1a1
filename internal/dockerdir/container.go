package dockerdir

import (
	"encoding/json"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/internal/runtimeapi"
	"github.com/particle-net/particle/topology"
)

// Container is what `docker create` was asked for.
type Container struct {
	Dir      string
	ID       topology.ContainerID
	Name     string // without the leading slash
	Hostname string
	// Networks are those the container is connected to, by name; Docker's own
	// (bridge, host, none) are among them.
	Networks []runtimeapi.NetworkRef
	Host     HostConfig
}

// HostConfig is the part of a container's host configuration that matters in a
// shared namespace.
type HostConfig struct {
	NetworkMode     string // a network as the user typed it, or host, none, default, container:ID
	Privileged      bool
	PublishAllPorts bool
	CapAdd, CapDrop []string
	Sysctls         map[string]string
	DNS             []string                   `json:"Dns"`
	PortBindings    map[string]json.RawMessage // "80/tcp" to where it is published
}

// config is the part of config.v2.json that matters.
type config struct {
	ID     string
	Name   string
	Config struct {
		Hostname string
	}
	NetworkSettings struct {
		Networks map[string]*struct{ NetworkID string }
	}
}

// Find looks for the directory of a container next to files that Docker keeps
// in such directories. The files are the sources of the container's mounts at
// /etc/hosts, /etc/hostname and /etc/resolv.conf: any of them may be the
// user's own, and those of a container with `--network container:X` are X's,
// whose directory is a sibling. It returns false when none leads to a directory
// that Docker wrote for this container; an error means that there is one, but
// it cannot be read.
func Find(id string, files ...string) (Container, bool, error) {
	cid, err := topology.ParseContainerID(id)
	if err != nil {
		return Container{}, false, nil // Docker makes no such id
	}
	var tried []string
	for _, file := range files {
		if !filepath.IsAbs(file) {
			continue
		}
		dir := filepath.Join(filepath.Dir(filepath.Dir(file)), id)
		if slices.Contains(tried, dir) {
			continue
		}
		tried = append(tried, dir)
		c, err := Read(dir, cid)
		if err == nil {
			return c, true, nil
		}
		if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, errForeign) {
			return Container{}, false, err
		}
	}
	return Container{}, false, nil
}

// errForeign is the cause when a directory is another container's.
var errForeign = errors.New("it belongs to another container")

// Read reads a container's directory. fs.ErrNotExist is the cause when there is
// none.
func Read(dir string, id topology.ContainerID) (Container, error) {
	var c config
	if err := readJSON(filepath.Join(dir, "config.v2.json"), &c); err != nil {
		return Container{}, err
	}
	if c.ID != string(id) {
		return Container{}, &fault.Error{Op: "read container directory", On: dir, Err: errForeign}
	}
	result := Container{
		Dir:      dir,
		ID:       id,
		Name:     strings.TrimPrefix(c.Name, "/"),
		Hostname: c.Config.Hostname,
	}
	if err := readJSON(filepath.Join(dir, "hostconfig.json"), &result.Host); err != nil {
		return Container{}, err
	}
	for _, name := range slices.Sorted(maps.Keys(c.NetworkSettings.Networks)) {
		ref := runtimeapi.NetworkRef{Name: name}
		if n := c.NetworkSettings.Networks[name]; n != nil {
			ref.ID = n.NetworkID
		}
		result.Networks = append(result.Networks, ref)
	}
	return result, nil
}

func readJSON(path string, into any) error {
	raw, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(raw, into)
	}
	if err != nil {
		return &fault.Error{Op: "read", On: path, Err: err}
	}
	return nil
}

// Label names the container for a person: its name, or the start of its id.
func (c Container) Label() string {
	if c.Name != "" {
		return c.Name
	}
	return c.ID.Short()
}

// JoinsContainer is true for `--network container:X`.
func (c Container) JoinsContainer() bool {
	return strings.HasPrefix(c.Host.NetworkMode, "container:")
}

// Attachments are the networks the container will have when it starts. What it
// is connected to decides: the mode it was created with may name a network it
// has been disconnected from since. Docker falls back on the mode only when
// there is no connection, and then creates it at the start.
func (c Container) Attachments() []runtimeapi.NetworkRef {
	if c.JoinsContainer() {
		return nil
	}
	if len(c.Networks) > 0 {
		return c.Networks
	}
	return []runtimeapi.NetworkRef{{Name: c.Host.NetworkMode}}
}

// IsUserDefined is false for the networks and modes that Docker brings itself.
func IsUserDefined(network string) bool {
	switch network {
	case "", "default", "bridge", "host", "none":
		return false
	}
	return !strings.HasPrefix(network, "container:")
}

// HostsFile is the hosts file Docker keeps for the container, whatever the user
// mounted over /etc/hosts.
func (c Container) HostsFile() string { return filepath.Join(c.Dir, "hosts") }
