package topology

import (
	"fmt"
	"net/netip"
)

// Uplink is a network's way out of the host: one routed veth pair between the
// network's gateway and the host, with source addresses rewritten on both sides,
// so that tenants with the same subnet do not meet. The link between the tenant
// namespace and the gateway is of the same kind; see Inside.
type Uplink struct {
	Network NetworkID
	Index   int          // 0 to MaxUplinks-1, unique on the host
	Host    netip.Prefix // address of the host's end, /31
	Tenant  netip.Prefix // address of the network's end, /31
	Host6   netip.Prefix // the same in IPv6, /127; invalid if the network has none
	Tenant6 netip.Prefix
	MTU     int // bytes
}

// UplinkRange is where uplinks take their addresses. Link-local addresses
// (RFC 3927) cannot collide with anything a container wants to reach beyond the
// host; the upper quarter keeps clear of the metadata services that clouds put
// at 169.254.169.254 and 169.254.170.2.
var UplinkRange = netip.MustParsePrefix("169.254.192.0/18")

// UplinkRange6 is where they take those of IPv6: the first subnet of a unique
// local prefix whose global id was drawn at random (RFC 4193 section 3.2).
// IPv6's own link-local addresses would not do, for they do not tell the
// uplinks of one host apart.
var UplinkRange6 = netip.MustParsePrefix("fdf0:cf12:e344::/64")

// MaxUplinks is how many /31 links UplinkRange has for uplinks. Of the last two one
// is Inside's, and the other has an address that ends like a broadcast's.
const MaxUplinks = 1<<13 - 2

// NewUplink derives the addresses of the uplink with the given index, without
// those of IPv6.
func NewUplink(id NetworkID, index, mtu int) (Uplink, error) {
	if index < 0 || index >= MaxUplinks {
		return Uplink{}, fmt.Errorf("uplink index %d is not from 0 to %d", index, MaxUplinks-1)
	}
	return uplinkAt(id, index, mtu), nil
}

func uplinkAt(id NetworkID, index, mtu int) Uplink {
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
	}
}

// Inside is the link between the tenant namespace and the gateway, which has the
// host's part on it. Its addresses are the same in every network; it has IPv6 if
// the uplink does.
func (u Uplink) Inside() Uplink {
	in := uplinkAt(u.Network, MaxUplinks, u.MTU)
	if u.Host6.IsValid() {
		in = in.WithIPv6()
	}
	return in
}

// WithIPv6 is the uplink with addresses of IPv6 too. A prefix of 127 bits is
// what RFC 6164 has for links between two ends.
func (u Uplink) WithIPv6() Uplink {
	base := UplinkRange6.Addr().As16()
	offset := u.Index * 2
	base[14], base[15] = byte(offset>>8), byte(offset)
	host := netip.AddrFrom16(base)
	u.Host6 = netip.PrefixFrom(host, 127)
	u.Tenant6 = netip.PrefixFrom(host.Next(), 127)
	return u
}
