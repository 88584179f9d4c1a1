package lab

import (
	"encoding/json"
	"os"
	"path/filepath"

	"github.com/particle-net/particle/internal/fault"
)

// bootSpec tells an init what to become. It lies in the node's directory as
// init.json, and its path is the init's first argument: that is also how Down
// recognises the inits of a lab.
type bootSpec struct {
	Hostname  string            `json:"hostname"`
	Isolated  bool              `json:"isolated"`            // a host: own root and cgroup namespace
	Systemd   bool              `json:"systemd,omitempty"`   // process 1 is systemd
	FirstBoot bool              `json:"firstBoot"`           // write Files and an empty /etc/docker
	Disk      bool              `json:"disk,omitempty"`      // /etc/docker is as it came with the disk
	Binds     map[string]string `json:"binds,omitempty"`     // directory below /opt/particle-lab: machine's directory
	Files     map[string]string `json:"files,omitempty"`     // absolute path in the host: content
	Cgroups   []hierarchy       `json:"cgroups,omitempty"`   // the machine's hierarchies
	Addresses []string          `json:"addresses,omitempty"` // documentation for readers of init.json
}

const bootSpecFile = "init.json"

// Directories of a host below its state directory.
const (
	dirUpper      = "upper"      // what the host changed of the root
	dirWork       = "work"       // overlayfs's own
	dirRoot       = "root"       // where the root is put together, before pivot_root
	dirData       = "docker"     // /var/lib/docker
	dirContainerd = "containerd" // /var/lib/containerd
	dirTmp        = "tmp"        // /tmp, emptied at each boot
	dirShare      = "share"      // /run/lab: the socket the machine reaches, logs
)

// Paths inside a host.
const (
	shareInside  = "/run/lab"
	toolsInside  = "/opt/particle-lab"
	dockerSocket = "docker.sock"
)

func readBootSpec(path string) (bootSpec, error) {
	var spec bootSpec
	raw, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(raw, &spec)
	}
	if err != nil {
		return spec, &fault.Error{Op: "read boot file", On: path, Err: err}
	}
	return spec, nil
}

// writeJSON writes a file so that a reader sees the old or the new content whole.
func writeJSON(path string, value any) error {
	raw, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name()) // after the rename there is nothing left to remove
	_, err = tmp.Write(append(raw, '\n'))
	if err == nil {
		err = tmp.Chmod(0o644) // listing labs needs no root
	}
	if closeErr := tmp.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	return err
}
