package topology

import (
	"net"
	"net/netip"
)

// Branch connects a container that has a network namespace of its own to the
// tenant namespace of its network, where all other containers live: one routed
// veth pair, an end in each.
type Branch struct {
	Network   NetworkID
	Endpoint  EndpointID
	Namespace string     // path of the container's network namespace, such as /proc/PID/ns/net
	IPv4      netip.Addr // invalid if it has none
	IPv6      netip.Addr // invalid if it has none; one of the two it has
	MTU       int        // bytes
	// Link names the container's end; %d stands for the first free number.
	Link string
	// MAC is that of the container's end; nil derives one from the address.
	MAC net.HardwareAddr
	// Subnets are what the container reaches by this branch even if it has a
	// better default route by another network.
	Subnets []netip.Prefix
	// Internal says that nothing else is reached by this branch.
	Internal bool
}

// Addresses lists the valid addresses, IPv4 first.
func (b Branch) Addresses() []netip.Addr {
	var all []netip.Addr
	for _, a := range []netip.Addr{b.IPv4, b.IPv6} {
		if a.IsValid() {
			all = append(all, a)
		}
	}
	return all
}
