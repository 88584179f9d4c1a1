package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// occupy attaches a program to a cgroup, to which, and to all below, no other of its
// kind can be attached from then on.
func occupy(_ context.Context, _ io.Writer, args []string) error {
	// It lets every socket be made: r0 = 1, exit.
	code := [...]uint64{0x1_0000_00b7, 0x95}
	license := [...]byte{'G', 'P', 'L', 0}
	load := struct {
		kind, length  uint32
		code, license *byte
	}{unix.BPF_PROG_TYPE_CGROUP_SOCK, uint32(len(code)), (*byte)(unsafe.Pointer(&code)), &license[0]}
	program, err := bpf(unix.BPF_PROG_LOAD, unsafe.Pointer(&load), unsafe.Sizeof(load))
	if err != nil {
		return fmt.Errorf("load program: %w", err)
	}
	return attachment(unix.BPF_PROG_ATTACH, args, uint32(program))
}

// vacate undoes occupy.
func vacate(_ context.Context, _ io.Writer, args []string) error {
	return attachment(unix.BPF_PROG_DETACH, args, 0)
}

func attachment(command uintptr, args []string, program uint32) error {
	if len(args) != 1 {
		return errors.New("it takes a cgroup's directory")
	}
	dir, err := os.Open(args[0])
	if err != nil {
		return err
	}
	defer dir.Close()
	at := struct{ target, program, kind, flags uint32 }{target: uint32(dir.Fd()), program: program, kind: unix.BPF_CGROUP_INET_SOCK_CREATE}
	_, err = bpf(command, unsafe.Pointer(&at), unsafe.Sizeof(at))
	return err
}

func bpf(command uintptr, attr unsafe.Pointer, size uintptr) (int, error) {
	fd, _, errno := unix.Syscall(unix.SYS_BPF, command, uintptr(attr), size)
	runtime.KeepAlive(attr)
	if errno != 0 {
		return -1, errno
	}
	return int(fd), nil
}
