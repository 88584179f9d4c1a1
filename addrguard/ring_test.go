package addrguard_test

import (
	"encoding/binary"
	"unsafe"

	"golang.org/x/sys/unix"
)

// bindByRing binds a socket through io_uring (IORING_OP_BIND, Linux 6.11), which
// makes no bind system call. With Value 1 a kernel thread does it.
func bindByRing(c Call, _ *Answer) error {
	const (
		entries   = 4
		opBind    = 56
		sqeAsync  = 1 << 4
		offSQ     = 0
		offSQEs   = 0x10000000
		getEvents = 1
	)
	var params [120]byte
	ring, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, entries, uintptr(unsafe.Pointer(&params)), 0)
	if errno != 0 {
		return errno
	}
	defer unix.Close(int(ring))
	field := func(at int) uint32 { return binary.NativeEndian.Uint32(params[at:]) }
	rings, err := unix.Mmap(int(ring), offSQ, 8192, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Munmap(rings) }()
	sqes, err := unix.Mmap(int(ring), offSQEs, 64*entries, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Munmap(sqes) }()
	sa, err := sockaddr(c.Addr)
	if err != nil {
		return err
	}
	name := rawAddress(sa)
	sqes[0] = opBind
	if c.Value == 1 {
		sqes[1] = sqeAsync
	}
	binary.NativeEndian.PutUint32(sqes[4:], uint32(c.FD))
	binary.NativeEndian.PutUint64(sqes[8:], uint64(len(name)))                          // addr2
	binary.NativeEndian.PutUint64(sqes[16:], uint64(uintptr(unsafe.Pointer(&name[0])))) // addr
	sqTail, sqArray := field(40+4), field(40+24)
	cqes := field(80 + 20)
	binary.NativeEndian.PutUint32(rings[sqArray:], 0)
	binary.NativeEndian.PutUint32(rings[sqTail:], 1)
	if _, _, errno := unix.Syscall6(unix.SYS_IO_URING_ENTER, ring, 1, 1, getEvents, 0, 0); errno != 0 {
		return errno
	}
	if result := int32(binary.NativeEndian.Uint32(rings[cqes+8:])); result < 0 {
		return unix.Errno(-result)
	}
	return nil
}

func rawAddress(sa unix.Sockaddr) []byte {
	raw := make([]byte, 28)
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		binary.NativeEndian.PutUint16(raw, unix.AF_INET)
		binary.BigEndian.PutUint16(raw[2:], uint16(sa.Port))
		copy(raw[4:], sa.Addr[:])
		return raw[:16]
	case *unix.SockaddrInet6:
		binary.NativeEndian.PutUint16(raw, unix.AF_INET6)
		binary.BigEndian.PutUint16(raw[2:], uint16(sa.Port))
		copy(raw[8:], sa.Addr[:])
	}
	return raw
}
