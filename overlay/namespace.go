package overlay

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// namespace is a network namespace held by descriptor, with rtnetlink sockets
// that were opened inside and therefore act there from any thread.
type namespace struct {
	file  *os.File
	route *netlink.Handle
	bulk  *rtnl // for what comes by the thousand
}

func (n *namespace) fd() int { return int(n.file.Fd()) }

func (n *namespace) close() {
	n.bulk.close()
	n.route.Close()
	_ = n.file.Close()
}

// enter runs fn on a thread inside the namespace. A thread that cannot go back
// stays locked to its goroutine, so that the runtime ends it with the goroutine
// instead of running other code in the wrong namespace.
func enter(target *os.File, fn func() error) error {
	return detour(func() error { return unix.Setns(int(target.Fd()), unix.CLONE_NEWNET) }, fn)
}

func detour(leave, fn func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		origin, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			runtime.UnlockOSThread()
			result <- err
			return
		}
		defer origin.Close()
		if err = leave(); err != nil {
			runtime.UnlockOSThread()
			result <- fmt.Errorf("switch network namespace: %w", err)
			return
		}
		err = fn()
		if unix.Setns(int(origin.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
		result <- err
	}()
	return <-result
}

// adopt makes a namespace of the one the thread is in.
func adopt() (*namespace, error) {
	file, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, err
	}
	route, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		_ = file.Close()
		return nil, fmt.Errorf("open rtnetlink socket: %w", err)
	}
	if err := route.SetSocketTimeout(socketTimeout); err != nil {
		route.Close()
		_ = file.Close()
		return nil, fmt.Errorf("set timeout of rtnetlink socket: %w", err)
	}
	bulk, err := openRTNL()
	if err != nil {
		route.Close()
		_ = file.Close()
		return nil, err
	}
	return &namespace{file: file, route: route, bulk: bulk}, nil
}

func currentNamespace() (*namespace, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	return adopt()
}

// newNamespace creates a namespace with the settings of a tenant's, still
// without routes.
func newNamespace() (*namespace, error) {
	var ns *namespace
	create := func() error { return unix.Unshare(unix.CLONE_NEWNET) }
	err := detour(create, func() (err error) {
		if ns, err = adopt(); err != nil {
			return err
		}
		_, err = settle(tenantSysctls())
		return err
	})
	if err != nil && ns != nil {
		ns.close()
	}
	if err != nil {
		return nil, fmt.Errorf("create namespace: %w", err)
	}
	return ns, nil
}

// openNamespace opens the namespace bound on path, or says fs.ErrNotExist when
// nothing is bound there.
func openNamespace(path string) (*namespace, error) {
	if bound, err := isBound(path); err != nil {
		return nil, err
	} else if !bound {
		return nil, fmt.Errorf("namespace %s: %w", path, fs.ErrNotExist)
	}
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	var ns *namespace
	err = enter(file, func() (err error) {
		ns, err = adopt()
		return err
	})
	return ns, err
}

// isBound reports whether a namespace is bound on path. A plain file there is
// what a crash between creating the file and binding leaves.
func isBound(path string) (bool, error) {
	var st unix.Statfs_t
	err := unix.Statfs(path, &st)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, &fs.PathError{Op: "statfs", Path: path, Err: err}
	}
	return st.Type == unix.NSFS_MAGIC, nil
}

// bind makes the namespace file appear at target, which is created.
func bind(source, target string) error {
	fd, err := unix.Open(target, unix.O_CREAT|unix.O_RDONLY|unix.O_CLOEXEC, 0o444)
	if err != nil {
		return &fs.PathError{Op: "create", Path: target, Err: err}
	}
	_ = unix.Close(fd)
	return mount(source, target)
}

// mount is bind on a target that was just created.
func mount(source, target string) error {
	if err := unix.Mount(source, target, "", unix.MS_BIND, ""); err != nil {
		_ = os.Remove(target)
		return &fs.PathError{Op: "bind namespace on", Path: target, Err: err}
	}
	return nil
}

// unbind undoes bind, however often it was repeated; gone is success.
func unbind(target string) error {
	for {
		err := unix.Unmount(target, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, fs.ErrNotExist) {
			break // not, or no longer, a mount point
		}
		if err != nil {
			return &fs.PathError{Op: "unmount", Path: target, Err: err}
		}
	}
	if err := os.Remove(target); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// source names the namespace for a bind mount.
func (n *namespace) source() string { return fmt.Sprintf("/proc/self/fd/%d", n.fd()) }
