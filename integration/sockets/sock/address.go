package sock

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

// In is the raw socket address of an IPv4 or IPv6 address; an IPv4-mapped one
// stays IPv6.
func In(addr netip.Addr, port uint16) []byte {
	if addr.Is4() {
		raw := head(unix.AF_INET, port, unix.SizeofSockaddrInet4)
		copy(raw[4:], addr.AsSlice())
		return raw
	}
	raw := head(unix.AF_INET6, port, unix.SizeofSockaddrInet6)
	copy(raw[8:], addr.AsSlice())
	return raw
}

// At is In for an address in text, which has to be right.
func At(addr string, port uint16) []byte { return In(netip.MustParseAddr(addr), port) }

// As gives a raw address another family, and nothing else.
func As(raw []byte, family uint16) []byte {
	out := append([]byte(nil), raw...)
	binary.NativeEndian.PutUint16(out, family)
	return out
}

// Unspec is the address that disconnects.
func Unspec() []byte { return head(unix.AF_UNSPEC, 0, unix.SizeofSockaddrInet4) }

// Abstract is the address of a unix socket without a file.
func Abstract(name string) []byte {
	raw := make([]byte, 3+len(name))
	binary.NativeEndian.PutUint16(raw, unix.AF_UNIX)
	copy(raw[3:], name)
	return raw
}

// Netlink is the address of a netlink socket with a number.
func Netlink(number uint32) []byte {
	raw := make([]byte, unix.SizeofSockaddrNetlink)
	binary.NativeEndian.PutUint16(raw, unix.AF_NETLINK)
	binary.NativeEndian.PutUint32(raw[4:], number)
	return raw
}

func head(family, port uint16, size int) []byte {
	raw := make([]byte, size)
	binary.NativeEndian.PutUint16(raw, family)
	binary.BigEndian.PutUint16(raw[2:], port)
	return raw
}

// AddrPort is the address in a decoded socket address; not valid for other
// families than IPv4 and IPv6.
func AddrPort(sa unix.Sockaddr) netip.AddrPort {
	switch a := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(a.Addr), uint16(a.Port))
	}
	return netip.AddrPort{}
}

// Text renders a decoded socket address: "10.0.0.2:80", "@name", "" for none.
func Text(sa unix.Sockaddr) string {
	switch a := sa.(type) {
	case nil:
		return ""
	case *unix.SockaddrInet4, *unix.SockaddrInet6:
		return AddrPort(sa).String()
	case *unix.SockaddrUnix:
		return a.Name
	}
	return fmt.Sprintf("%T", sa)
}

// Errno names an errno; "" for none. What is no errno comes as its text.
func Errno(err error) string {
	if err == nil {
		return ""
	}
	if errno, ok := err.(unix.Errno); ok {
		return unix.ErrnoName(errno)
	}
	return err.Error()
}

// PacketDestination is the address a received packet was sent to, from its control
// messages: IP_PKTINFO, IPV6_RECVPKTINFO. ENOMSG if none tells.
func PacketDestination(control []byte) (netip.Addr, error) {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return netip.Addr{}, err
	}
	for _, m := range messages {
		switch {
		// ipi_ifindex, ipi_spec_dst, ipi_addr
		case m.Header.Level == unix.SOL_IP && m.Header.Type == unix.IP_PKTINFO && len(m.Data) >= unix.SizeofInet4Pktinfo:
			return netip.AddrFrom4([4]byte(m.Data[8:12])), nil
		case m.Header.Level == unix.SOL_IPV6 && m.Header.Type == unix.IPV6_PKTINFO && len(m.Data) >= unix.SizeofInet6Pktinfo:
			return netip.AddrFrom16([16]byte(m.Data[:16])), nil
		}
	}
	return netip.Addr{}, unix.ENOMSG
}

// ControlInt is a control message that holds a number, as for IP_TOS.
func ControlInt(level, kind, value int) []byte {
	b := make([]byte, unix.CmsgSpace(4))
	h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
	h.Level, h.Type = int32(level), int32(kind)
	h.SetLen(unix.CmsgLen(4))
	binary.NativeEndian.PutUint32(b[unix.CmsgLen(0):], uint32(value))
	return b
}
