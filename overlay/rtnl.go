package overlay

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// What a network holds of other hosts goes to the kernel by the thousand. The
// library sends one request, and waits for its answer, for each; here many go in
// one send and the last alone is acknowledged, which takes a fifth of the time.
// Dumps are filtered by the kernel and parsed without an allocation each.

// rtnl is an rtnetlink socket, which acts in the namespace it was opened in. One
// goroutine uses it at a time.
type rtnl struct {
	fd     int
	seq    uint32
	answer []byte // where answers are read; nil until there is one
}

const (
	// sendSize bounds one send; the socket's buffer takes three times as much.
	sendSize = 64 << 10
	// answerSize is more than the kernel puts into one answer.
	answerSize = 64 << 10
	// backlog has room for the refusal of each request of one send.
	backlog = 1 << 20
)

// openRTNL opens a socket in the namespace of the calling thread.
func openRTNL() (*rtnl, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open rtnetlink socket: %w", err)
	}
	limit := unix.NsecToTimeval(socketTimeout.Nanoseconds())
	err = errors.Join(
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, backlog),
		unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1), // a refusal does not repeat the request
	)
	if err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("set up rtnetlink socket: %w", err)
	}
	// Without it (Linux 4.20) the kernel filters less, and select does the rest.
	_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_GET_STRICT_CHK, 1)
	return &rtnl{fd: fd}, nil
}

func (r *rtnl) close() { _ = unix.Close(r.fd) }

// request is one message that is being written.
type request struct {
	buf   []byte
	start int // of the message in buf
}

func align(n int) int { return (n + unix.NLMSG_ALIGNTO - 1) &^ (unix.NLMSG_ALIGNTO - 1) }

// begin starts a message; its body and attributes follow, then end.
func (q *request) begin(kind, flags uint16, seq uint32) {
	q.start = len(q.buf)
	q.buf = binary.NativeEndian.AppendUint32(q.buf, 0) // its length
	q.buf = binary.NativeEndian.AppendUint16(q.buf, kind)
	q.buf = binary.NativeEndian.AppendUint16(q.buf, flags)
	q.buf = binary.NativeEndian.AppendUint32(q.buf, seq)
	q.buf = binary.NativeEndian.AppendUint32(q.buf, 0) // from whoever sends
}

func (q *request) attr(kind uint16, data []byte) {
	q.buf = binary.NativeEndian.AppendUint16(q.buf, uint16(unix.SizeofRtAttr+len(data)))
	q.buf = binary.NativeEndian.AppendUint16(q.buf, kind)
	q.buf = append(q.buf, data...)
	for len(q.buf)%unix.NLMSG_ALIGNTO != 0 {
		q.buf = append(q.buf, 0)
	}
}

func (q *request) attr32(kind uint16, v uint32) {
	q.attr(kind, binary.NativeEndian.AppendUint32(nil, v))
}

func (q *request) end() {
	binary.NativeEndian.PutUint32(q.buf[q.start:], uint32(len(q.buf)-q.start))
}

// acknowledged asks for an answer to the message that was ended last.
func (q *request) acknowledged() {
	at := q.buf[q.start+6:]
	binary.NativeEndian.PutUint16(at, binary.NativeEndian.Uint16(at)|unix.NLM_F_ACK)
}

// object is something the kernel keeps for another host.
type object interface {
	fmt.Stringer
	// set writes the body of the request that makes it so, whatever was there
	// under the same key.
	set(q *request, seq uint32)
	// unset writes the body of the one that removes it.
	unset(q *request, seq uint32)
}

// change is one object that comes or goes.
type change struct {
	object
	gone bool
}

func (c change) write(q *request, seq uint32) {
	if c.gone {
		c.unset(q, seq)
	} else {
		c.set(q, seq)
	}
}

func (c change) fault(errno unix.Errno) error {
	if c.gone {
		return fmt.Errorf("remove %s: %w", c, errno)
	}
	return fmt.Errorf("set %s: %w", c, errno)
}

// apply makes changes in their order. It goes on after one that is refused;
// removing what is gone is success.
func (r *rtnl) apply(changes []change) error {
	var errs []error
	q := request{buf: make([]byte, 0, min(sendSize, 128*len(changes)))}
	for len(changes) > 0 {
		q.buf = q.buf[:0]
		first, n := r.seq+1, 0
		for n < len(changes) && len(q.buf) < sendSize-1024 {
			r.seq++
			changes[n].write(&q, r.seq)
			n++
		}
		q.acknowledged()
		if err := unix.Sendto(r.fd, q.buf, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
			return errors.Join(append(errs, os.NewSyscallError("send to rtnetlink", err))...)
		}
		refused, err := r.refusals(changes[:n], first)
		errs = append(errs, refused...)
		if err != nil {
			return errors.Join(append(errs, err)...)
		}
		changes = changes[n:]
	}
	return errors.Join(errs...)
}

// tellAtMost bounds how many refusals are told: when one fails for want of
// memory or of a device, a thousand do.
const tellAtMost = 5

// refusals reads answers up to that to the last of the changes, which were sent
// with sequence numbers from first on.
func (r *rtnl) refusals(changes []change, first uint32) (refused []error, err error) {
	done := false
	untold := 0
	for !done && err == nil {
		err = r.receive(func(kind, _ uint16, seq uint32, body []byte) error {
			at := int(seq - first)
			if kind != unix.NLMSG_ERROR || at < 0 || at >= len(changes) || len(body) < 4 {
				return nil // of a request that was given up
			}
			done = done || at == len(changes)-1
			errno := unix.Errno(-int32(binary.NativeEndian.Uint32(body)))
			switch {
			case errno == 0, changes[at].gone && absent(errno):
			case len(refused) < tellAtMost:
				refused = append(refused, changes[at].fault(errno))
			default:
				untold++
			}
			return nil
		})
	}
	if untold > 0 {
		refused = append(refused, fmt.Errorf("and %d more changes were refused", untold))
	}
	return refused, err
}

// absent are the answers to the removal of what is not there.
func absent(errno unix.Errno) bool {
	return errno == unix.ESRCH || errno == unix.ENOENT || errno == unix.ENODEV
}

// receive hands out the messages of one answer of the kernel. They are not to be
// kept.
func (r *rtnl) receive(each func(kind, flags uint16, seq uint32, body []byte) error) error {
	if r.answer == nil {
		r.answer = make([]byte, answerSize)
	}
	n, err := 0, error(unix.EINTR)
	for errors.Is(err, unix.EINTR) {
		n, _, err = unix.Recvfrom(r.fd, r.answer, 0)
	}
	if err != nil {
		return os.NewSyscallError("receive from rtnetlink", err)
	}
	for buf := r.answer[:n]; len(buf) >= unix.SizeofNlMsghdr; {
		size := int(binary.NativeEndian.Uint32(buf))
		if size < unix.SizeofNlMsghdr || size > len(buf) {
			return errors.New("an answer of rtnetlink is cut off")
		}
		err := each(binary.NativeEndian.Uint16(buf[4:]), binary.NativeEndian.Uint16(buf[6:]),
			binary.NativeEndian.Uint32(buf[8:]), buf[unix.SizeofNlMsghdr:size])
		if err != nil {
			return err
		}
		buf = buf[min(align(size), len(buf)):]
	}
	return nil
}

// dump hands out the bodies of the messages that answer a request, which write
// puts down with the flags and number given. A dump that a change interrupted is
// begun anew, after reset.
func (r *rtnl) dump(write func(q *request, flags uint16, seq uint32), reset func(), each func(body []byte)) error {
	const attempts = 5
	for range attempts {
		reset()
		whole, err := r.dumpOnce(write, each)
		if err != nil || whole {
			return err
		}
	}
	return errors.New("the kernel's tables change faster than they can be read")
}

func (r *rtnl) dumpOnce(write func(q *request, flags uint16, seq uint32), each func(body []byte)) (whole bool, err error) {
	r.seq++
	var q request
	write(&q, unix.NLM_F_REQUEST|unix.NLM_F_DUMP, r.seq)
	if err := unix.Sendto(r.fd, q.buf, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return false, os.NewSyscallError("send to rtnetlink", err)
	}
	whole = true
	for done := false; !done && err == nil; {
		err = r.receive(func(kind, flags uint16, seq uint32, body []byte) error {
			if seq != r.seq {
				return nil
			}
			whole = whole && flags&unix.NLM_F_DUMP_INTR == 0
			switch kind {
			case unix.NLMSG_DONE, unix.NLMSG_ERROR:
				done = true
				if errno := status(body); errno != 0 && errno != unix.ENOENT { // a table that nothing is in yet
					return fmt.Errorf("list what the kernel holds: %w", errno)
				}
			default:
				each(body)
			}
			return nil
		})
	}
	return whole, err
}

func status(body []byte) unix.Errno {
	if len(body) < 4 {
		return 0
	}
	return unix.Errno(-int32(binary.NativeEndian.Uint32(body)))
}

// attributes hands out those after a body's fixed part of the size given.
func attributes(body []byte, fixed int, each func(kind uint16, data []byte)) {
	for rest := body[min(align(fixed), len(body)):]; len(rest) >= unix.SizeofRtAttr; {
		size := int(binary.NativeEndian.Uint16(rest))
		if size < unix.SizeofRtAttr || size > len(rest) {
			return
		}
		each(binary.NativeEndian.Uint16(rest[2:])&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER), rest[unix.SizeofRtAttr:size])
		rest = rest[min(align(size), len(rest)):]
	}
}
