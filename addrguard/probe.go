package addrguard

import (
	"errors"
	"fmt"
	"os"

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
	g := &Guard{}
	defer func() { err = errors.Join(err, g.Close()) }()
	if err := g.load(); err != nil {
		return nil, err
	}
	if err := g.tryAttach(); err != nil {
		return nil, probeError("attach to a cgroup", err, "use Linux 5.8 or later with CONFIG_CGROUP_BPF")
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

// tryAttach attaches every program to an empty cgroup.
func (g *Guard) tryAttach() error {
	return elsewhere("cgroup2", func(root string) (err error) {
		path, err := os.MkdirTemp(root, "particle-probe-")
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, os.Remove(path)) }()
		dir, err := os.Open(path)
		if err != nil {
			return err
		}
		defer dir.Close()
		for _, p := range []*part{g.core, g.unix} {
			if p == nil {
				continue
			}
			for name, prog := range p.Programs {
				made, err := link.AttachRawLink(link.RawLinkOptions{Target: int(dir.Fd()), Program: prog, Attach: p.attachType(name)})
				if err != nil {
					return fmt.Errorf("attach %s: %w", name, err)
				}
				_ = made.Close()
			}
		}
		return nil
	})
}
