package topology

import (
	"fmt"
	"net/netip"
	"strconv"
)

// VNI is a VXLAN network identifier, 1 to 16777215 (RFC 7348, 24 bits; 0 is
// left out because the kernel reads it as "none").
type VNI uint32

// MaxVNI is the largest identifier that fits the VXLAN header.
const MaxVNI VNI = 1<<24 - 1

// ParseVNI reads a decimal VNI.
func ParseVNI(s string) (VNI, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil || n == 0 || VNI(n) > MaxVNI {
		return 0, fmt.Errorf("VNI %q is not a number from 1 to %d", s, MaxVNI)
	}
	return VNI(n), nil
}

// Underlay is what VXLAN packets travel over.
type Underlay struct {
	VTEP netip.Addr // this host's tunnel address; invalid on a host without any
	MTU  int        // bytes, of the link that carries VTEP
	Port uint16     // UDP destination port of VXLAN
}

// Overhead is what VXLAN adds to each packet, in bytes: outer IP header, UDP,
// VXLAN and inner Ethernet header (RFC 7348 section 5).
func (u Underlay) Overhead() int {
	if u.VTEP.Is6() {
		return 70
	}
	return 50
}

// Segment is the whole data plane of one network on one host. It describes
// what should be; package overlay makes the kernel match it.
type Segment struct {
	Network NetworkID
	VNI     VNI
	VTEP    netip.Addr     // local tunnel address; invalid when the host has none
	Port    uint16         // UDP destination port of VXLAN
	MTU     int            // bytes, of the VXLAN device
	Pools   []netip.Prefix // every address in them is local to the tenant namespace
}

// Uplink is a network's way out of the host: one routed veth pair between the
// tenant namespace and the host's, with source addresses rewritten on both
// sides, so that tenants with the same subnet do not meet.
type Uplink struct {
	Network NetworkID
	Index   int          // 0 to MaxUplinks-1, unique on the host
	Host    netip.Prefix // address of the host's end, /31
	Tenant  netip.Prefix // address of the tenant's end, /31
	MTU     int          // bytes
}

// UplinkRange is where uplinks take their addresses. Link-local addresses
// (RFC 3927) cannot collide with anything a container wants to reach beyond the
// host; the upper quarter keeps clear of the metadata services that clouds put
// at 169.254.169.254 and 169.254.170.2.
var UplinkRange = netip.MustParsePrefix("169.254.192.0/18")

// MaxUplinks is how many /31 links fit UplinkRange.
const MaxUplinks = 1 << 13

// NewUplink derives the addresses of the uplink with the given index.
func NewUplink(id NetworkID, index, mtu int) (Uplink, error) {
	if index < 0 || index >= MaxUplinks {
		return Uplink{}, fmt.Errorf("uplink index %d is not from 0 to %d", index, MaxUplinks-1)
	}
	base := UplinkRange.Addr().As4()
	offset := index * 2
	base[2] += byte(offset >> 8)
	base[3] += byte(offset)
	host := netip.AddrFrom4(base)
	return Uplink{
		Network: id,
		Index:   index,
		Host:    netip.PrefixFrom(host, 31),
		Tenant:  netip.PrefixFrom(host.Next(), 31),
		MTU:     mtu,
	}, nil
}
