package shim

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"github.com/particle-net/particle/seccomp"
)

// File systems that give rights over a shared namespace to root of the host, who
// needs no capability to write there: proc has the settings of the namespace that
// the writer is in, and by cgroup2 a process leaves the cgroup that the address
// guard knows it by, perhaps for a neighbour's. The numbers are statfs(2)'s.
const (
	procMagic    = 0x9fa0
	cgroup2Magic = 0x63677270
)

// exposure finds a mount by which the container could write to one of those; nil if
// there is none. The container's own /proc is made safe by seccomp.Share. What
// cannot be known counts as found, since a namespace of its own is always right.
func (h *Host) exposure(b bundle) *seccomp.Mount {
	// Hosts with many containers have thousands of mounts: they are not read for
	// containers that are shown no directory of the host's.
	points := sync.OnceValues(h.points)
	for i, m := range b.facts.Mounts {
		if exposes(m, b.Dir, points) {
			return &b.facts.Mounts[i]
		}
	}
	return nil
}

func exposes(m seccomp.Mount, docker string, points func() ([]string, error)) bool {
	top, below := m.Writable()
	switch {
	case !top && !below:
		return false
	case !m.Bind():
		return top && (strings.HasPrefix(m.Type, "cgroup") || m.Type == "proc" && m.Destination != "/proc")
	case strings.HasPrefix(filepath.Clean(m.Source), docker+"/"): // what Docker shows to each container
		return false
	}
	source, err := filepath.EvalSymlinks(m.Source)
	var info fs.FileInfo
	var system syscall.Statfs_t
	if err == nil {
		info, err = os.Stat(source)
	}
	if err == nil {
		err = syscall.Statfs(source, &system)
	}
	switch {
	case err != nil:
		return !errors.Is(err, fs.ErrNotExist) // of that the runtime says it better
	case top && (system.Type == procMagic || system.Type == cgroup2Magic):
		return true
	case !below || !info.IsDir():
		return false
	}
	all, err := points()
	for _, point := range all {
		if strings.HasPrefix(point, strings.TrimSuffix(source, "/")+"/") {
			return true
		}
	}
	return err != nil
}

// points are where such file systems are mounted, in the eyes of the runtime, which
// this process becomes (proc_pid_mountinfo(5)).
func (h *Host) points() ([]string, error) {
	raw, err := os.ReadFile(filepath.Join(h.Proc, "self/mountinfo"))
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	var points []string
	for line := range strings.Lines(string(raw)) {
		left, right, _ := strings.Cut(line, " - ")
		fields := strings.Fields(left)
		system, _, _ := strings.Cut(right, " ")
		const point = 4
		if (system == "proc" || system == "cgroup2") && len(fields) > point {
			points = append(points, unescape.Replace(fields[point]))
		}
	}
	return points, err
}
