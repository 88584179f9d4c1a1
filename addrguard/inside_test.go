package addrguard_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"net/rpc"
	"os"
	"runtime"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// insideEnv marks the process that plays a container: it makes system calls as it
// is told on standard input, and tells what came of them on standard output.
const insideEnv = "ADDRGUARD_INSIDE"

// Call is one system call.
type Call struct {
	Name    string
	FD      int
	Family  int
	Type    int
	Proto   int
	Opt     int
	Value   int
	Addr    string // "10.0.0.1:80", "[::1]:80", "@abstract", "/path", "none"
	Source  string // of a datagram: IP_PKTINFO
	Text    string
	Timeout int // milliseconds
}

// Answer is its result.
type Answer struct {
	N    int
	Addr string
	Text string
	Err  unix.Errno
}

// Inside is the service of the process.
type Inside struct{}

type stdio struct {
	io.Reader
	io.Writer
}

func (stdio) Close() error { return nil }

func serveInside() {
	runtime.LockOSThread() // rpc serves each call on a goroutine of its own; only unshare cares
	server := rpc.NewServer()
	if err := server.Register(&Inside{}); err != nil {
		panic(err)
	}
	server.ServeConn(stdio{os.Stdin, os.Stdout})
}

// Do performs a call. Errors of the kernel are part of the answer.
func (*Inside) Do(c Call, a *Answer) error {
	f, ok := calls[c.Name]
	if !ok {
		return fmt.Errorf("no call %q", c.Name)
	}
	err := f(c, a)
	if err == nil {
		return nil
	}
	if !errors.As(err, &a.Err) {
		return fmt.Errorf("%s: %w", c.Name, err)
	}
	return nil
}

var calls = map[string]func(Call, *Answer) error{
	"socket": func(c Call, a *Answer) (err error) {
		a.N, err = unix.Socket(c.Family, c.Type|unix.SOCK_CLOEXEC, c.Proto)
		return err
	},
	"bind": func(c Call, _ *Answer) error {
		sa, err := sockaddr(c.Addr)
		if err != nil {
			return err
		}
		return unix.Bind(c.FD, sa)
	},
	"connect": func(c Call, _ *Answer) error {
		if c.Addr == "none" { // AF_UNSPEC dissolves an association
			var raw [16]byte
			return connectRaw(c.FD, raw[:])
		}
		sa, err := sockaddr(c.Addr)
		if err != nil {
			return err
		}
		return unix.Connect(c.FD, sa)
	},
	"listen": func(c Call, _ *Answer) error { return unix.Listen(c.FD, 16) },
	"accept": func(c Call, a *Answer) error {
		if err := readable(c); err != nil {
			return err
		}
		fd, sa, err := unix.Accept(c.FD)
		a.N, a.Addr = fd, show(sa)
		return err
	},
	"getsockname": func(c Call, a *Answer) error {
		sa, err := unix.Getsockname(c.FD)
		a.Addr = show(sa)
		return err
	},
	"getpeername": func(c Call, a *Answer) error {
		sa, err := unix.Getpeername(c.FD)
		a.Addr = show(sa)
		return err
	},
	"setsockopt": func(c Call, _ *Answer) error { return unix.SetsockoptInt(c.FD, c.Proto, c.Opt, c.Value) },
	"patience": func(c Call, _ *Answer) error { // of connect, in milliseconds
		wait := unix.NsecToTimeval(int64(c.Value) * 1e6)
		return unix.SetsockoptTimeval(c.FD, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &wait)
	},
	"device": func(c Call, _ *Answer) error { return unix.BindToDevice(c.FD, c.Text) },
	"join":   joinGroup,
	"send":   send,
	"receive": func(c Call, a *Answer) error {
		if err := readable(c); err != nil {
			return err
		}
		buffer := make([]byte, 2048)
		n, sa, err := unix.Recvfrom(c.FD, buffer, 0)
		if err != nil {
			return err
		}
		a.Text, a.Addr = string(buffer[:n]), show(sa)
		return nil
	},
	"close":    func(c Call, _ *Answer) error { return unix.Close(c.FD) },
	"shutdown": func(c Call, _ *Answer) error { return unix.Shutdown(c.FD, unix.SHUT_RDWR) },
	"unshare":  unshared,
	"iouring":  bindByRing,
	"files":    func(_ Call, a *Answer) error { e, err := os.ReadDir("/proc/self/fd"); a.N = len(e); return err },
	"read":     func(c Call, a *Answer) error { b, err := os.ReadFile(c.Text); a.Text = string(b); return err },
	"bench":    bench,
	"hammer":   hammer,
	"halt":     func(Call, *Answer) error { stop.Store(true); return nil },
}

// readable waits for something to read, at most the call's timeout.
func readable(c Call) error {
	if c.Timeout == 0 {
		c.Timeout = 5000
	}
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(c.FD), Events: unix.POLLIN}}, c.Timeout)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return err
		case n == 0:
			return unix.ETIMEDOUT
		default:
			return nil
		}
	}
}

func send(c Call, a *Answer) error {
	var to unix.Sockaddr
	var err error
	if c.Addr != "" {
		if to, err = sockaddr(c.Addr); err != nil {
			return err
		}
	}
	var control []byte
	if c.Source != "" {
		source, err := netip.ParseAddr(c.Source)
		if err != nil {
			return err
		}
		if source.Is4() {
			control = unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: source.As4()})
		} else {
			control = unix.PktInfo6(&unix.Inet6Pktinfo{Addr: source.As16()})
		}
	}
	a.N, err = unix.SendmsgN(c.FD, []byte(c.Text), control, to, c.Opt|unix.MSG_NOSIGNAL)
	return err
}

// unshared makes a socket in a network namespace of its own and comes back.
func unshared(c Call, a *Answer) error {
	runtime.LockOSThread()
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	defer home.Close()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return err
	}
	a.N, err = unix.Socket(c.Family, c.Type|unix.SOCK_CLOEXEC, c.Proto)
	var ifr [40]byte
	copy(ifr[:], "lo")
	binary.NativeEndian.PutUint16(ifr[16:], unix.IFF_UP)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(a.N), unix.SIOCSIFFLAGS, uintptr(unsafe.Pointer(&ifr))); errno != 0 {
		return errno
	}
	return errors.Join(err, unix.Setns(int(home.Fd()), unix.CLONE_NEWNET))
}

func connectRaw(fd int, raw []byte) error {
	_, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&raw[0])), uintptr(len(raw)))
	if errno != 0 {
		return errno
	}
	return nil
}

func sockaddr(s string) (unix.Sockaddr, error) {
	if strings.HasPrefix(s, "@") || strings.HasPrefix(s, "/") {
		return &unix.SockaddrUnix{Name: s}, nil
	}
	ap, err := netip.ParseAddrPort(s)
	if err != nil {
		return nil, err
	}
	if ap.Addr().Is4() {
		return &unix.SockaddrInet4{Addr: ap.Addr().As4(), Port: int(ap.Port())}, nil
	}
	to := &unix.SockaddrInet6{Addr: ap.Addr().As16(), Port: int(ap.Port())}
	if zone := ap.Addr().Zone(); zone != "" {
		index, err := strconv.ParseUint(zone, 10, 32)
		if err != nil {
			return nil, err
		}
		to.ZoneId = uint32(index)
	}
	return to, nil
}

func show(sa unix.Sockaddr) string {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port)).String()
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), uint16(sa.Port)).String()
	case *unix.SockaddrUnix:
		return sa.Name
	}
	return ""
}
