package holder

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"syscall"
	"unsafe"
)

// Options of sockets that package syscall does not have.
const (
	soDomain        = 39
	soCookie        = 57
	soNetnsCookie   = 71
	bindAddrNoPort  = 24
	pidfdThread     = syscall.O_EXCL // Linux 6.9: for a thread that leads no process
	maxAddress      = 128            // bytes, struct sockaddr_storage
	messageFastOpen = 0x20000000
)

// socket is a caller's, as the holder has it for a moment.
type socket struct {
	fd     int
	domain int
	kind   int    // SOCK_STREAM or SOCK_DGRAM
	netns  uint64 // cookie
	cookie uint64
}

// take takes the caller's socket, which goes with the answer.
func (r *request) take() (socket, syscall.Errno) {
	pidfd, err := openProcess(int(r.pid))
	if err != 0 {
		return socket{}, err
	}
	defer func() { _ = syscall.Close(pidfd) }()
	fd, _, err := syscall.Syscall(sysPidfdGetfd, uintptr(pidfd), uintptr(r.fd), 0)
	if err != 0 {
		return socket{}, err
	}
	s := socket{fd: int(fd)}
	if !r.valid() { // the process may have been another
		s.close()
		return socket{}, syscall.ESRCH
	}
	for _, o := range []struct {
		name int
		into any
	}{{soDomain, &s.domain}, {syscall.SO_TYPE, &s.kind}, {soCookie, &s.cookie}, {soNetnsCookie, &s.netns}} {
		if err := getOption(s.fd, syscall.SOL_SOCKET, o.name, o.into); err != 0 {
			s.close()
			return socket{}, err // ENOTSOCK is the caller's
		}
	}
	r.socket = &s
	return s, 0
}

func (s socket) close() { _ = syscall.Close(s.fd) }

func (s socket) internet() bool { return s.domain == syscall.AF_INET || s.domain == syscall.AF_INET6 }

// openProcess opens the process of a thread.
func openProcess(tid int) (int, syscall.Errno) {
	fd, _, err := syscall.Syscall(sysPidfdOpen, uintptr(tid), pidfdThread, 0)
	if err == syscall.EINVAL { // before Linux 6.9 leaders alone can be opened
		leader, ok := statusNumber(tid, "Tgid:", 10)
		if !ok {
			return -1, syscall.ESRCH
		}
		fd, _, err = syscall.Syscall(sysPidfdOpen, uintptr(leader), 0, 0)
	}
	return int(fd), err
}

// statusNumber reads the first number of a line of /proc/PID/status.
func statusNumber(tid int, key string, base int) (uint64, bool) {
	fields := statusFields(tid, key)
	if len(fields) == 0 {
		return 0, false
	}
	n, err := strconv.ParseUint(string(fields[0]), base, 64)
	return n, err == nil
}

func statusFields(tid int, key string) [][]byte {
	raw, err := os.ReadFile("/proc/" + strconv.Itoa(tid) + "/status")
	if err != nil {
		return nil
	}
	for line := range bytes.Lines(raw) {
		if after, ok := bytes.CutPrefix(line, []byte(key)); ok {
			return bytes.Fields(after)
		}
	}
	return nil
}

// getOption reads an int or a uint64.
func getOption(fd, level, name int, into any) syscall.Errno {
	var raw [8]byte
	size := uint32(4)
	if _, ok := into.(*uint64); ok {
		size = 8
	}
	_, _, errno := syscall.Syscall6(syscall.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), uintptr(name),
		uintptr(unsafe.Pointer(&raw[0])), uintptr(unsafe.Pointer(&size)), 0)
	switch p := into.(type) {
	case *int:
		*p = int(int32(binary.NativeEndian.Uint32(raw[:])))
	case *uint64:
		*p = binary.NativeEndian.Uint64(raw[:])
	}
	return errno
}

func (s socket) only6() bool {
	only := 0
	const v6only = 26
	return s.domain == syscall.AF_INET6 && getOption(s.fd, syscall.IPPROTO_IPV6, v6only, &only) == 0 && only != 0
}

// name is the address that the socket has.
func (s socket) name() (address, bool) {
	raw := make([]byte, maxAddress)
	size := uint32(len(raw))
	_, _, errno := syscall.Syscall(syscall.SYS_GETSOCKNAME, uintptr(s.fd), uintptr(unsafe.Pointer(&raw[0])), uintptr(unsafe.Pointer(&size)))
	if errno != 0 {
		return address{}, false
	}
	return parseAddress(raw[:min(size, maxAddress)])
}

// address calls bind, connect or the like with an address.
func (s socket) address(call uintptr, raw []byte) syscall.Errno {
	var first byte
	at := &first // the kernel refuses what has no bytes before it looks at it
	if len(raw) > 0 {
		at = &raw[0]
	}
	_, _, errno := syscall.Syscall(call, uintptr(s.fd), uintptr(unsafe.Pointer(at)), uintptr(len(raw)))
	return errno
}

func (s socket) bind(a address) syscall.Errno { return s.address(syscall.SYS_BIND, a.raw) }

// prepare gives a socket without an address one for its source. The port stays the
// kernel's to choose, when it is needed: programs can bind such a socket still.
func (s socket) prepare(ip netip.Addr) {
	have, ok := s.name()
	if !ok || have.port != 0 || !have.ip.Unmap().IsUnspecified() {
		return
	}
	if err := setInt(s.fd, syscall.IPPROTO_IP, bindAddrNoPort, 1); err != 0 {
		return
	}
	s.bind(makeAddress(uint16(s.domain), ip, 0))
	setInt(s.fd, syscall.IPPROTO_IP, bindAddrNoPort, 0)
}

func setInt(fd, level, name, value int) syscall.Errno {
	v := int32(value)
	_, _, errno := syscall.Syscall6(syscall.SYS_SETSOCKOPT, uintptr(fd), uintptr(level), uintptr(name), uintptr(unsafe.Pointer(&v)), 4, 0)
	return errno
}

// namespaceCookie asks a namespace for its cookie, on a thread that ends with it.
func namespaceCookie(path string) (cookie uint64, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		var ns, fd int
		if ns, err = syscall.Open(path, syscall.O_RDONLY|syscall.O_CLOEXEC, 0); err != nil {
			return
		}
		defer func() { _ = syscall.Close(ns) }()
		if _, _, errno := syscall.RawSyscall(sysSetns, uintptr(ns), syscall.CLONE_NEWNET, 0); errno != 0 {
			err = errno
			return
		}
		if fd, err = syscall.Socket(syscall.AF_INET, syscall.SOCK_DGRAM|syscall.SOCK_CLOEXEC, 0); err != nil {
			return
		}
		defer func() { _ = syscall.Close(fd) }()
		if errno := getOption(fd, syscall.SOL_SOCKET, soNetnsCookie, &cookie); errno != 0 {
			err = errno
		}
	}()
	<-done
	return cookie, err
}
