package sock

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// Entries by name.
const (
	Syscall     = "syscall"      // a system call for each operation
	Socketcall  = "socketcall"   // system call 102 of 386 for all of them
	Uring       = "uring"        // io_uring, in the context of the caller
	UringAsync  = "uring-async"  // io_uring, by a worker thread
	UringSqpoll = "uring-sqpoll" // io_uring, by its polling thread
	// io_uring, which sends by other requests than the one that takes a message: with
	// the address in the request itself, from the caller's pages, and both.
	UringSend     = "uring-send"
	UringMessages = "uring-sendmsg-zc"
	UringPages    = "uring-send-zc"
)

// operation is what is asked of the socket layer.
type operation int

const (
	opSocket operation = iota
	opBind
	opConnect
	opListen
	opSendmsg
)

// request is one operation. Its memory is the kernel's until the entry returns.
type request struct {
	op   operation
	fd   int
	args [3]int       // socket: family, type, protocol; listen: backlog; sendmsg: flags
	addr []byte       // bind, connect
	size int          // bind, connect: the length to tell, which may be a lie
	msg  *unix.Msghdr // sendmsg
}

// entry performs a request.
type entry interface {
	do(r request) (int, error)
	close() error
}

// Kernel is the socket layer behind one entry.
type Kernel struct {
	entry    entry
	patience time.Duration
	open     []int
}

// Open prepares an entry; patience bounds each of its calls. The error wraps ENOSYS where the architecture does not
// have it, and EPERM where io_uring is forbidden.
func Open(name string, patience time.Duration) (*Kernel, error) {
	var e entry
	var err error
	switch name {
	case Syscall:
		e = direct{}
	case Socketcall:
		e, err = newSocketcall()
	case Uring, UringAsync, UringSqpoll, UringSend, UringMessages, UringPages:
		e, err = newRing(name, patience)
	default:
		err = unix.EINVAL
	}
	if err != nil {
		return nil, fmt.Errorf("entry %s: %w", name, err)
	}
	return &Kernel{entry: e, patience: patience}, nil
}

// Close closes the entry and every socket.
func (k *Kernel) Close() error {
	k.Reset()
	return k.entry.close()
}

// Reset closes every socket.
func (k *Kernel) Reset() {
	for _, fd := range k.open {
		_ = unix.Close(fd) // the test may have closed it
	}
	k.open = nil
}

// Adopt leaves a descriptor to Reset.
func (k *Kernel) Adopt(fd int) { k.open = append(k.open, fd) }

// Socket makes a socket whose calls end in time.
func (k *Kernel) Socket(family, kind, protocol int) (int, error) {
	fd, err := k.entry.do(request{op: opSocket, args: [3]int{family, kind | unix.SOCK_CLOEXEC, protocol}})
	if err != nil {
		return -1, err
	}
	k.Adopt(fd)
	return fd, k.bound(fd)
}

// bound gives a socket its timeouts.
func (k *Kernel) bound(fd int) error {
	patience := unix.NsecToTimeval(k.patience.Nanoseconds())
	return errors.Join(
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &patience),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &patience))
}

// Bind binds to an address.
func (k *Kernel) Bind(fd int, addr []byte) error { return k.BindLength(fd, addr, len(addr)) }

// BindLength tells the kernel a length of the address other than its own. At
// most 128 bytes are looked at; shorter addresses must not be called longer.
func (k *Kernel) BindLength(fd int, addr []byte, length int) error {
	_, err := k.entry.do(request{op: opBind, fd: fd, addr: addr, size: length})
	return err
}

// Connect connects, or with an address of AF_UNSPEC disconnects. A handshake that
// takes longer than the patience ends with EINPROGRESS or ETIMEDOUT.
func (k *Kernel) Connect(fd int, addr []byte) error {
	_, err := k.entry.do(request{op: opConnect, fd: fd, addr: addr, size: len(addr)})
	if errors.Is(err, unix.EINTR) { // it goes on nevertheless: connect(2)
		return k.connected(fd)
	}
	return err
}

// connected waits for the end of a handshake.
func (k *Kernel) connected(fd int) error {
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, int(k.patience.Milliseconds()))
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return err
		case n == 0:
			return unix.EINPROGRESS
		}
		code, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
		if err == nil && code != 0 {
			err = unix.Errno(code)
		}
		return err
	}
}

// Listen makes a listener of a socket.
func (k *Kernel) Listen(fd int) error {
	_, err := k.entry.do(request{op: opListen, fd: fd, args: [3]int{128}})
	return err
}

// Message is what Send sends.
type Message struct {
	Data    []byte
	To      []byte // raw address; none for a connected socket
	Control []byte // control messages
	Flags   int
}

// Send is sendmsg(2).
func (k *Kernel) Send(fd int, m Message) (int, error) {
	vec := &unix.Iovec{}
	if len(m.Data) > 0 {
		vec.Base = &m.Data[0]
		vec.SetLen(len(m.Data))
	}
	h := &unix.Msghdr{Iov: vec}
	h.SetIovlen(1)
	if len(m.To) > 0 {
		h.Name, h.Namelen = &m.To[0], uint32(len(m.To))
	}
	if len(m.Control) > 0 {
		h.Control = &m.Control[0]
		h.SetControllen(len(m.Control))
	}
	for {
		n, err := k.entry.do(request{op: opSendmsg, fd: fd, args: [3]int{m.Flags | unix.MSG_NOSIGNAL}, msg: h})
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}

// Await waits until there is something to accept or to receive; EAGAIN if there is
// not in time.
func (k *Kernel) Await(fd int, patience time.Duration) error {
	end := time.Now().Add(patience)
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(max(0, time.Until(end).Milliseconds())))
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return err
		case n == 0:
			return unix.EAGAIN
		}
		return nil
	}
}

// Accept waits for a connection. Its socket has timeouts, too.
func (k *Kernel) Accept(fd int) (int, unix.Sockaddr, error) {
	// A listener of MPTCP does not heed its timeout.
	if err := k.Await(fd, k.patience); err != nil {
		return -1, nil, err
	}
	for {
		conn, peer, err := unix.Accept4(fd, unix.SOCK_CLOEXEC)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return -1, nil, err
		}
		k.Adopt(conn)
		return conn, peer, k.bound(conn)
	}
}

// Receive is recvmsg(2).
func (k *Kernel) Receive(fd int, data, control []byte) (n, controlled int, from unix.Sockaddr, err error) {
	for {
		n, controlled, _, from, err = unix.Recvmsg(fd, data, control, 0)
		if !errors.Is(err, unix.EINTR) {
			return n, controlled, from, err
		}
	}
}
