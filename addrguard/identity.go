package addrguard

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/particle-net/particle/topology"
)

// Identity is what a container is in its network on this host.
type Identity struct {
	// One that is exempt may leave the network empty, which stands for all.
	topology.Identity
	// Exempt lets the processes do as they like: helpers of the plugin.
	Exempt bool
	// Raw allows raw sockets, as far as the capabilities do.
	Raw bool
}

// loopback6 holds the address of each container that its programs call ::1: the
// slot is the last 16 bits. The 40 bits after fd were drawn at random (RFC 4193,
// section 3.2.2), so that no network of a user's has them.
var loopback6 = netip.MustParsePrefix("fdb9:1f1f:eea::/96")

// Prefixes are the ranges that must be local in a tenant namespace, beside the
// network's pools, as a route of type local on lo.
func Prefixes() []netip.Prefix { return []netip.Prefix{loopback6} }

// Loopback returns the addresses that the programs of the container with a slot call
// 127.0.0.0 and ::1.
func Loopback(slot topology.Slot) (v4, v6 netip.Addr) {
	i := Identity{Identity: topology.Identity{Slot: slot}}
	return i.loop4(0), i.loop6()
}

func (i Identity) check() error {
	switch {
	case i.Exempt:
		return nil
	case i.Network == "":
		return fmt.Errorf("no network")
	case i.Slot == 0:
		return fmt.Errorf("slot 0 is not from 1 to 65535")
	case !i.IPv4.IsValid() && !i.IPv6.IsValid():
		return fmt.Errorf("no address")
	case i.IPv4.IsValid() && !i.IPv4.Is4():
		return fmt.Errorf("%s is not an IPv4 address", i.IPv4)
	case i.IPv6.IsValid() && (!i.IPv6.Is6() || i.IPv6.Is4In6() || i.IPv6.Zone() != ""):
		return fmt.Errorf("%s is not an IPv6 address", i.IPv6)
	}
	return nil
}

// loop4 is the own address that programs call 127.0.0.host.
func (i Identity) loop4(host byte) netip.Addr {
	return netip.AddrFrom4([4]byte{127, byte(i.Slot >> 8), byte(i.Slot), host})
}

// loop6 is the own address that programs call ::1.
func (i Identity) loop6() netip.Addr {
	a := loopback6.Addr().As16()
	binary.BigEndian.PutUint16(a[14:], uint16(i.Slot))
	return netip.AddrFrom16(a)
}

// container is the identity as the kernel has it. A family that the network lacks
// has the loopback address for everything: a server on the wildcard would be
// found there alone.
func (i Identity) container(netns uint64) guardContainer {
	c := guardContainer{Netns: netns}
	f := &c.Face
	f.Slot = uint32(i.Slot)
	f.Lo4, f.Lo6.Word = word(i.loop4(0)), words(i.loop6())
	f.Ip4, f.Ip6.Word = word(i.loop4(1)), f.Lo6.Word
	if i.IPv4.IsValid() {
		f.Ip4, f.Flags = word(i.IPv4), f.Flags|flagIPv4
	}
	if i.IPv6.IsValid() {
		f.Ip6.Word, f.Flags = words(i.IPv6), f.Flags|flagIPv6
	}
	if i.Exempt {
		f.Flags |= flagExempt
	}
	if i.Raw {
		f.Flags |= flagRaw
	}
	return c
}

// identity undoes container.
func identity(c *guardContainer, network topology.NetworkID) Identity {
	f := &c.Face
	i := Identity{Exempt: f.Flags&flagExempt != 0, Raw: f.Flags&flagRaw != 0}
	i.Network, i.Slot = network, topology.Slot(f.Slot)
	if f.Flags&flagIPv4 != 0 {
		i.IPv4 = address4(f.Ip4)
	}
	if f.Flags&flagIPv6 != 0 {
		i.IPv6 = address6(f.Ip6.Word)
	}
	return i
}

// The bits of a face's flags, in bpf/guard.h.
const (
	flagExempt = 1 << iota
	flagRaw
	flagIPv4
	flagIPv6
)

// word is an IPv4 address as the kernel holds it: its bytes in order.
func word(a netip.Addr) uint32 {
	b := a.As4()
	return binary.NativeEndian.Uint32(b[:])
}

func words(a netip.Addr) (w [4]uint32) {
	b := a.As16()
	for n := range w {
		w[n] = binary.NativeEndian.Uint32(b[4*n:])
	}
	return w
}

func address4(w uint32) netip.Addr {
	var b [4]byte
	binary.NativeEndian.PutUint32(b[:], w)
	return netip.AddrFrom4(b)
}

func address6(w [4]uint32) netip.Addr {
	var b [16]byte
	for n := range w {
		binary.NativeEndian.PutUint32(b[4*n:], w[n])
	}
	return netip.AddrFrom16(b)
}
