package holder

import (
	"os"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"unsafe"
)

// bindAs binds a socket in the caller's stead, with no more rights than the caller
// has. A path is looked up and made below its root and working directory, under its
// umask and user.
func (r *request) bindAs(s socket, raw []byte) syscall.Errno {
	result := make(chan syscall.Errno, 1)
	go func() {
		runtime.LockOSThread() // and never unlock: the thread ends with the goroutine
		err := r.become()
		if err == 0 && !r.valid() {
			err = syscall.ESRCH
		}
		if err == 0 {
			err = s.address(syscall.SYS_BIND, raw)
		}
		result <- err
	}()
	return <-result
}

// names are the abstract unix sockets that a container has bound, as the kernel tells
// them. They are of the namespace, so another's can be reached by them as well.
type names struct {
	mu    sync.Mutex
	bound map[string]bool
}

// maxNames bounds what is remembered of a container. One that has had more cannot
// connect to the latest.
const maxNames = 1 << 16

func (n *names) note(s socket) {
	raw := make([]byte, maxAddress)
	size := uint32(len(raw))
	_, _, errno := syscall.Syscall(syscall.SYS_GETSOCKNAME, uintptr(s.fd), uintptr(unsafe.Pointer(&raw[0])), uintptr(unsafe.Pointer(&size)))
	raw = raw[:min(size, maxAddress)]
	if s.domain != syscall.AF_UNIX || errno != 0 || !abstract(raw) {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.bound == nil {
		n.bound = map[string]bool{}
	}
	if len(n.bound) < maxNames {
		n.bound[string(raw[familySize:])] = true
	}
}

func (n *names) has(raw []byte) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.bound[string(raw[familySize:])]
}

// familySize is where the name begins in an address.
const familySize = 2

// abstract tells addresses of unix sockets that are names of the namespace. Those of
// the size of a netlink socket's address are bound unseen.
func abstract(raw []byte) bool {
	const unseen = 12
	return len(raw) > familySize && raw[familySize] == 0 && len(raw) != unseen
}

// become makes the thread see files as the caller does.
func (r *request) become() syscall.Errno {
	tid := int(r.pid)
	dir := "/proc/" + strconv.Itoa(tid)
	umask, ok1 := statusNumber(tid, "Umask:", 8)
	uid, ok2 := fsID(tid, "Uid:")
	gid, ok3 := fsID(tid, "Gid:")
	caps, ok4 := statusNumber(tid, "CapEff:", 16)
	if !ok1 || !ok2 || !ok3 || !ok4 {
		return syscall.ESRCH
	}
	own, _ := statusNumber(syscall.Gettid(), "CapPrm:", 16)
	caps &= own // nobody can assume more
	if !sameUserNamespace(dir) {
		caps = 0 // they are rights over files of that namespace, not of ours
	}
	groups := []uint32{}
	for _, field := range statusFields(tid, "Groups:") {
		if n, err := strconv.ParseUint(string(field), 10, 32); err == nil {
			groups = append(groups, uint32(n))
		}
	}
	const fs = syscall.CLONE_FS
	if _, _, errno := syscall.RawSyscall(sysUnshare, fs, 0, 0); errno != 0 {
		return errno
	}
	const path = 0x200000 | syscall.O_DIRECTORY | syscall.O_CLOEXEC // O_PATH
	root, err1 := syscall.Open(dir+"/root", path, 0)
	cwd, err2 := syscall.Open(dir+"/cwd", path, 0)
	defer func() { _, _ = syscall.Close(root), syscall.Close(cwd) }()
	if err1 != nil || err2 != nil {
		return syscall.ESRCH
	}
	for _, step := range []error{syscall.Fchdir(root), syscall.Chroot("."), syscall.Fchdir(cwd)} {
		if step != nil {
			return syscall.ESRCH
		}
	}
	syscall.Umask(int(umask))
	return assume(uint32(uid), uint32(gid), groups, caps)
}

// fsID is the last of the four numbers of a line of /proc/PID/status.
func fsID(tid int, key string) (uint64, bool) {
	fields := statusFields(tid, key)
	if len(fields) != 4 {
		return 0, false
	}
	n, err := strconv.ParseUint(string(fields[3]), 10, 32)
	return n, err == nil
}

func sameUserNamespace(dir string) bool {
	theirs, err1 := os.Readlink(dir + "/ns/user")
	ours, err2 := os.Readlink("/proc/thread-self/ns/user")
	return err1 == nil && err2 == nil && theirs == ours
}

// assume changes the thread alone, which the functions of package syscall do not.
func assume(uid, gid uint32, groups []uint32, caps uint64) syscall.Errno {
	var list unsafe.Pointer
	if len(groups) > 0 {
		list = unsafe.Pointer(&groups[0])
	}
	if _, _, errno := syscall.RawSyscall(syscall.SYS_SETGROUPS, uintptr(len(groups)), uintptr(list), 0); errno != 0 {
		return errno
	}
	syscall.RawSyscall(syscall.SYS_SETFSGID, uintptr(gid), 0, 0)
	syscall.RawSyscall(syscall.SYS_SETFSUID, uintptr(uid), 0, 0)
	// struct __user_cap_header_struct and _data_struct of version 3.
	header := struct {
		version uint32
		pid     int32
	}{0x20080522, 0}
	lower, upper := uint32(caps), uint32(caps>>32)
	data := [2]struct{ effective, permitted, inheritable uint32 }{{lower, lower, 0}, {upper, upper, 0}}
	_, _, errno := syscall.RawSyscall(sysCapset, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&data[0])), 0)
	return errno
}
