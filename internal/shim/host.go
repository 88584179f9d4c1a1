package shim

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/internal/hostpath"
	"github.com/particle-net/particle/seccomp/rawjson"
)

// Host is where things are on a Docker host.
type Host struct {
	Config     string // the file Settings are read from
	Namespaces string // directory: a file for each tenant namespace, named by the network's id
	Holder     string // directory: of the guard by system calls
	Cgroups    string // directory: the version 2 hierarchy, if the plugin has mounted it because the host has not
	Resolv     string // directory: a resolv.conf for each container of ours, named by its id
	Index      string // file: a line "id space name" for each network of ours, kept by the plugin
	Docker     string // socket of the Docker API
	ResolvConf string // the host's own
	Proc       string // proc mount of the pid namespace the container's processes are counted in
	// Patience is how long a container of ours waits for a plugin that is not
	// there: Docker starts one that has crashed again within a second or two,
	// but a container whose restart fails meanwhile it leaves dead for good.
	Patience time.Duration
	Settings
}

// Settings is what the administrator may set; hostpath.RuntimeConfig holds it
// as JSON.
type Settings struct {
	Runtime string `json:"runtime"` // path of the real runtime
	Socket  string `json:"socket"`  // of the plugin
}

// DefaultHost names the places of hostpath.
func DefaultHost() *Host {
	return &Host{
		Config:     hostpath.RuntimeConfig,
		Namespaces: hostpath.NamespaceDir,
		Holder:     hostpath.HolderDir,
		Cgroups:    hostpath.CgroupDir,
		Resolv:     hostpath.ResolvDir,
		Index:      hostpath.NetworkIndex,
		Docker:     hostpath.DockerSocket,
		ResolvConf: "/etc/resolv.conf",
		Proc:       "/proc",
		Patience:   3 * time.Second,
	}
}

// load reads the settings. A missing file means runc from PATH and the default
// socket; a broken one is an error rather than a guess, because the guess could
// be another runtime than the administrator chose.
func (h *Host) load(path string) error {
	h.Settings = Settings{Socket: hostpath.Socket}
	raw, err := os.ReadFile(h.Config)
	if err == nil {
		err = h.Settings.read(raw)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return &fault.Error{Op: "read configuration", On: h.Config, Err: err, Fix: "correct the file or remove it"}
	}
	if h.Runtime == "" {
		h.Runtime = lookup("runc", path)
	}
	return h.checkRuntime()
}

func (s *Settings) read(doc []byte) error {
	top, err := rawjson.Root(doc)
	if err != nil {
		return err
	}
	return rawjson.Members(doc, top, func(key string, value rawjson.Span) (err error) {
		switch key {
		case "runtime":
			s.Runtime, err = rawjson.Text(doc, value)
		case "socket":
			s.Socket, err = rawjson.Text(doc, value)
		}
		return err
	})
}

// lookup finds a program in the directories of a PATH. os/exec does the same,
// and brings more into the import graph than all of its use here.
func lookup(name, path string) string {
	for dir := range strings.SplitSeq(path, ":") {
		if !filepath.IsAbs(dir) {
			continue
		}
		file := filepath.Join(dir, name)
		if info, err := os.Stat(file); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return file
		}
	}
	return ""
}

// checkRuntime keeps the shim from executing itself for ever, as it would if
// somebody installed it under the name of runc.
func (h *Host) checkRuntime() error {
	if h.Runtime == "" {
		return fault.New("find the real runtime", "", "there is no runc in PATH", "install runc or name the runtime in "+h.Config)
	}
	real, err := os.Stat(h.Runtime)
	if err != nil {
		return &fault.Error{Op: "find the real runtime", On: h.Runtime, Err: err, Fix: "install it or name another in " + h.Config}
	}
	if self, err := os.Stat("/proc/self/exe"); err == nil && os.SameFile(self, real) {
		return fault.New("find the real runtime", h.Runtime, "it is particle-runtime itself", "name the path of runc in "+h.Config)
	}
	return nil
}
