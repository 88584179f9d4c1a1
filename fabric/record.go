package fabric

import (
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/particle-net/particle/topology"
)

// AddressSpace is what our IPAM driver calls the space of its pools; Docker
// repeats it when it creates a network, and nothing else tells whose they are.
const AddressSpace = "particle"

// NoUplink is the Uplink of a network that nothing has needed a way out of.
const NoUplink = -1

// Network is what is kept of a network until it is removed.
type Network struct {
	ID       topology.NetworkID
	Name     string `json:",omitempty"` // Docker does not send it with the creation; learned a moment later
	VNI      topology.VNI
	MTU      int
	Internal bool
	Subnets  []Subnet
	Uplink   int       // index of its uplink, or NoUplink
	Guard    GuardMode `json:",omitempty"` // as asked for; empty leaves it to the host
	Doomed   bool      // Docker has removed it, but a process still lives in it
	Created  time.Time // of the record

	// Of a network that a cluster shares: its id there, this host's blocks, and
	// blocks that this host has lost while containers have addresses of them.
	Shared  topology.SharedID `json:",omitempty"`
	Block   int               `json:",omitempty"` // BlockSizes as asked for
	Block6  int               `json:",omitempty"`
	Claims  []netip.Prefix    `json:",omitempty"`
	Leaving []netip.Prefix    `json:",omitempty"`
}

func (n Network) hasIPv6() bool {
	return slices.ContainsFunc(n.Subnets, func(s Subnet) bool { return s.Subnet.Addr().Is6() })
}

// Subnet is one address range of a network.
type Subnet struct {
	Subnet  netip.Prefix
	Managed bool         // its addresses come from our IPAM
	Range   netip.Prefix `json:",omitzero"` // of a shared network: blocks are cut from it
	Gateway netip.Addr   `json:",omitzero"`
	Aux     []netip.Addr `json:",omitempty"`
}

// Pool is what is kept of an address pool that our IPAM manages. Docker names
// the network neither when it requests a pool nor the pool when it creates a
// network, so Network is found out by comparing (see bindPools and tellPool).
type Pool struct {
	ID       topology.PoolID
	Subnet   netip.Prefix
	Range    netip.Prefix       `json:",omitzero"`
	Network  topology.NetworkID `json:",omitempty"`
	Shared   topology.SharedID  `json:",omitempty"` // what our own plugin said it is for
	Reserved []netip.Addr       `json:",omitempty"` // gateway and auxiliary addresses
	Created  time.Time
}

// Lease is one address handed out of a pool. A released one stays on record
// until the pool goes, so that the order of release outlives a restart.
type Lease struct {
	Pool     topology.PoolID
	Addr     netip.Addr
	Name     string              `json:",omitempty"` // of the container; Docker 29 and later send it
	Endpoint topology.EndpointID `json:"-"`          // empty until CreateEndpoint names it
	Since    time.Time
	Returned bool      `json:",omitempty"` // Docker has taken it back, but a process uses it
	Claimed  bool      `json:",omitempty"` // in no block: claimed from the cluster for itself
	Released time.Time `json:",omitzero"`
}

func (l Lease) key() string { return leaseKey(l.Pool, l.Addr) }

func leaseKey(id topology.PoolID, a netip.Addr) string { return string(id) + "/" + a.String() }

// Endpoint is one attachment of a container to a network.
type Endpoint struct {
	ID      topology.EndpointID
	Network topology.NetworkID
	IPv4    netip.Addr `json:",omitzero"`
	IPv6    netip.Addr `json:",omitzero"`
	Slot    topology.Slot
	Created time.Time

	SandboxKey string    `json:",omitempty"`
	Exposed    bool      `json:",omitempty"` // we bound the namespace on SandboxKey
	Joined     time.Time `json:",omitzero"`

	// Link is what the container calls its end of the branch (see
	// topology.Branch), empty if it shares the tenant namespace.
	Link string `json:",omitempty"`
	// Reason says why it has a namespace of its own, as its user would say it.
	Reason string           `json:",omitempty"`
	MAC    net.HardwareAddr `json:",omitempty"` // asked for by --mac-address

	// The claim: which process in which cgroup owns the addresses.
	Container topology.ContainerID `json:",omitempty"`
	Name      string               `json:",omitempty"`
	Pid       int                  `json:",omitempty"`
	PidStart  uint64               `json:",omitempty"`
	Cgroup    string               `json:",omitempty"`
	Guarded   topology.CgroupID    `json:",omitempty"` // as the guard knows Cgroup; 0 without a guard
	Claimed   time.Time            `json:",omitzero"`

	// Guests share the addresses (--network container:X), and keep them from
	// being given out for as long as they live.
	Guests []Guest `json:",omitempty"`

	// Deleted: Docker has forgotten the endpoint while a process lives that uses
	// its addresses.
	Deleted bool `json:",omitempty"`
}

// Guest is a container that uses the addresses of another one's endpoint.
type Guest struct {
	Container topology.ContainerID
	Name      string
	Pid       int
	PidStart  uint64
	Cgroup    string            `json:",omitempty"`
	Guarded   topology.CgroupID `json:",omitempty"`
	Claimed   time.Time
}

// containers lists those that have claimed the endpoint, its own first.
func (e *Endpoint) containers() []topology.ContainerID {
	var all []topology.ContainerID
	if e.Container != "" {
		all = append(all, e.Container)
	}
	for _, g := range e.Guests {
		all = append(all, g.Container)
	}
	return all
}

// Addresses lists the endpoint's valid addresses.
func (e *Endpoint) Addresses() []netip.Addr {
	var all []netip.Addr
	for _, a := range []netip.Addr{e.IPv4, e.IPv6} {
		if a.IsValid() {
			all = append(all, a)
		}
	}
	return all
}

// State names the endpoint's place in its life.
func (e *Endpoint) State() string {
	switch {
	case e.Deleted:
		return "leaving"
	case e.Pid != 0:
		return "running"
	case !e.Claimed.IsZero():
		return "stopped"
	case !e.Joined.IsZero():
		return "joined"
	}
	return "created"
}
