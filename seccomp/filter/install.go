package filter

import (
	"runtime"
	"syscall"
	"unsafe"

	"github.com/particle-net/particle/internal/fault"
)

// Arguments of seccomp(2) (linux/seccomp.h).
const (
	setModeFilter      = 1
	flagSpecAllow      = 1 << 2 // mitigations against speculation are the profile's business
	flagNewListener    = 1 << 3
	flagWaitKillable   = 1 << 5 // Linux 5.19: signals do not interrupt a call that is being answered
	noListener         = -1
	adviceOnPrivileges = "run particle-runtime as root, and on a kernel with CONFIG_SECCOMP_FILTER"
)

// Install puts a filter on the calling thread, for good: it wires the goroutine to
// it, and all that this thread executes inherits the filter. With Supervise it
// returns the descriptor by which the calls are answered, else -1.
//
// It needs CAP_SYS_ADMIN. EBUSY with Supervise means that the thread has such a
// filter already.
func Install(kind Kind) (listener int, err error) {
	runtime.LockOSThread()
	program := Program(kind)
	filter := syscall.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	flags := uintptr(flagSpecAllow)
	if kind == Supervise {
		flags |= flagNewListener | flagWaitKillable
	}
	fd, _, errno := syscall.RawSyscall(sysSeccomp, setModeFilter, flags, uintptr(unsafe.Pointer(&filter)))
	if errno == syscall.EINVAL && kind == Supervise {
		fd, _, errno = syscall.RawSyscall(sysSeccomp, setModeFilter, flags&^flagWaitKillable, uintptr(unsafe.Pointer(&filter)))
	}
	runtime.KeepAlive(program)
	if errno != 0 {
		return noListener, &fault.Error{Op: "install filter of system calls", Err: errno, Fix: adviceOnPrivileges}
	}
	if kind == Harden {
		return noListener, nil
	}
	return int(fd), nil
}

// Probe says why containers cannot be supervised here; nil if they can.
func Probe() error {
	const (
		getActionAvail = 2
		pidfdGetfd     = 438 // of all architectures
	)
	action := uint32(retNotify)
	if _, _, errno := syscall.RawSyscall(sysSeccomp, getActionAvail, 0, uintptr(unsafe.Pointer(&action))); errno != 0 {
		return &fault.Error{Op: "answer system calls", Err: errno, Fix: "use Linux 5.14 or later with CONFIG_SECCOMP_FILTER"}
	}
	const none = ^uintptr(0)
	if _, _, errno := syscall.RawSyscall(pidfdGetfd, none, none, 0); errno == syscall.ENOSYS {
		return &fault.Error{Op: "answer system calls", Err: errno, Fix: "use Linux 5.14 or later"}
	}
	return nil
}
