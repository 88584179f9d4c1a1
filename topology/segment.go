package topology

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
)

// VNI is a VXLAN network identifier, 1 to 16777215 (RFC 7348, 24 bits; 0 is
// left out because the kernel reads it as "none").
type VNI uint32

// VXLANPort is the UDP port where nobody has chosen another, IANA's (RFC 7348).
const VXLANPort uint16 = 4789

// MaxVNI is the largest identifier that fits the VXLAN header.
const MaxVNI VNI = 1<<24 - 1

// ErrVNIInUse is the cause when something else on the host has a segment's VNI
// for the same UDP port.
var ErrVNIInUse = errors.New("in use")

// ErrUnreached is the cause when a segment is in force but for some of its other hosts,
// which this one has no way to: all the same its containers run, and reach the rest.
var ErrUnreached = errors.New("cannot be reached")

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
	// Subnets are the network's ranges on all hosts. What lies in them but is
	// neither local nor a peer's is unreachable: it never leaves by another way. A
	// network without any is this host's alone, and no other host can reach it.
	Subnets []netip.Prefix
	Peers   []Peer // the other hosts that have a part of the network
}
