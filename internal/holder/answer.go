package holder

import (
	"encoding/binary"
	"syscall"
	"unsafe"
)

// answer decides one call. It runs on a goroutine of its own and may wait as long
// as the call would have.
func (c *container) answer(r *request) {
	if err := r.read(); err != 0 {
		r.reply(0, err)
		return
	}
	s, err := r.take()
	if err != 0 {
		r.reply(0, err)
		return
	}
	if r.op == bind {
		c.bind(r, s)
		return
	}
	if !s.internet() {
		c.answerOther(r, s)
		return
	}
	id, known := c.known()
	switch {
	case !known:
		r.reply(0, syscall.EPERM) // nobody's, as long as nobody has claimed an address for it
	case s.netns != id.cookie:
		r.proceed()
	case r.op == listen:
		s.prepare(id.own(s.only6()))
		r.proceed()
	case r.op == sendto && s.kind == syscall.SOCK_STREAM && r.options&messageFastOpen == 0:
		r.proceed() // the kernel does not look at the address
	default:
		c.reach(r, s, id)
	}
}

// answerOther lets the kernel connect what is no Internet socket, but for unix sockets
// by names of the namespace that are not the container's own.
func (c *container) answerOther(r *request, s socket) {
	id, known := c.known()
	if s.domain == syscall.AF_UNIX && r.op != listen && known && s.netns == id.cookie {
		raw, err := r.addressBytes()
		if err != 0 {
			r.reply(0, err)
			return
		}
		if abstract(raw) && !id.names.has(raw) {
			c.denied.connects.Add(1)
			r.reply(0, syscall.ECONNREFUSED)
			return
		}
	}
	r.proceed()
}

// addressBytes copies the caller's address as the kernel would.
func (r *request) addressBytes() ([]byte, syscall.Errno) {
	if r.length > maxAddress {
		return nil, syscall.EINVAL
	}
	raw := make([]byte, r.length)
	return raw, r.memory(r.address, raw)
}

// bind binds the caller's socket to what its wish becomes. Nothing is left to the
// kernel: between an answer and its going on the caller could put another socket in
// the place of this one.
func (c *container) bind(r *request, s socket) {
	raw, err := r.addressBytes()
	if err != 0 {
		r.reply(0, err)
		return
	}
	wish, ok := parseAddress(raw)
	id, known := c.known()
	switch {
	case !s.internet():
		err := r.bindAs(s, raw)
		if err == 0 && known {
			id.names.note(s)
		}
		r.reply(0, err)
		return
	case !known:
		r.reply(0, syscall.EPERM)
		return
	case s.netns != id.cookie:
		r.reply(0, r.bindAs(s, raw))
		return
	case !ok && s.domain == syscall.AF_INET && unspecified(raw):
		// Linux takes this for the wildcard of IPv4 (inet_bind).
		wish, ok = parseAddress(append(binary.NativeEndian.AppendUint16(nil, syscall.AF_INET), raw[2:]...))
	}
	if !ok || int(wish.family) != s.domain {
		r.reply(0, refusal(s, raw))
		return
	}
	ip, err := id.bindable(wish.ip, s.only6())
	if err != 0 {
		c.denied.binds.Add(1)
		r.reply(0, err)
		return
	}
	mine := wish.with(ip)
	err = c.repeated(s, s.bind(mine))
	if err == 0 {
		id.noteBound(s, mine)
	}
	if !r.reply(0, err) && err == 0 {
		c.interrupted(s)
	}
}

// unspecified tells the address of family AF_UNSPEC and IP 0.0.0.0.
func unspecified(raw []byte) bool {
	return len(raw) >= 16 && binary.NativeEndian.Uint16(raw) == syscall.AF_UNSPEC && binary.NativeEndian.Uint32(raw[4:]) == 0
}

// refusal is what the kernel says of an address that is none of this socket's.
func refusal(s socket, raw []byte) syscall.Errno {
	least := 16
	if s.domain == syscall.AF_INET6 {
		least = 24
	}
	if len(raw) < least {
		return syscall.EINVAL
	}
	return syscall.EAFNOSUPPORT
}

func (i guarded) noteBound(s socket, a address) {
	if have, ok := s.name(); ok {
		a = have // with the port that the kernel has chosen
	}
	where := onOwn
	if a.ip.Unmap().IsLoopback() || six(a.ip) && private6(i.Loopback6, a.ip) {
		where = onLoopback
	}
	i.ports.note(port{datagram: s.kind == syscall.SOCK_DGRAM, number: a.port, six: six(a.ip)}, where)
}

// reach answers connect and sendto.
func (c *container) reach(r *request, s socket, i guarded) {
	raw, err := r.addressBytes()
	if err != 0 {
		r.reply(0, err)
		return
	}
	to, ok := parseAddress(raw)
	if !ok || s.domain == syscall.AF_INET && to.family != syscall.AF_INET {
		r.proceed() // to dissolve a connection, or for the kernel to refuse
		return
	}
	switch i.towards(to.ip) {
	case nowhere:
		c.denied.connects.Add(1)
		r.reply(0, syscall.ENETUNREACH)
	case outward:
		s.prepare(i.own(six(to.ip)))
		r.proceed()
	case within:
		r.proceed()
	case inward:
		to = to.with(i.ports.inward(i.Identity, to.ip, port{datagram: s.kind == syscall.SOCK_DGRAM, number: to.port}))
		switch {
		case r.op == sendto:
			s.prepare(i.own(six(to.ip)))
			r.transmit(s, to)
			return
		case s.kind == syscall.SOCK_DGRAM:
			// The kernel would take 127.0.0.1, where no answer would find it.
			s.prepare(i.loopback(six(to.ip)))
		}
		r.reply(0, s.address(syscall.SYS_CONNECT, to.raw))
	}
}

// maxMessage is what a datagram can hold, and a first packet of TCP is less.
const maxMessage = 1 << 16

// transmit sends the caller's data for it.
func (r *request) transmit(s socket, to address) {
	if r.size > maxMessage {
		r.reply(0, syscall.EMSGSIZE)
		return
	}
	data := make([]byte, r.size+1) // one more, so that there is an address of it
	if err := r.memory(r.data, data[:r.size]); err != 0 {
		r.reply(0, err)
		return
	}
	n, _, err := syscall.Syscall6(syscall.SYS_SENDTO, uintptr(s.fd), uintptr(unsafe.Pointer(&data[0])), uintptr(r.size),
		uintptr(r.options|syscall.MSG_NOSIGNAL), uintptr(unsafe.Pointer(&to.raw[0])), uintptr(len(to.raw)))
	r.reply(int(n), err)
}
