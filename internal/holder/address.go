package holder

import (
	"encoding/binary"
	"net/netip"
	"syscall"
)

// address is an Internet socket's address as it lies in memory, with what matters of
// it taken out.
type address struct {
	raw    []byte // struct sockaddr_in or sockaddr_in6
	family uint16
	port   uint16
	ip     netip.Addr // IPv4 in IPv6 stays so
}

// parseAddress reads one; ok is false if it is of another family, or too short, and
// then the kernel takes it for no address of an Internet socket either.
func parseAddress(raw []byte) (a address, ok bool) {
	if len(raw) < 2 {
		return a, false
	}
	a.raw, a.family = raw, binary.NativeEndian.Uint16(raw)
	switch {
	case a.family == syscall.AF_INET && len(raw) >= 16:
		a.ip = netip.AddrFrom4([4]byte(raw[4:8]))
	case a.family == syscall.AF_INET6 && len(raw) >= 24: // SIN6_LEN_RFC2133
		a.ip = netip.AddrFrom16([16]byte(raw[8:24]))
	default:
		return a, false
	}
	a.port = binary.BigEndian.Uint16(raw[2:])
	return a, true
}

// with is the same address with another IP.
func (a address) with(ip netip.Addr) address {
	a.raw = append([]byte(nil), a.raw...)
	a.ip = ip
	if a.family == syscall.AF_INET {
		b := ip.As4()
		copy(a.raw[4:8], b[:])
		return a
	}
	b := ip.As16() // IPv4 is mapped
	copy(a.raw[8:24], b[:])
	return a
}

// mapped is an IPv4 address as sockets for both families write it.
func mapped(ip netip.Addr) netip.Addr { return netip.AddrFrom16(ip.As16()) }

// makeAddress is an address of a family with nothing but an IP and a port.
func makeAddress(family uint16, ip netip.Addr, port uint16) address {
	raw := make([]byte, 16)
	if family == syscall.AF_INET6 {
		raw = make([]byte, 28)
	}
	binary.NativeEndian.PutUint16(raw, family)
	binary.BigEndian.PutUint16(raw[2:], port)
	return address{raw: raw, family: family, port: port}.with(ip)
}

// loopback4 is the own address that programs call 127.0.0.b.
func (i Identity) loopback4(b byte) netip.Addr {
	a := i.Loopback4.As4()
	a[3] = b
	return netip.AddrFrom4(a)
}

// own4 and own6 stand in for a wildcard: a family that the network lacks has the
// loopback address for everything.
func (i Identity) own4() netip.Addr {
	if i.IPv4.IsValid() {
		return i.IPv4
	}
	return i.loopback4(1)
}

func (i Identity) own6() netip.Addr {
	if i.IPv6.IsValid() {
		return i.IPv6
	}
	return i.Loopback6
}

// own is the address of a family, loopback what the programs call 127.0.0.1 or ::1.
func (i Identity) own(six bool) netip.Addr {
	if six {
		return i.own6()
	}
	return i.own4()
}

func (i Identity) loopback(six bool) netip.Addr {
	if six {
		return i.Loopback6
	}
	return i.loopback4(1)
}

// six tells addresses of IPv6 alone.
func six(ip netip.Addr) bool { return ip.Is6() && !ip.Is4In6() }

// bindable is the IP that a wish to bind becomes; only6 says that the socket is for
// IPv6 alone. A group's becomes the own address: the namespace has only one of each, and
// what neighbours send to it would be heard there. The error is EADDRNOTAVAIL for what
// is another's.
func (i Identity) bindable(ip netip.Addr, only6 bool) (netip.Addr, syscall.Errno) {
	switch four := ip.Unmap(); {
	case ip == netip.IPv6Unspecified() && only6:
		return i.own6(), 0
	case ip == netip.IPv6Unspecified() && !i.IPv4.IsValid() && i.IPv6.IsValid():
		return i.IPv6, 0
	case ip == netip.IPv6Unspecified():
		return mapped(i.own4()), 0
	case ip == netip.IPv6Loopback():
		return i.Loopback6, 0
	case i.private(ip):
		return ip, 0
	case six(ip) && ip.IsMulticast():
		return i.own6(), 0
	case six(ip):
		if ip == i.IPv6 {
			return ip, 0
		}
	case four == netip.IPv4Unspecified():
		return like(ip, i.own4()), 0
	case ours(four) && !resolver(four):
		return like(ip, i.loopback4(four.As4()[3])), 0
	case four.IsMulticast(), four == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return like(ip, i.own4()), 0
	case four == i.IPv4:
		return ip, 0
	}
	return netip.Addr{}, syscall.EADDRNOTAVAIL
}

// like writes an IPv4 address in the way of another.
func like(written, ip netip.Addr) netip.Addr {
	if written.Is4In6() {
		return mapped(ip)
	}
	return ip
}

// ours tells 127.0.0.0/24.
func ours(ip netip.Addr) bool {
	b := ip.As4()
	return b[0] == 127 && b[1] == 0 && b[2] == 0
}

// resolver is Docker's, which nobody may be: overlay keeps it unreachable.
func resolver(ip netip.Addr) bool { return ip == netip.AddrFrom4([4]byte{127, 0, 0, 11}) }

// reach says what a destination stands for.
type reach int

const (
	outward reach = iota // what it says
	inward               // the own loopback, as programs call it
	within               // the own loopback, as the namespace calls it
	nowhere              // another's loopback, or none's
)

// towards judges a destination.
func (i Identity) towards(ip netip.Addr) reach {
	four := ip.Unmap()
	switch {
	case ip == netip.IPv6Loopback(), ip == netip.IPv6Unspecified():
		return inward
	case i.private(ip):
		return within
	case six(ip):
		if private6(i.Loopback6, ip) {
			return nowhere
		}
		return outward
	case four == netip.IPv4Unspecified():
		return inward
	case resolver(four):
		return outward
	case ours(four):
		return inward
	case four.IsLoopback():
		return nowhere
	}
	return outward
}

// private6 tells addresses that stand for some container's ::1: they differ in the
// last 16 bits.
func private6(own, ip netip.Addr) bool {
	a, b := own.As16(), ip.As16()
	return [14]byte(a[:14]) == [14]byte(b[:14])
}

// private tells the own loopback addresses by the names that they have in the
// namespace, which programs read where no answer of ours is in between.
func (i Identity) private(ip netip.Addr) bool {
	if ip == i.Loopback6 {
		return true
	}
	own, four := i.Loopback4.As4(), ip.Unmap()
	if !four.Is4() {
		return false
	}
	b := four.As4()
	return [3]byte(b[:3]) == [3]byte(own[:3])
}
