package filter

import (
	"fmt"
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
	flags := uintptr(flagSpecAllow)
	if kind == Supervise {
		flags |= flagNewListener | flagWaitKillable
	}
	fd, errno := install(program, flags)
	if errno == syscall.EINVAL && kind == Supervise {
		fd, errno = install(program, flags&^flagWaitKillable)
	}
	switch {
	case errno == syscall.EBUSY:
		return noListener, busy("install filter of system calls")
	case errno != 0:
		return noListener, &fault.Error{Op: "install filter of system calls", Err: errno, Fix: adviceOnPrivileges}
	case kind == Harden:
		return noListener, nil
	}
	return fd, nil
}

func install(program []syscall.SockFilter, flags uintptr) (listener int, errno syscall.Errno) {
	filter := syscall.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	fd, _, errno := syscall.RawSyscall(sysSeccomp, setModeFilter, flags, uintptr(unsafe.Pointer(&filter)))
	runtime.KeepAlive(program)
	return int(fd), errno
}

// busy is EBUSY of a thread that lives under a filter with a listener.
func busy(op string) error {
	return &fault.Error{Op: op, Err: fmt.Errorf("another process answers those of the Docker daemon already: %w", syscall.EBUSY),
		Fix: "run the daemon where none does, such as outside of a container whose system calls are intercepted"}
}

// Probe says why containers cannot be supervised here; nil if they can. It tries a
// filter with a listener, on a thread that ends.
func Probe() error {
	const (
		pidfdGetfd = 438 // of all architectures
		none       = ^uintptr(0)
		op         = "answer system calls"
	)
	if _, _, errno := syscall.RawSyscall(pidfdGetfd, none, none, 0); errno == syscall.ENOSYS {
		return &fault.Error{Op: op, Err: errno, Fix: "use Linux 5.14 or later"}
	}
	tried := make(chan syscall.Errno)
	go func() {
		runtime.LockOSThread() // until it ends, and the filter with it
		all := []syscall.SockFilter{{Code: syscall.BPF_RET | syscall.BPF_K, K: retAllow}}
		fd, errno := install(all, flagSpecAllow|flagNewListener)
		if errno == 0 {
			_ = syscall.Close(fd)
		}
		tried <- errno
	}()
	switch errno := <-tried; errno {
	case 0:
		return nil
	case syscall.EBUSY:
		return busy(op)
	default:
		return &fault.Error{Op: op, Err: errno, Fix: "use Linux 5.14 or later with CONFIG_SECCOMP_FILTER, and grant CAP_SYS_ADMIN"}
	}
}
