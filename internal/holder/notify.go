package holder

import (
	"encoding/binary"
	"syscall"
	"unsafe"
)

// operation is what a caller wants.
type operation int

const (
	bind operation = iota + 1
	connect
	listen
	sendto
	socketcall // one of the others, with its arguments in memory
)

// Requests of a listener's descriptor (linux/seccomp.h).
const (
	ioctlReceive = 0xc0502100
	ioctlSend    = 0xc0182101
	ioctlValid   = 0x40082102
	ioctlFlags   = 0x40082104

	flagSyncWakeUp = 1 // Linux 6.6: the caller waits on the processor of the answer
	flagContinue   = 1 // of a response: let the kernel go on
)

// notification is the kernel's struct seccomp_notif.
type notification struct {
	id     uint64
	pid    uint32 // of the thread, in our pid namespace
	flags  uint32
	number uint32
	arch   uint32
	ip     uint64
	args   [6]uint64
}

// response is the kernel's struct seccomp_notif_resp.
type response struct {
	id    uint64
	value int64
	errno int32
	flags uint32
}

func ioctl(fd int, request uintptr, arg unsafe.Pointer) syscall.Errno {
	_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, uintptr(fd), request, uintptr(arg))
	return errno
}

// settle is ioctl for what must be done now: a signal of Go's own ends it while the
// kernel waits for the filter's lock.
func settle(fd int, request uintptr, arg unsafe.Pointer) syscall.Errno {
	for {
		if errno := ioctl(fd, request, arg); errno != syscall.EINTR {
			return errno
		}
	}
}

// request is a call that waits for its answer.
type request struct {
	notification
	listener int
	socket   *socket // the caller's, until it has its answer
	op       operation
	fd       int
	address  uint64 // in the caller's memory
	length   uint32 // of the address
	data     uint64 // sendto: in the caller's memory
	size     uint64 // of the data
	options  int    // sendto
}

// read takes the arguments apart. An error is the caller's.
func (r *request) read() syscall.Errno {
	r.op = operations[r.arch][r.number&numberMask]
	args := r.args
	if r.op == socketcall {
		var err syscall.Errno
		if r.op, args, err = r.readSocketcall(); err != 0 {
			return err
		}
	}
	r.fd = int(int32(args[0]))
	switch r.op {
	case bind, connect:
		r.address, r.length = args[1], uint32(args[2])
	case sendto:
		r.data, r.size, r.options = args[1], args[2], int(int32(args[3]))
		r.address, r.length = args[4], uint32(args[5])
	case listen:
	default:
		return syscall.ENOSYS
	}
	return 0
}

// readSocketcall reads the arguments that socketcall(2) keeps in memory. They are
// read once, and so do not change any more.
func (r *request) readSocketcall() (op operation, args [6]uint64, errno syscall.Errno) {
	counts := map[uint64]int{2: 3, 3: 3, 4: 2, 11: 6}
	op = map[uint64]operation{2: bind, 3: connect, 4: listen, 11: sendto}[r.args[0]]
	raw := make([]byte, 4*counts[r.args[0]])
	if errno = r.memory(r.args[1], raw); errno != 0 {
		return 0, args, errno
	}
	for i := range len(raw) / 4 {
		args[i] = uint64(binary.NativeEndian.Uint32(raw[4*i:]))
	}
	return op, args, 0
}

// memory copies from the caller's; EFAULT is for the caller.
func (r *request) memory(at uint64, into []byte) syscall.Errno {
	if len(into) == 0 {
		return 0
	}
	local := syscall.Iovec{Base: &into[0], Len: uint64(len(into))}
	remote := struct{ base, length uint64 }{at, uint64(len(into))}
	n, _, errno := syscall.Syscall6(sysProcessVMReadv, uintptr(r.pid), uintptr(unsafe.Pointer(&local)), 1,
		uintptr(unsafe.Pointer(&remote)), 1, 0)
	switch {
	case errno == 0 && int(n) == len(into):
		return 0
	case errno == syscall.ESRCH, errno == syscall.EPERM:
		return errno
	}
	return syscall.EFAULT
}

// valid is false when the caller is gone, and its number may be another's.
func (r *request) valid() bool {
	id := r.id
	return settle(r.listener, ioctlValid, unsafe.Pointer(&id)) == 0
}

// reply answers; false says that nobody waits for it any more.
func (r *request) reply(value int, errno syscall.Errno) bool {
	answer := response{value: int64(value), errno: -int32(errno)}
	if errno != 0 {
		answer.value = 0
	}
	return r.send(answer)
}

// proceed lets the kernel do what the caller asks for.
func (r *request) proceed() { r.send(response{flags: flagContinue}) }

// send lets the caller's socket go first: it may close it next, and bind its port
// anew.
func (r *request) send(answer response) bool {
	if r.socket != nil {
		r.socket.close()
		r.socket = nil
	}
	answer.id = r.id
	return settle(r.listener, ioctlSend, unsafe.Pointer(&answer)) == 0
}
