package dockerdir

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/internal/runtimeapi"
	"github.com/particle-net/particle/seccomp/rawjson"
	"github.com/particle-net/particle/topology"
)

// Container is what `docker create` was asked for.
type Container struct {
	Dir      string
	ID       topology.ContainerID
	Name     string // without the leading slash
	Hostname string
	// Namespace is the label particle.namespace, whose values package shim knows.
	Namespace string
	// MAC says that one was asked for, for the container or one of its networks.
	MAC bool
	// Networks are those the container is connected to, by name; Docker's own
	// (bridge, host, none) are among them. Nil is not empty, as in Docker's own
	// records: one that was disconnected from all of them has an empty list.
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
	Sysctls         []string // their names, sorted
	DNS             []string
	Ports           []string // those published, as "80/tcp", sorted
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
	c := Container{Dir: dir}
	if err := readJSON(filepath.Join(dir, "config.v2.json"), c.readConfig); err != nil {
		return Container{}, err
	}
	if c.ID != id {
		return Container{}, &fault.Error{Op: "read container directory", On: dir, Err: errForeign}
	}
	if err := readJSON(filepath.Join(dir, "hostconfig.json"), c.Host.read); err != nil {
		return Container{}, err
	}
	return c, nil
}

func readJSON(path string, read func(doc []byte, top rawjson.Span) error) error {
	doc, err := os.ReadFile(path)
	var top rawjson.Span
	if err == nil {
		top, err = rawjson.Root(doc)
	}
	if err == nil {
		err = read(doc, top)
	}
	if err != nil {
		return &fault.Error{Op: "read", On: path, Err: err}
	}
	return nil
}

func (c *Container) readConfig(doc []byte, top rawjson.Span) error {
	return rawjson.Members(doc, top, func(key string, value rawjson.Span) (err error) {
		switch key {
		case "ID":
			var id string
			id, err = rawjson.Text(doc, value)
			c.ID = topology.ContainerID(id)
		case "Name":
			c.Name, err = rawjson.Text(doc, value)
			c.Name = strings.TrimPrefix(c.Name, "/")
		case "Config":
			err = c.readOptions(doc, value)
		case "NetworkSettings":
			err = c.readNetworks(doc, value)
		}
		return err
	})
}

// labelNamespace is what a user sets to choose a container's namespace.
const labelNamespace = "particle.namespace"

func (c *Container) readOptions(doc []byte, config rawjson.Span) error {
	return rawjson.Members(doc, config, func(key string, value rawjson.Span) (err error) {
		switch key {
		case "Hostname":
			c.Hostname, err = rawjson.Text(doc, value)
		case "Labels":
			c.Namespace, err = member(doc, value, labelNamespace)
		case "MacAddress": // up to Docker 27, and of the container
			var mac string
			mac, err = rawjson.Text(doc, value)
			c.MAC = c.MAC || mac != ""
		}
		return err
	})
}

func (c *Container) readNetworks(doc []byte, settings rawjson.Span) error {
	err := rawjson.Members(doc, settings, func(key string, value rawjson.Span) error {
		if key != "Networks" {
			return nil
		}
		if value.Kind(doc) == '{' {
			c.Networks = []runtimeapi.NetworkRef{}
		}
		return rawjson.Members(doc, value, func(name string, endpoint rawjson.Span) error {
			id, err := member(doc, endpoint, "NetworkID")
			c.Networks = append(c.Networks, runtimeapi.NetworkRef{Name: name, ID: id})
			if err != nil {
				return err
			}
			mac, err := member(doc, endpoint, "DesiredMacAddress") // from Docker 25 on
			c.MAC = c.MAC || mac != ""
			return err
		})
	})
	slices.SortFunc(c.Networks, func(a, b runtimeapi.NetworkRef) int { return strings.Compare(a.Name, b.Name) })
	return err
}

func (h *HostConfig) read(doc []byte, top rawjson.Span) error {
	return rawjson.Members(doc, top, func(key string, value rawjson.Span) (err error) {
		switch key {
		case "NetworkMode":
			h.NetworkMode, err = rawjson.Text(doc, value)
		case "Privileged":
			h.Privileged = rawjson.Bool(doc, value)
		case "PublishAllPorts":
			h.PublishAllPorts = rawjson.Bool(doc, value)
		case "CapAdd":
			h.CapAdd, err = rawjson.Texts(doc, value)
		case "CapDrop":
			h.CapDrop, err = rawjson.Texts(doc, value)
		case "Dns":
			h.DNS, err = rawjson.Texts(doc, value)
		case "Sysctls":
			h.Sysctls, err = keys(doc, value)
		case "PortBindings":
			h.Ports, err = keys(doc, value)
		}
		return err
	})
}

// member returns an object's text member.
func member(doc []byte, object rawjson.Span, name string) (text string, err error) {
	err = rawjson.Members(doc, object, func(key string, value rawjson.Span) (err error) {
		if key == name {
			text, err = rawjson.Text(doc, value)
		}
		return err
	})
	return text, err
}

func keys(doc []byte, object rawjson.Span) ([]string, error) {
	var all []string
	err := rawjson.Members(doc, object, func(key string, _ rawjson.Span) error {
		all = append(all, key)
		return nil
	})
	slices.Sort(all)
	return all, err
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
// there is no list of connections, and then creates it at the start; with an
// empty one the container starts without a network (updateContainerNetworkSettings).
func (c Container) Attachments() []runtimeapi.NetworkRef {
	if c.JoinsContainer() {
		return nil
	}
	if c.Networks != nil {
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
