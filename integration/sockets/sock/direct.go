package sock

import (
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// direct has a system call for each operation. 386 has them since Linux 4.3.
type direct struct{}

func (direct) close() error { return nil }

func (direct) do(r request) (int, error) {
	defer runtime.KeepAlive(r)
	var n uintptr
	var errno unix.Errno
	switch r.op {
	case opSocket:
		n, _, errno = unix.Syscall(unix.SYS_SOCKET, uintptr(r.args[0]), uintptr(r.args[1]), uintptr(r.args[2]))
	case opBind:
		n, _, errno = unix.Syscall(unix.SYS_BIND, uintptr(r.fd), uintptr(unsafe.Pointer(unsafe.SliceData(r.addr))), uintptr(r.size))
	case opConnect:
		n, _, errno = unix.Syscall(unix.SYS_CONNECT, uintptr(r.fd), uintptr(unsafe.Pointer(unsafe.SliceData(r.addr))), uintptr(r.size))
	case opListen:
		n, _, errno = unix.Syscall(unix.SYS_LISTEN, uintptr(r.fd), uintptr(r.args[0]), 0)
	case opSendmsg:
		n, _, errno = unix.Syscall(unix.SYS_SENDMSG, uintptr(r.fd), uintptr(unsafe.Pointer(r.msg)), uintptr(r.args[0]))
	}
	if errno != 0 {
		return -1, errno
	}
	return int(n), nil
}
