package holder_test

import (
	"fmt"
	"net/netip"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// hands are a process's sockets, by the names that its orders give them.
type hands struct{ fds map[string]int }

// kinds of sockets.
func kind(name string) (family, kind, protocol int) {
	switch name {
	case "tcp4":
		return unix.AF_INET, unix.SOCK_STREAM, 0
	case "tcp6":
		return unix.AF_INET6, unix.SOCK_STREAM, 0
	case "mptcp4":
		return unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_MPTCP
	case "udp4":
		return unix.AF_INET, unix.SOCK_DGRAM, 0
	case "udp6":
		return unix.AF_INET6, unix.SOCK_DGRAM, 0
	case "ping4":
		return unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_ICMP
	case "netlink":
		return unix.AF_NETLINK, unix.SOCK_RAW, 0
	}
	return unix.AF_UNIX, unix.SOCK_STREAM, 0
}

// address reads "10.77.0.1:80" and "[::]:80"; all else is the path of a unix socket,
// or with an @ an abstract name.
func address(text string) unix.Sockaddr {
	ap, err := netip.ParseAddrPort(text)
	switch {
	case err != nil:
		return &unix.SockaddrUnix{Name: text}
	case ap.Addr().Is4():
		return &unix.SockaddrInet4{Addr: ap.Addr().As4(), Port: int(ap.Port())}
	}
	return &unix.SockaddrInet6{Addr: ap.Addr().As16(), Port: int(ap.Port())}
}

func text(sa unix.Sockaddr, err error) (string, error) {
	switch a := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port)).String(), err
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(a.Addr), uint16(a.Port)).String(), err
	}
	return fmt.Sprintf("%T", sa), err
}

func (h *hands) obey(words []string) (string, error) {
	op, name := words[0], words[1]
	fd, last := h.fds[name], words[len(words)-1]
	const ok = "ok"
	switch op {
	case "socket":
		family, kind, protocol := kind(last)
		fd, err := unix.Socket(family, kind, protocol)
		if err == nil && kind == unix.SOCK_DGRAM {
			err = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 250_000})
		}
		h.fds[name] = fd
		return ok, err
	case "only6":
		return ok, unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1)
	case "bind":
		return ok, unix.Bind(fd, address(last))
	case "connect":
		return ok, unix.Connect(fd, address(last))
	case "listen":
		return ok, unix.Listen(fd, 8)
	case "accept":
		peer, from, err := unix.Accept(fd)
		h.fds[last] = peer
		if err != nil {
			return "", err
		}
		return text(from, nil)
	case "send":
		return ok, unix.Sendto(fd, []byte(words[2]), 0, address(last))
	case "receive":
		buf := make([]byte, 100)
		n, from, err := unix.Recvfrom(fd, buf, 0)
		if err != nil {
			return "", err
		}
		who, err := text(from, nil)
		return string(buf[:n]) + " " + who, err
	case "name":
		return text(unix.Getsockname(fd))
	case "peer":
		return text(unix.Getpeername(fd))
	case "close":
		return ok, unix.Close(fd)
	case "replace": // NAME by OTHER
		return ok, unix.Dup2(h.fds[last], fd)
	case "chdir":
		return ok, os.Chdir(last)
	case "user":
		uid, err := strconv.Atoi(last)
		_, _, errno := unix.RawSyscall(unix.SYS_SETUID, uintptr(uid), 0, 0) // of this thread
		if errno != 0 {
			err = errno
		}
		return ok, err
	case "signals":
		return ok, signals(last)
	case "time": // CALL ADDRESS
		return measure(name, last)
	case "crowd":
		return ok, crowd(last)
	case "race":
		return race(last)
	case "umask":
		mask, err := strconv.ParseUint(last, 8, 32)
		unix.Umask(int(mask))
		return ok, err
	}
	return "", fmt.Errorf("no such order: %s", op)
}
