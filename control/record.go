package control

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/particle-net/particle/topology"
)

// Node is a host of the cluster.
type Node struct {
	ID      topology.NodeID
	Name    string           // its host name, for people
	VTEP    netip.Addr       // its tunnel address; invalid if it has none yet
	MAC     net.HardwareAddr // of its VXLAN devices; nil derives it from VTEP
	Version string           // of the plugin
	Boot    string           // changes with each boot of the host
	// Port is the UDP port at which it takes VXLAN. 0 is that of a plugin which did not
	// tell; such hosts all had to have the same, so it is the reader's own.
	Port uint16 `json:",omitempty"`
	// WireGuard is its end of the tunnels to all others; nil if the cluster is not
	// encrypted.
	WireGuard *WireGuard `json:",omitempty"`
}

// Route is the host's answer for a prefix of a network.
func (n Node) Route(network topology.SharedID, prefix netip.Prefix) Route {
	return Route{Network: network, Prefix: prefix, Node: n.ID, VTEP: n.VTEP, MAC: n.MAC, Port: n.Port}
}

// WireGuard is where a host's encrypted packets go to, and who can read them.
type WireGuard struct {
	Key      topology.WireGuardKey
	Endpoint netip.AddrPort // invalid while the host has no address
}

// Network is a network as every host is to make it.
type Network struct {
	ID       topology.SharedID
	Name     string // empty until Docker has told it on the host that made the network
	VNI      topology.VNI
	MTU      int // bytes
	Internal bool
	Subnets  []Subnet
	Options  map[string]string // of docker network create -o, as the user gave them
	Labels   map[string]string
	Creator  topology.NodeID
	Created  time.Time
	// Removed: a user has removed the network on some host. Its name is free, and
	// hosts let go of it as their last containers on it end.
	Removed bool
}

// Recognise says why a network of the store is not the one that a host knows under its
// id. Cause: ErrTaken.
func (n Network) Recognise(known Network) error {
	if n.VNI == known.VNI {
		return nil
	}
	return fmt.Errorf("%w: the network has VNI %d in the store, and %d here", ErrTaken, n.VNI, known.VNI)
}

// Named is the network with what by says of it that Docker alone knows: name,
// options, labels, and what the auxiliary addresses are called.
func (n Network) Named(by Network) Network {
	n.Name, n.Options, n.Labels = by.Name, by.Options, by.Labels
	n.Subnets = slices.Clone(n.Subnets)
	for i, s := range n.Subnets {
		for _, b := range by.Subnets {
			if b.Prefix == s.Prefix && sameAddresses(b.Aux, s.Aux) {
				n.Subnets[i].Aux = b.Aux
			}
		}
	}
	return n
}

func sameAddresses(x, y map[string]netip.Addr) bool {
	return slices.Equal(slices.SortedFunc(maps.Values(x), netip.Addr.Compare), slices.SortedFunc(maps.Values(y), netip.Addr.Compare))
}

// Subnet is one address range of a network.
type Subnet struct {
	Prefix  netip.Prefix
	Range   netip.Prefix          `json:",omitzero"` // blocks are cut from it; zero means all of Prefix
	Gateway netip.Addr            `json:",omitzero"`
	Aux     map[string]netip.Addr `json:",omitempty"`
	Block   int                   // prefix length of a block
}

// Claim says that a host owns addresses of a network: a block, or one address
// outside all blocks (docker run --ip).
type Claim struct {
	Network topology.SharedID
	Prefix  netip.Prefix
	Node    topology.NodeID
	Holder  string `json:",omitempty"` // of a single address: the container, for people
}

// Single says whether the claim is of one address.
func (c Claim) Single() bool { return c.Prefix.IsSingleIP() }

// Route says which host answers for addresses of a network. Two hosts that
// announce the same prefix are two routes: Network, Prefix, Node and Vouched tell
// them apart.
type Route struct {
	Network topology.SharedID
	Prefix  netip.Prefix
	Node    topology.NodeID
	VTEP    netip.Addr
	MAC     net.HardwareAddr `json:",omitempty"` // nil derives it from VTEP
	Port    uint16           `json:",omitempty"` // as a Node has it
	// Vouched: others say so in its name, see Allocator.Vouch.
	Vouched bool `json:",omitempty"`
}
