package sock

import (
	"errors"
	"runtime"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Numbers of io_uring's interface (include/uapi/linux/io_uring.h of Linux 6.11,
// the first with bind and listen).
const (
	ringSendmsg   = 9
	ringConnect   = 16
	ringSend      = 26
	ringSocket    = 45
	ringSendZC    = 47
	ringSendmsgZC = 48
	ringBind      = 56
	ringListen    = 57

	ringNotification  = 1 << 3 // of a completion: the kernel is through with the caller's pages
	ringSetupSqpoll   = 1 << 1
	ringSqeAsync      = 1 << 4
	ringGetEvents     = 1 << 0
	ringWakeup        = 1 << 1
	ringExtArg        = 1 << 3
	ringSqNeedsWakeup = 1 << 0
	ringOffSqes       = 0x10000000

	ringEntries = 4
)

// ringParams is struct io_uring_params, with its two struct offsets.
type ringParams struct {
	sqEntries, cqEntries, flags, sqThreadCPU, sqThreadIdle, features, wqFd uint32
	_                                                                      [3]uint32
	sq                                                                     struct {
		head, tail, mask, entries, flags, dropped, array, _ uint32
		_                                                   uint64
	}
	cq struct {
		head, tail, mask, entries, overflow, cqes, flags, _ uint32
		_                                                   uint64
	}
}

// sqe is struct io_uring_sqe, as far as it is used here.
type sqe struct {
	opcode, flags uint8
	_             uint16
	fd            int32
	off, addr     uint64
	size, opFlags uint32
	userData      uint64
	_             [2]uint16
	addrSize, _   uint16
	_             [2]uint64
}

// cqe is struct io_uring_cqe.
type cqe struct {
	userData uint64
	res      int32
	flags    uint32
}

// ring is an io_uring of which one request is in flight at a time. Where a
// request got stuck, the ring is given up and another one made.
type ring struct {
	name     string
	patience time.Duration
	fd       int
	params   ringParams
	rings    []byte // both rings: every kernel with bind has IORING_FEAT_SINGLE_MMAP
	sqes     []byte
	next     uint64 // userData of the request before
}

func newRing(name string, patience time.Duration) (entry, error) {
	// Work by the caller's task must be seen to by the caller's thread.
	runtime.LockOSThread()
	r := &ring{name: name, patience: patience, fd: -1}
	return r, r.setup()
}

func (r *ring) setup() error {
	r.params = ringParams{}
	if r.name == UringSqpoll {
		r.params.flags, r.params.sqThreadIdle = ringSetupSqpoll, 1000
	}
	fd, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, ringEntries, uintptr(unsafe.Pointer(&r.params)), 0)
	if errno != 0 {
		return errno
	}
	r.fd = int(fd)
	size := max(r.params.sq.array+r.params.sqEntries*4, r.params.cq.cqes+r.params.cqEntries*uint32(unsafe.Sizeof(cqe{})))
	var err error
	if r.rings, err = unix.Mmap(r.fd, 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		return err
	}
	r.sqes, err = unix.Mmap(r.fd, ringOffSqes, int(r.params.sqEntries)*int(unsafe.Sizeof(sqe{})), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	return err
}

func (r *ring) close() error {
	err := errors.Join(unix.Munmap(r.rings), unix.Munmap(r.sqes), unix.Close(r.fd))
	r.rings, r.sqes, r.fd = nil, nil, -1
	return err
}

// word is one of the rings' shared counters.
func (r *ring) word(offset uint32) *uint32 { return (*uint32)(unsafe.Pointer(&r.rings[offset])) }

func (r *ring) do(q request) (int, error) {
	defer runtime.KeepAlive(q)
	if r.fd < 0 {
		if err := r.setup(); err != nil {
			return -1, err
		}
	}
	r.next++
	e := sqe{fd: int32(q.fd), userData: r.next}
	switch q.op {
	case opSocket:
		e.opcode, e.fd, e.off, e.size = ringSocket, int32(q.args[0]), uint64(q.args[1]), uint32(q.args[2])
	case opBind, opConnect:
		e.opcode = ringBind
		if q.op == opConnect {
			e.opcode = ringConnect
		}
		e.addr, e.off = uint64(uintptr(unsafe.Pointer(unsafe.SliceData(q.addr)))), uint64(q.size)
	case opListen:
		e.opcode, e.size = ringListen, uint32(q.args[0])
	case opSendmsg:
		r.send(&e, q)
	}
	if r.name == UringAsync {
		e.flags = ringSqeAsync
	}
	n, err := r.submit(e)
	if err == unix.EOPNOTSUPP && (e.opcode == ringSendZC || e.opcode == ringSendmsgZC) {
		// Not every kind of socket takes pages of the caller's.
		e.opcode = ringSendmsg
		sendMessage(&e, q)
		n, err = r.submit(e)
	}
	if err != unix.ETIME {
		return n, err
	}
	// The request is under way still; with the ring it ends.
	if err := r.close(); err != nil {
		return -1, err
	}
	return -1, unix.ETIMEDOUT
}

// send is the request to send as the ring does. Control messages go with a message
// alone.
func (r *ring) send(e *sqe, q request) {
	plain := map[string]uint8{UringSend: ringSend, UringPages: ringSendZC}[r.name]
	switch {
	case r.name == UringMessages, r.name == UringPages && q.msg.Controllen > 0:
		e.opcode = ringSendmsgZC
		sendMessage(e, q)
	case plain == 0, q.msg.Controllen > 0:
		e.opcode = ringSendmsg
		sendMessage(e, q)
	default:
		e.opcode, e.opFlags = plain, uint32(q.args[0])
		e.addr, e.size = uint64(uintptr(unsafe.Pointer(q.msg.Iov.Base))), uint32(q.msg.Iov.Len)
		e.off, e.addrSize = uint64(uintptr(unsafe.Pointer(q.msg.Name))), uint16(q.msg.Namelen)
	}
}

// sendMessage has a request take all from a message.
func sendMessage(e *sqe, q request) {
	e.addr, e.size, e.opFlags = uint64(uintptr(unsafe.Pointer(q.msg))), 1, uint32(q.args[0])
	e.off, e.addrSize = 0, 0
}

// submit hands one request over and waits for its completion.
func (r *ring) submit(e sqe) (int, error) {
	tail := atomic.LoadUint32(r.word(r.params.sq.tail))
	slot := tail & *r.word(r.params.sq.mask)
	*(*sqe)(unsafe.Pointer(&r.sqes[uintptr(slot)*unsafe.Sizeof(sqe{})])) = e
	*r.word(r.params.sq.array + slot*4) = slot
	atomic.StoreUint32(r.word(r.params.sq.tail), tail+1)
	submit, flags := uintptr(1), uintptr(ringGetEvents|ringExtArg)
	if r.name == UringSqpoll {
		submit = 0
		if atomic.LoadUint32(r.word(r.params.sq.flags))&ringSqNeedsWakeup != 0 {
			flags |= ringWakeup
		}
	}
	for {
		if n, ok, err := r.reap(e.userData); ok {
			return n, err
		}
		// struct io_uring_getevents_arg, and the struct __kernel_timespec it leads to.
		wait := &[2]int64{int64(r.patience / time.Second), int64(r.patience % time.Second)}
		arg := &[3]uint64{0, 8, uint64(uintptr(unsafe.Pointer(wait)))}
		_, _, errno := unix.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(r.fd), submit, 1, flags, uintptr(unsafe.Pointer(arg)), unsafe.Sizeof(*arg))
		runtime.KeepAlive(wait)
		if errno == unix.EINTR {
			submit = 0
			continue
		}
		if n, ok, err := r.reap(e.userData); ok {
			return n, err
		}
		if errno != 0 {
			return -1, errno
		}
		submit = 0
	}
}

// reap takes the completion of a request, if it is there.
func (r *ring) reap(id uint64) (n int, ok bool, err error) {
	for {
		head := atomic.LoadUint32(r.word(r.params.cq.head))
		if head == atomic.LoadUint32(r.word(r.params.cq.tail)) {
			return 0, false, nil
		}
		offset := r.params.cq.cqes + (head&*r.word(r.params.cq.mask))*uint32(unsafe.Sizeof(cqe{}))
		c := *(*cqe)(unsafe.Pointer(&r.rings[offset]))
		atomic.StoreUint32(r.word(r.params.cq.head), head+1)
		if c.userData != id || c.flags&ringNotification != 0 {
			continue
		}
		if c.res < 0 {
			return -1, true, unix.Errno(-c.res)
		}
		return int(c.res), true, nil
	}
}
