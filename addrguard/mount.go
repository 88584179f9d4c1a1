package addrguard

import (
	"bufio"
	"io/fs"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/internal/fault"
)

// mountSource marks the mounts that Open made, so that Cleanup leaves others.
const mountSource = "particle-guard"

// mountBPF makes path a directory of a BPF file system.
func mountBPF(path string) error {
	err := ensureMount(path, "bpf", unix.BPF_FS_MAGIC)
	if err != nil {
		return &fault.Error{Op: "mount BPF file system", On: path, Err: err,
			Fix: "grant CAP_SYS_ADMIN, or mount one there with `mount -t bpf bpf " + path + "`"}
	}
	return nil
}

// mountCgroups makes path the root of the cgroup v2 hierarchy.
func mountCgroups(path string) error {
	err := ensureMount(path, "cgroup2", unix.CGROUP2_SUPER_MAGIC)
	if err != nil {
		return &fault.Error{Op: "mount cgroup v2", On: path, Err: err,
			Fix: "use a kernel with cgroup v2 (it may be mounted beside version 1)"}
	}
	return nil
}

func ensureMount(path, kind string, magic int64) error {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return err
	}
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return &fs.PathError{Op: "statfs", Path: path, Err: err}
	}
	if st.Type == magic {
		return nil
	}
	if err := unix.Mount(mountSource, path, kind, unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return &fs.PathError{Op: "mount " + kind, Path: path, Err: err}
	}
	return nil
}

// unmountOwn undoes ensureMount, and nothing else.
func unmountOwn(path string) error {
	own, err := mountedByUs(path)
	if err != nil || !own {
		return err
	}
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
		return &fs.PathError{Op: "unmount", Path: path, Err: err}
	}
	return removed(path)
}

// mountedByUs reads the mount table: proc_pid_mountinfo(5) has the source as the
// second field behind the dash.
func mountedByUs(path string) (bool, error) {
	table, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return false, err
	}
	defer table.Close()
	lines := bufio.NewScanner(table)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		dash := slices.Index(fields, "-")
		if dash < 5 || len(fields) < dash+3 {
			continue
		}
		if fields[4] == path && fields[dash+2] == mountSource {
			return true, nil
		}
	}
	return false, lines.Err()
}
