package overlay

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/internal/fault"
)

// sysctl is a kernel setting, named by its path below /proc/sys.
type sysctl struct {
	name, value string
}

// tenantSysctls are the settings of a tenant namespace, in the order to write
// them.
func tenantSysctls() []sysctl {
	return []sysctl{
		// What Docker gives each container that has a namespace of its own.
		{"net/ipv4/ip_unprivileged_port_start", "0"},
		{"net/ipv4/ping_group_range", "0 2147483647"},
		// With 1 any address could be bound, 127.0.0.11 included.
		{"net/ipv4/ip_nonlocal_bind", "0"},
		// bind refuses an IPv6 address that is on no link, in spite of AnyIP.
		{"net/ipv6/ip_nonlocal_bind", "1"},
		// Docker up to 25 writes 1 to "all" at every container start, which
		// flushes all IPv6 addresses and routes.
		{"net/ipv6/conf/all/disable_ipv6", "0"},
		{"net/ipv6/conf/default/disable_ipv6", "0"},
		{"net/ipv6/conf/lo/disable_ipv6", "0"},
	}
}

// settle gives each setting its value in the namespace of the calling thread
// and reports whether any had another. Settings of an IPv6 that the kernel does
// not have are passed over.
func settle(settings []sysctl) (changed bool, err error) {
	for _, s := range settings {
		have, err := readSysctl(s.name)
		if errors.Is(err, fs.ErrNotExist) && strings.HasPrefix(s.name, "net/ipv6/") {
			continue
		}
		if err != nil {
			return changed, err
		}
		if have == s.value {
			continue
		}
		if err := writeSysctl(s.name, s.value); err != nil {
			return changed, err
		}
		changed = true
	}
	return changed, nil
}

const sysctlRoot = "/proc/sys/"

func readSysctl(name string) (string, error) {
	text, err := os.ReadFile(sysctlRoot + name)
	return strings.Join(strings.Fields(string(text)), " "), err
}

func writeSysctl(name, value string) error {
	file, err := os.OpenFile(sysctlRoot+name, os.O_WRONLY, 0)
	if err == nil {
		_, err = file.WriteString(value)
		err = errors.Join(err, file.Close())
	}
	if errors.Is(err, unix.EROFS) {
		return &fault.Error{Op: "write sysctl", On: name, Err: err,
			Fix: "let the plugin remount /proc/sys (it needs CAP_SYS_ADMIN)"}
	}
	return err
}

// WritableSysctls makes /proc/sys writable for this process's mount namespace.
// Docker starts a managed plugin with a read-only bind mount over it. Where it
// is writable already, nothing is done. Call it once, before Open.
func WritableSysctls() error {
	remedies := []func() error{
		func() error { return unix.Mount("", "/proc/sys", "", unix.MS_BIND|unix.MS_REMOUNT, "") },
		func() error { return unix.Unmount("/proc/sys", unix.MNT_DETACH) },
		func() error {
			return unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
		},
	}
	err := sysctlsWritable()
	for _, remedy := range remedies {
		if !errors.Is(err, unix.EROFS) {
			break
		}
		if failed := remedy(); failed != nil {
			err = fmt.Errorf("%w (%w)", err, failed)
			continue
		}
		err = sysctlsWritable()
	}
	if err != nil {
		return &fault.Error{Op: "make sysctls writable", On: "/proc/sys", Err: err,
			Fix: "grant the plugin CAP_SYS_ADMIN"}
	}
	return nil
}

// sysctlsWritable opens a setting every kernel has for writing, and writes
// nothing.
func sysctlsWritable() error {
	file, err := os.OpenFile(sysctlRoot+"net/ipv4/ip_forward", os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	return file.Close()
}
