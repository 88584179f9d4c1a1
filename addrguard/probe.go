package addrguard

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/internal/fault"
)

// Probe tells whether the guard can work here, by doing once what Open and Admit
// do, and leaves nothing behind. A first error names what the kernel or the host
// lacks, with the remedy; lacks are what the guard can do without, see Lacks.
func Probe(opts Options) (lacks []error, err error) {
	if _, err := netnsCookie(); err != nil {
		return nil, probeError("ask for the network namespace", err, "use Linux 5.14 or later")
	}
	if err := tryMount(opts.Pins, "bpf", unix.BPF_FS_MAGIC); err != nil {
		return nil, probeError("mount BPF file system", err, "grant CAP_SYS_ADMIN and use a kernel with CONFIG_BPF_SYSCALL")
	}
	if err := tryMount(opts.Cgroups, "cgroup2", unix.CGROUP2_SUPER_MAGIC); err != nil {
		return nil, probeError("mount cgroup v2", err, "grant CAP_SYS_ADMIN and use a kernel with cgroup v2 (it works beside version 1)")
	}
	g := &Guard{opts: opts}
	defer func() { err = errors.Join(err, g.Close()) }()
	if err := g.load(); err != nil {
		return nil, err
	}
	err = elsewhere("cgroup2", func(root string) error {
		g.opts.Cgroups = root
		return g.TryAttach()
	})
	if err != nil {
		return nil, err
	}
	return g.Lacks(), nil
}

func probeError(op string, err error, fix string) error {
	return &fault.Error{Op: op, Err: err, Fix: fix}
}

// tryMount mounts somewhere else what is not mounted at path.
func tryMount(path, kind string, magic int64) (err error) {
	var st unix.Statfs_t
	if unix.Statfs(path, &st) == nil && st.Type == magic {
		return nil
	}
	return elsewhere(kind, func(string) error { return nil })
}

// elsewhere runs fn with a file system mounted on a directory of its own.
func elsewhere(kind string, fn func(dir string) error) (err error) {
	dir, err := os.MkdirTemp("", "particle-probe-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(dir)) }()
	if err := unix.Mount(mountSource, dir, kind, unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount %s: %w", kind, err)
	}
	defer func() { err = errors.Join(err, unix.Unmount(dir, unix.MNT_DETACH)) }()
	return fn(dir)
}

// Parents are the cgroups below which Docker makes those of containers, if it is not told
// otherwise: with cgroupfs, and where systemd makes them.
func Parents() []string { return []string{"/docker", "/system.slice"} }

// TryAttach does to an empty cgroup below the root, and below each of Options.Parents that
// exists, what Admit does to those of containers, and leaves nothing behind. Programs that
// can be loaded cannot be attached where somebody else's is there that bears no other.
func (g *Guard) TryAttach() error {
	for _, parent := range append([]string{"/"}, g.opts.Parents...) {
		err := g.tryBelow(parent)
		var known *fault.Error
		switch {
		case errors.As(err, &known):
			return err
		case err != nil && !errors.Is(err, fs.ErrNotExist):
			return probeError("attach to a cgroup", err, "use Linux 5.8 or later with CONFIG_CGROUP_BPF")
		}
	}
	return nil
}

func (g *Guard) tryBelow(parent string) (err error) {
	path, err := os.MkdirTemp(filepath.Join(g.opts.Cgroups, parent), "particle-probe-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(path)) }()
	at := place{path: filepath.Join(parent, filepath.Base(path))}
	err = g.eachAt(at, func(name string, _ *ebpf.Program, attach func() (link.Link, error)) error {
		made, err := attach()
		if err != nil {
			return fmt.Errorf("attach %s: %w", name, err)
		}
		return made.Close()
	})
	if err != nil {
		return attachError(parent, err)
	}
	return nil
}
