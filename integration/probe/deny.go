package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// deny becomes another program, to which and to all that it starts the kernel denies
// some of what it could do: as a daemon in a container finds it, or under systemd's
// SystemCallFilter.
func deny(_ context.Context, _ io.Writer, args []string) error {
	if len(args) < 2 {
		return errors.New("it takes bpf, notify or bpf,notify, and a program")
	}
	runtime.LockOSThread() // filters are a thread's
	for _, what := range strings.Split(args[0], ",") {
		var err error
		switch what {
		case "bpf":
			err = denyCall(unix.SYS_BPF)
		case "notify":
			err = denyNotify()
		default:
			err = fmt.Errorf("%s is nothing that can be denied", what)
		}
		if err != nil {
			return err
		}
	}
	return unix.Exec(args[1], args[1:], os.Environ())
}

// denyCall has a system call fail with EPERM.
func denyCall(number uint32) error {
	_, err := filter(0,
		unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS}, // the number comes first in struct seccomp_data
		unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: number, Jf: 1},
		unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)},
		unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW})
	return err
}

// denyNotify has a listener, of which the kernel allows one, and asks it nothing. It is
// one as long as it is open.
func denyNotify() error {
	fd, err := filter(unix.SECCOMP_FILTER_FLAG_NEW_LISTENER,
		unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW})
	if err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_SETFD, 0)
	}
	return err
}

func filter(flags uintptr, program ...unix.SockFilter) (int, error) {
	p := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	fd, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(&p)))
	runtime.KeepAlive(program)
	if errno != 0 {
		return -1, fmt.Errorf("install filter: %w", errno)
	}
	return int(fd), nil
}
