package main

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/internal/process"
)

// cgroup is a directory in the hierarchy of version 2, "" for where this process
// is at home.
type cgroup string

// cgroupOf is that of a process, by its directory in /proc.
func cgroupOf(dir string) (cgroup, error) {
	path, err := process.Unified(filepath.Join(dir, "cgroup"))
	if err != nil {
		return "", err
	}
	for _, mount := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		var fs unix.Statfs_t
		if err := unix.Statfs(mount, &fs); err == nil && fs.Type == unix.CGROUP2_SUPER_MAGIC {
			return cgroup(filepath.Join(mount, path)), nil
		}
	}
	return "", fault.New("find cgroup", dir, "version 2 is not mounted where machines have it", "mount cgroup2 on /sys/fs/cgroup/unified")
}

// do runs fn with this whole process in the cgroup. Sockets stay the cgroup's that
// were made in it.
func (c cgroup) do(fn func() error) (err error) {
	if c == "" {
		return fn()
	}
	home, err := cgroupOf("/proc/self")
	if err == nil {
		err = c.enter()
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, home.enter()) }()
	return fn()
}

// enter moves this process.
func (c cgroup) enter() error {
	return os.WriteFile(filepath.Join(string(c), "cgroup.procs"), []byte(strconv.Itoa(os.Getpid())), 0)
}
