package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/internal/fault"
)

// mount is mount(2) with an error that names the place.
func mount(source, target, fstype string, flags uintptr, options string) error {
	if err := unix.Mount(source, target, fstype, flags, options); err != nil {
		return &fault.Error{Op: "mount " + fstype, On: target, Err: err}
	}
	return nil
}

// makeRoot puts the host's root together below its state directory, makes it the
// root of this mount namespace and lets go of the machine's.
func makeRoot(spec bootSpec, dir string) error {
	root := filepath.Join(dir, dirRoot)
	if err := mountOverlay(dir, root); err != nil {
		return err
	}
	for _, step := range []func() error{
		func() error { return mountKernel(root) },
		func() error { return mountCgroups(root, spec.visible()) },
		func() error { return mountOwn(spec, dir, root) },
		func() error { return writeFiles(spec, root) },
		func() error { return prepareSystemd(spec, root) },
		func() error { return enterRoot(root) },
		func() error { return joinLeaf(spec) },
		// Containers and managed plugins expect propagation as systemd sets it up.
		func() error { return mount("", "/", "", unix.MS_REC|unix.MS_SHARED, "") },
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// mountOverlay mounts the root. After a reboot the previous mount of the same
// upper directory may still be going away, which overlayfs answers with EBUSY.
func mountOverlay(dir, root string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	options := fmt.Sprintf("lowerdir=/,upperdir=%s,workdir=%s,index=off",
		filepath.Join(dir, dirUpper), filepath.Join(dir, dirWork))
	for {
		err := unix.Mount("overlay", root, "overlay", 0, options)
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EBUSY) || ctx.Err() != nil {
			return &fault.Error{Op: "mount overlay", On: root, Err: err,
				Fix: "keep the lab's state directory on a disk file system such as ext4 or xfs, not on overlayfs"}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
}

// mountKernel mounts what the kernel provides. /sys is the machine's: a sysfs of
// the new network namespace would come without the cgroup mounts.
func mountKernel(root string) error {
	if err := mount("proc", filepath.Join(root, "proc"), "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return err
	}
	for _, name := range []string{"sys", "dev"} {
		if err := mount("/"+name, filepath.Join(root, name), "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return err
		}
	}
	if err := mount("shm", filepath.Join(root, "dev/shm"), "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=1777"); err != nil {
		return err
	}
	// Pins are per bpffs mount: with its own one a host does not see another's.
	return mount("bpf", filepath.Join(root, "sys/fs/bpf"), "bpf", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=700")
}

// mountCgroups replaces the machine's cgroup mounts by ones that show this cgroup
// namespace. Both at once would confuse whoever looks for a hierarchy in mountinfo.
func mountCgroups(root string, hs []hierarchy) error {
	top := filepath.Join(root, cgroupRoot)
	if err := unix.Unmount(top, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
		return &fault.Error{Op: "unmount", On: top, Err: err}
	}
	const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	if len(hs) == 1 && hs[0].V2 && hs[0].Mount == cgroupRoot {
		return mount("cgroup2", top, "cgroup2", flags, "")
	}
	if err := mount("cgroup", top, "tmpfs", flags, "mode=755"); err != nil {
		return err
	}
	for _, h := range hs {
		point := filepath.Join(root, h.Mount)
		if err := os.MkdirAll(point, 0o755); err != nil {
			return err
		}
		kind := "cgroup"
		if h.V2 {
			kind = "cgroup2"
		}
		if err := mount(kind, point, kind, flags, h.Options); err != nil {
			return err
		}
	}
	return linkControllers(top, hs)
}

// linkControllers makes cpu a link to cpu,cpuacct where controllers share a
// hierarchy, as machines do.
func linkControllers(top string, hs []hierarchy) error {
	for _, h := range hs {
		base := filepath.Base(h.Mount)
		if h.V2 || !strings.Contains(base, ",") {
			continue
		}
		for _, name := range strings.Split(base, ",") {
			if err := os.Symlink(base, filepath.Join(top, name)); err != nil && !errors.Is(err, fs.ErrExist) {
				return err
			}
		}
	}
	return nil
}

// mountOwn gives the host its /run, its data root and its own directories, and
// hides the state of all labs.
func mountOwn(spec bootSpec, dir, root string) error {
	if err := mount("tmpfs", filepath.Join(root, "run"), "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
		return err
	}
	if err := linkVarRun(root); err != nil {
		return err
	}
	binds := map[string]string{
		"/var/lib/docker":     filepath.Join(dir, dirData),
		"/var/lib/containerd": filepath.Join(dir, dirContainerd),
		"/tmp":                filepath.Join(dir, dirTmp),
		shareInside:           filepath.Join(dir, dirShare),
	}
	for name, source := range spec.Binds {
		binds[filepath.Join(toolsInside, name)] = source
	}
	for inside, source := range binds {
		point := filepath.Join(root, inside)
		if err := os.MkdirAll(point, 0o755); err != nil {
			return &fault.Error{Op: "make mount point", On: point, Err: err}
		}
		if err := mount(source, point, "", unix.MS_BIND, ""); err != nil {
			return err
		}
	}
	hidden := filepath.Join(root, StateDir)
	if err := os.MkdirAll(hidden, 0o755); err != nil {
		return err
	}
	return mount("tmpfs", hidden, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=700,size=64k")
}

// linkVarRun makes /var/run lead to the fresh /run, as every Docker client assumes.
func linkVarRun(root string) error {
	path := filepath.Join(root, "var/run")
	if target, err := os.Readlink(path); err == nil && (target == "/run" || target == "../run") {
		return nil
	}
	if err := os.RemoveAll(path); err != nil {
		return err
	}
	return os.Symlink("/run", path)
}

// writeFiles gives a host its identity at its first boot. What was a symbolic link
// (resolv.conf often is) becomes a file.
func writeFiles(spec bootSpec, root string) error {
	for _, dir := range []string{"run/lock", "run/docker"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			return err
		}
	}
	if !spec.FirstBoot {
		return nil
	}
	if !spec.Disk {
		if err := os.RemoveAll(filepath.Join(root, "etc/docker")); err != nil {
			return &fault.Error{Op: "clear", On: "/etc/docker", Err: err}
		}
	}
	for name, content := range spec.Files {
		if spec.Disk && name == daemonJSON {
			continue
		}
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			return &fault.Error{Op: "write", On: name, Err: err}
		}
	}
	return nil
}

// enterRoot makes root the root. The old root ends up stacked on the new one,
// which is where pivot_root(2) documents it to be unmounted from.
func enterRoot(root string) error {
	if err := unix.Chdir(root); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return &fault.Error{Op: "change root", On: root, Err: err}
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return &fault.Error{Op: "leave the machine's root", Err: err}
	}
	return unix.Chdir("/")
}

// joinLeaf moves the init out of the host's root cgroups. Systemd does so itself.
func joinLeaf(spec bootSpec) error {
	if spec.Systemd {
		return nil
	}
	for _, h := range spec.Cgroups {
		file := filepath.Join(h.Mount, cgroupLeaf, "cgroup.procs")
		if err := os.WriteFile(file, []byte("1"), 0o644); err != nil {
			return &fault.Error{Op: "join cgroup", On: file, Err: err}
		}
	}
	return nil
}
