package topology

import "net/netip"

// CgroupID names a cgroup of the version 2 hierarchy: the inode number of its
// directory, which the kernel does not give out twice while the cgroup exists
// (kernfs, since Linux 5.5).
type CgroupID uint64

// Slot tells the containers of one network on one host apart where their
// addresses do not: a container's 127.0.0.0/24 is 127.H.L.0/24 of the tenant
// namespace, H and L being the slot's bytes. 0 is nobody's, for 127.0.0.0/24
// itself stays with the namespace.
type Slot uint16

// MaxSlots is how many containers of one network a host can tell apart.
const MaxSlots = 1<<16 - 1

// Identity is what one container may be on its network. The address guard makes
// its sockets use these addresses and no others.
type Identity struct {
	Network NetworkID
	IPv4    netip.Addr // invalid if none
	IPv6    netip.Addr // invalid if none
	Slot    Slot
}
