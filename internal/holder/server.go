package holder

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/topology"
)

// Command is the name by which particle-runtime is the holder.
const Command = "particle-holder"

// Names in the holder's directory, beside the identities. No container's id is like
// them.
const (
	socketName = "sock"
	lockName   = "lock"
)

// order is what a client sends: one message on a connection of its own, answered by
// a receipt.
type order struct {
	// Hold comes with a listener's descriptor.
	Hold topology.ContainerID `json:"hold,omitempty"`
	// Fresh says that the listener is of a container's first process, so that what
	// was known of one with the same id is of an earlier run.
	Fresh bool `json:"fresh,omitempty"`
	// Count asks what is held.
	Count bool `json:"count,omitempty"`
	// End asks the holder to go, unless it holds something.
	End bool `json:"end,omitempty"`
}

// maxReceipt is how long one can be, bytes: some 15,000 containers.
const maxReceipt = 1 << 20

// receipt answers.
type receipt struct {
	Err        string                           `json:"err,omitempty"`
	Containers map[topology.ContainerID]Denials `json:"containers,omitempty"`
}

// Denials count what a container was kept from.
type Denials struct {
	Binds    uint64 `json:"binds,omitempty"`    // to addresses that are not its own
	Connects uint64 `json:"connects,omitempty"` // to loopback addresses that are not its own
}

// orderLimit is how long either side may be silent. A client calls before it puts
// itself under a filter, and a host that starts hundreds of containers has each wait for
// its turn.
const orderLimit = 30 * time.Second

// maxThreads is what a thousand and more containers can make the holder wait with, of
// which each has maxCalls. Go ends a process that needs more.
const maxThreads = 1 << 17

// maxFiles is the most that a kernel allows a process unless it is told otherwise
// (fs.nr_open).
const maxFiles = 1 << 20

// server is the holder at work.
type server struct {
	dir   string
	epoll int
	door  int // the listening socket

	mu         sync.Mutex // guards what follows
	containers map[topology.ContainerID]*container
	listeners  map[int]*container // by descriptor
	ended      bool               // by an order: nothing more is held

	faces faces // has a lock of its own, which ranks last
}

// Serve is the holder: it takes the directory for itself, tells by closing ready, if
// there is one, that it answers, and serves until it is ended by an order. If there is one already, it
// returns nil at once.
func Serve(dir string, ready *os.File) error {
	s, err := open(dir)
	if s == nil || err != nil {
		return err
	}
	_ = ready.Close()
	debug.SetMaxThreads(maxThreads)
	// Each container takes a descriptor, and each call some more. Where this is not
	// allowed, the limit that it was started with holds.
	_ = syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: maxFiles, Max: maxFiles})
	go s.watch()
	return s.admit()
}

func open(dir string) (*server, error) {
	fail := func(err error) (*server, error) {
		return nil, &fault.Error{Op: "hold address guards in", On: dir, Err: err}
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fail(err)
	}
	lock, err := syscall.Open(filepath.Join(dir, lockName), syscall.O_RDWR|syscall.O_CREAT|syscall.O_CLOEXEC, 0o600)
	if err != nil {
		return fail(err)
	}
	if err := syscall.Flock(lock, syscall.LOCK_EX|syscall.LOCK_NB); err == syscall.EWOULDBLOCK {
		return nil, nil
	} else if err != nil {
		return fail(err)
	}
	s := &server{dir: dir, containers: map[topology.ContainerID]*container{}, listeners: map[int]*container{}, faces: faces{all: map[Identity]*face{}}}
	if s.epoll, err = syscall.EpollCreate1(syscall.EPOLL_CLOEXEC); err != nil {
		return fail(err)
	}
	if s.door, err = openDoor(filepath.Join(dir, socketName)); err != nil {
		return fail(err)
	}
	return s, nil
}

// openDoor listens where root alone may come. The lock is held, so a socket that is
// there is a dead one's.
func openDoor(path string) (int, error) {
	if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
		return -1, err
	}
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_SEQPACKET|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	if err := syscall.Bind(fd, &syscall.SockaddrUnix{Name: path}); err != nil {
		return -1, err
	}
	return fd, syscall.Listen(fd, 1024)
}

// admit serves clients until an order ends it, beside each other: one that is slow
// keeps nobody waiting.
func (s *server) admit() error {
	for {
		fd, _, err := syscall.Accept4(s.door, syscall.SOCK_CLOEXEC)
		switch err {
		case nil:
			go s.serve(fd)
		case syscall.EINTR, syscall.ECONNABORTED, syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM:
			continue
		case syscall.EINVAL: // the door is shut
			return nil
		default:
			return &fault.Error{Op: "hold address guards in", On: s.dir, Err: err}
		}
	}
}

// serve answers one client.
func (s *server) serve(fd int) {
	defer syscall.Close(fd)
	wait := syscall.Timeval{Sec: int64(orderLimit / time.Second)}
	_ = syscall.SetsockoptTimeval(fd, syscall.SOL_SOCKET, syscall.SO_RCVTIMEO, &wait)
	o, listener, err := receive(fd)
	r := receipt{}
	switch {
	case err != nil:
	case o.Hold != "" && listener >= 0:
		err = s.hold(o, listener)
		if err == nil {
			listener = -1
		}
	case o.Count:
		r.Containers = s.count()
	case o.End:
		err = s.end()
	default:
		err = errors.New("it is asked for nothing it knows")
	}
	if listener >= 0 {
		_ = syscall.Close(listener)
	}
	ends := o.End && err == nil
	if err != nil {
		r.Err = err.Error()
	}
	raw, err := json.Marshal(r)
	if err == nil {
		// What a socket may hold is less than thousands of containers take.
		_ = syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_SNDBUFFORCE, maxReceipt)
		// A client that is gone needs none.
		_ = uninterrupted(func() error { return syscall.Sendmsg(fd, raw, nil, nil, syscall.MSG_NOSIGNAL) })
	}
	if ends {
		_ = syscall.Shutdown(s.door, syscall.SHUT_RDWR)
	}
}

// end has nothing more held, if nothing is.
func (s *server) end() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := len(s.containers); n > 0 {
		return fmt.Errorf("it holds the guards of %d containers", n)
	}
	s.ended = true
	return nil
}

// receive reads an order, and the descriptor that came with it or -1.
func receive(fd int) (o order, listener int, err error) {
	raw, oob := make([]byte, 4096), make([]byte, syscall.CmsgSpace(4))
	var n, oobn, flags int
	err = uninterrupted(func() (err error) {
		n, oobn, flags, _, err = syscall.Recvmsg(fd, raw, oob, syscall.MSG_CMSG_CLOEXEC)
		return err
	})
	if err == nil && flags&syscall.MSG_CTRUNC != 0 {
		err = syscall.EMFILE
	}
	if err != nil {
		return o, -1, err
	}
	listener = -1
	if messages, err := syscall.ParseSocketControlMessage(oob[:oobn]); err == nil && len(messages) == 1 {
		if fds, err := syscall.ParseUnixRights(&messages[0]); err == nil && len(fds) == 1 {
			listener = fds[0]
		}
	}
	return o, listener, json.Unmarshal(raw[:n], &o)
}

// hold watches a listener from now on.
func (s *server) hold(o order, listener int) error {
	id := o.Hold
	if _, err := topology.ParseContainerID(string(id)); err != nil {
		return err
	}
	flags := uint64(flagSyncWakeUp)
	// The kernel takes the value itself in place of a pointer; older ones know no flags.
	_ = uninterrupted(func() error {
		if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, uintptr(listener), ioctlFlags, uintptr(flags)); errno != 0 {
			return errno
		}
		return nil
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return errors.New("it has been told to end")
	}
	event := syscall.EpollEvent{Events: syscall.EPOLLIN, Fd: int32(listener)}
	if err := syscall.EpollCtl(s.epoll, syscall.EPOLL_CTL_ADD, listener, &event); err != nil {
		return err
	}
	c := s.containers[id]
	if c == nil || o.Fresh {
		c = &container{id: id, dir: s.dir, faces: &s.faces}
		s.containers[id] = c
	}
	s.listeners[listener] = c
	c.listeners++
	return nil
}

func (s *server) count() map[topology.ContainerID]Denials {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make(map[topology.ContainerID]Denials, len(s.containers))
	for id, c := range s.containers {
		all[id] = Denials{c.denied.binds.Load(), c.denied.connects.Load()}
	}
	return all
}

// watch waits for calls of all containers.
func (s *server) watch() {
	events := make([]syscall.EpollEvent, 64)
	for {
		n, err := syscall.EpollWait(s.epoll, events, -1)
		if err != nil {
			continue // EINTR
		}
		for _, e := range events[:n] {
			switch {
			case e.Events&syscall.EPOLLIN != 0:
				s.take(int(e.Fd))
			case e.Events&syscall.EPOLLHUP != 0: // nobody lives under the filter any more
				s.drop(int(e.Fd))
			} // else a signal kept the kernel from looking (EPOLLERR)
		}
	}
}

// take receives a call and has it answered.
func (s *server) take(listener int) {
	c := s.admitted(listener)
	if c == nil {
		return
	}
	r := &request{listener: listener}
	if errno := ioctl(listener, ioctlReceive, unsafe.Pointer(&r.notification)); errno != 0 {
		s.answered(c) // the caller is gone, or a signal came; then it is asked for again
		return
	}
	go func() {
		defer s.answered(c)
		defer func() {
			// What one container asks must not end the guards of all.
			if recover() != nil {
				r.reply(0, syscall.ENOSYS)
			}
		}()
		c.answer(r)
	}()
}

// admitted gives the container whose call can be answered now; if it has maxCalls, the
// listener waits and nil is returned.
func (s *server) admitted(listener int) *container {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.listeners[listener]
	if c.calls == maxCalls {
		s.look(listener, 0)
		c.waiting = append(c.waiting, listener)
		return nil
	}
	c.calls++
	return c
}

// answered lets the listeners be looked at again that have waited.
func (s *server) answered(c *container) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c.calls--
	for _, listener := range c.waiting {
		s.look(listener, syscall.EPOLLIN)
	}
	c.waiting = nil
}

// look tells what a listener is waited for: calls, or its end alone.
func (s *server) look(listener int, events uint32) {
	event := syscall.EpollEvent{Events: events, Fd: int32(listener)}
	_ = syscall.EpollCtl(s.epoll, syscall.EPOLL_CTL_MOD, listener, &event) // it is there
}

// drop lets a listener go, and the container with its last one.
func (s *server) drop(listener int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	_ = syscall.EpollCtl(s.epoll, syscall.EPOLL_CTL_DEL, listener, nil)
	_ = syscall.Close(listener)
	c := s.listeners[listener]
	delete(s.listeners, listener)
	c.waiting = slices.DeleteFunc(c.waiting, func(l int) bool { return l == listener })
	c.listeners--
	if c.listeners > 0 {
		return
	}
	c.gone()
	if s.containers[c.id] == c {
		delete(s.containers, c.id)
	}
}
