package attack

import (
	"context"
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// seizeCases use what a container was given of the host: its settings, its cgroups
// and its eBPF maps. They look for them wherever they are mounted, and mount them
// where the container may. From whatever namespace they come, the victim must not
// feel them.
func seizeCases() []Case {
	return []Case{
		// A setting of the victim's namespace.
		{"seize/setting", func(a *attacker) verdict { return a.changeSetting() }},
		// Out of all cgroups, and into others' (in a child, which does not return).
		{"seize/root-cgroup", func(a *attacker) verdict { return a.inside("root-cgroup", 0) }},
		{"seize/victim-cgroup", func(a *attacker) verdict { return a.inside("victim-cgroup", 0) }},
		{"seize/map", func(*attacker) verdict { return outcome(openMap()) }},
	}
}

// views are where a file system is mounted; leave unmounts what was added.
func views(system, at string) (dirs []string, leave func()) {
	leave = func() {}
	if unix.Mount(system, at, system, 0, "") == nil {
		leave = func() { _ = unix.Unmount(at, unix.MNT_DETACH) }
	}
	table, _ := os.ReadFile("/proc/self/mounts") // without it there are none
	for line := range strings.Lines(string(table)) {
		if fields := strings.Fields(line); len(fields) > 2 && fields[2] == system {
			dirs = append(dirs, fields[1])
		}
	}
	return dirs, leave
}

// setting is one that matters to nobody here.
const setting = "sys/net/ipv4/tcp_fin_timeout"

// changeSetting is a success if the victim sees the change.
func (a *attacker) changeSetting() verdict {
	procs, leave := views("proc", "/mnt")
	defer leave()
	before, err := ask(context.Background(), a.Victim, Question{Op: "setting"})
	if err != nil {
		return failed(err)
	}
	n, err := strconv.Atoi(before.Setting)
	if err != nil {
		return failed(err)
	}
	last := error(unix.ENOENT)
	for _, dir := range procs {
		file := filepath.Join(dir, setting)
		if err := writeOver(file, strconv.Itoa(n+1)); errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
			continue // a part of proc
		} else if err != nil {
			last = err
			continue
		}
		after, err := ask(context.Background(), a.Victim, Question{Op: "setting"})
		if err != nil {
			return failed(err)
		}
		if after.Setting != before.Setting {
			return verdict{success: true, err: writeOver(file, before.Setting), detail: "by " + file}
		}
	}
	return failed(bare(last))
}

// writeOver writes to a file that is there.
func writeOver(file, text string) error {
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteString(text)
	return err
}

// move goes into cgroups that are not the attacker's, and binds the victim's address
// there: into the root, or into all of Docker's.
func (in insideArgs) move(root bool) verdict {
	all, leave := views("cgroup2", "/mnt")
	defer leave()
	v := failed(unix.ENOENT)
	for _, dir := range all {
		_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.IsDir() || v.success || !root && !strings.Contains(path, "docker") {
				return nil
			}
			if err := writeOver(filepath.Join(path, "cgroup.procs"), "0"); err != nil {
				v.err = bare(err)
			} else {
				v = in.bind(-1)
				v.detail = "in " + path
			}
			if root {
				return fs.SkipAll
			}
			return nil
		})
	}
	return v
}

// openMap opens any map of the host by its number, as the address guard's could be.
func openMap() error {
	var attr [32]byte // union bpf_attr
	call := func(command uintptr) (uintptr, error) {
		fd, _, errno := unix.Syscall(unix.SYS_BPF, command, uintptr(unsafe.Pointer(&attr)), uintptr(len(attr)))
		runtime.KeepAlive(&attr)
		if errno != 0 {
			return 0, errno
		}
		return fd, nil
	}
	if _, err := call(unix.BPF_MAP_GET_NEXT_ID); err != nil {
		return err
	}
	order := binary.NativeEndian // next_id becomes map_id
	next := order.Uint32(attr[4:])
	clear(attr[:])
	order.PutUint32(attr[:], next)
	fd, err := call(unix.BPF_MAP_GET_FD_BY_ID)
	if err == nil {
		err = unix.Close(int(fd))
	}
	return err
}
