package sock

import (
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// multiplexed is socketcall(2): one system call, which reads its arguments from
// memory, where a filter of system calls cannot see them.
type multiplexed struct{}

func newSocketcall() (entry, error) { return multiplexed{}, nil }

func (multiplexed) close() error { return nil }

// Calls of socketcall (include/uapi/linux/net.h).
const (
	sysSocket  = 1
	sysBind    = 2
	sysConnect = 3
	sysListen  = 4
	sysSendmsg = 16
)

func (multiplexed) do(r request) (int, error) {
	defer runtime.KeepAlive(r)
	call, args := 0, new([3]uintptr)
	switch r.op {
	case opSocket:
		call, *args = sysSocket, [3]uintptr{uintptr(r.args[0]), uintptr(r.args[1]), uintptr(r.args[2])}
	case opBind, opConnect:
		call = sysBind
		if r.op == opConnect {
			call = sysConnect
		}
		*args = [3]uintptr{uintptr(r.fd), uintptr(unsafe.Pointer(unsafe.SliceData(r.addr))), uintptr(r.size)}
	case opListen:
		call, *args = sysListen, [3]uintptr{uintptr(r.fd), uintptr(r.args[0])}
	case opSendmsg:
		call, *args = sysSendmsg, [3]uintptr{uintptr(r.fd), uintptr(unsafe.Pointer(r.msg)), uintptr(r.args[0])}
	}
	n, _, errno := unix.Syscall(unix.SYS_SOCKETCALL, uintptr(call), uintptr(unsafe.Pointer(args)), 0)
	if errno != 0 {
		return -1, errno
	}
	return int(n), nil
}
