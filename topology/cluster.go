package topology

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
)

// NodeID names a host of a cluster: 32 lower-case hex digits, drawn at random
// when the host first needs it and kept for good.
type NodeID string

// ParseNodeID accepts 32 lower-case hex digits.
func ParseNodeID(s string) (NodeID, error) {
	id, err := parseID("host", s)
	if err != nil || len(id) != 32 {
		return "", fmt.Errorf("host id %q is not 32 lower-case hex digits", s)
	}
	return NodeID(id), nil
}

// Short is the start of the id, enough for people.
func (id NodeID) Short() string { return short(string(id)) }

// SharedID names a network on every host of a cluster: the id that Docker gave
// it on the host where a user created it. On the other hosts it has other
// NetworkIDs. Empty is the SharedID of a network that one host keeps to itself.
type SharedID string

// ParseSharedID accepts what ParseNetworkID accepts.
func ParseSharedID(s string) (SharedID, error) {
	id, err := ParseNetworkID(s)
	return SharedID(id), err
}

// Short is the start of the id, as Docker prints ids.
func (id SharedID) Short() string { return short(string(id)) }

// Peer is another host that answers for addresses of a network.
type Peer struct {
	VTEP netip.Addr // its tunnel address
	// MAC is that of its VXLAN devices; nil derives it from VTEP.
	MAC net.HardwareAddr
	// Port is the UDP port at which it takes VXLAN; 0 is the segment's own.
	Port uint16 `json:",omitempty"`
	// Prefixes are what it answers for: blocks of the network's pools and single
	// addresses. A longer prefix wins over another host's shorter one.
	Prefixes []netip.Prefix
}

// Equal compares all there is to a peer.
func (p Peer) Equal(q Peer) bool {
	return p.VTEP == q.VTEP && p.Port == q.Port && slices.Equal(p.MAC, q.MAC) && slices.Equal(p.Prefixes, q.Prefixes)
}
