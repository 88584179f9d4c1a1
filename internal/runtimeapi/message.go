package runtimeapi

import (
	"net/netip"
	"time"

	"github.com/particle-net/particle/topology"
)

// Request holds exactly one of its fields.
type Request struct {
	Place   *Place   `json:"place,omitempty"`
	Claim   *Claim   `json:"claim,omitempty"`
	Release *Release `json:"release,omitempty"`
	Status  *Query   `json:"status,omitempty"`
	Cluster *Cluster `json:"cluster,omitempty"`
}

// Reply carries the error as text, or the answer to the request's field.
type Reply struct {
	Err     string        `json:"err,omitempty"`
	Place   *Placement    `json:"place,omitempty"`
	Claim   *Claimed      `json:"claim,omitempty"`
	Status  *Status       `json:"status,omitempty"`
	Cluster *ClusterReply `json:"cluster,omitempty"`
}

// Place asks where a container belongs, before its process is made.
type Place struct {
	Container topology.ContainerID `json:"container"`
	Name      string               `json:"name"`     // without the leading slash
	Networks  []NetworkRef         `json:"networks"` // as the container's configuration names them
	// Own asks for a network namespace of its own, which makes it possible for
	// the container to be on several networks. Only one may be a particle network.
	Own bool `json:"own,omitempty"`
}

// NetworkRef is a network as a container's configuration on disk knows it.
type NetworkRef struct {
	Name string `json:"name"`         // a name, a full id or the start of one, as the user typed it
	ID   string `json:"id,omitempty"` // empty until the container's first start has succeeded; may be stale
}

// Placement answers Place.
type Placement struct {
	// Member is true when one of the networks is a particle network. If it is
	// false, the other fields are empty and the container is none of ours.
	Member      bool               `json:"member"`
	Network     topology.NetworkID `json:"network,omitempty"`
	NetworkName string             `json:"networkName,omitempty"`
	// Namespace is the file, on the host, that the tenant namespace is bound on.
	Namespace string `json:"namespace,omitempty"`
	// Own repeats the request's, so that an older plugin is not misunderstood:
	// the container is not to be put into Namespace.
	Own bool `json:"own,omitempty"`
	// Supervised says that the network's guard is the one by system calls, which
	// begins with the container's first process.
	Supervised bool `json:"supervised,omitempty"`
	// Internal says that the network has no way out of its segment.
	Internal bool `json:"internal,omitempty"`
	// Resolver is a name server that answers inside the namespace in place of
	// servers that only listen on the host's loopback. Invalid if there is none.
	Resolver netip.Addr `json:"resolver,omitzero"`
}

// Claim binds a container's process and cgroup to the address Docker gave it.
type Claim struct {
	Container topology.ContainerID `json:"container"`
	Name      string               `json:"name"`
	Network   topology.NetworkID   `json:"network"`
	Pid       int                  `json:"pid"`    // of the container's first process, in the host's pid namespace
	Cgroup    string               `json:"cgroup"` // path in the cgroup v2 hierarchy, empty on a pure v1 host
	// Join is the container whose address this one shares (--network container:X),
	// itself perhaps one that shares; empty for a container with its own address.
	Join topology.ContainerID `json:"join,omitempty"`
	// Own says that the container has a network namespace of its own, to be
	// connected to the network.
	Own bool `json:"own,omitempty"`
	// Reason says why, with Own.
	Reason string `json:"reason,omitempty"`
	// Hosts are the lines of the container's hosts file, in order. Docker has
	// written the container's own address there in every version. Not needed with
	// Join.
	Hosts []HostLine `json:"hosts"`
	// Hostname is the container's host name, which its own line carries.
	Hostname string `json:"hostname"`
}

// Claimed answers Claim.
type Claimed struct {
	// Addresses are what the guard by system calls is to hold the container to; nil
	// if the network has another.
	Addresses *Addresses `json:"addresses,omitempty"`
}

// Addresses are a container's own.
type Addresses struct {
	Namespace string     `json:"namespace"` // file of the tenant namespace, on the host
	IPv4      netip.Addr `json:"ipv4,omitzero"`
	IPv6      netip.Addr `json:"ipv6,omitzero"`
	Loopback4 netip.Addr `json:"loopback4"` // what its programs call 127.0.0.0
	Loopback6 netip.Addr `json:"loopback6"` // what they call ::1
}

// HostLine is a line of a hosts file.
type HostLine struct {
	Addr  netip.Addr `json:"addr"`
	Names []string   `json:"names"`
}

// Release says that a container's process is gone.
type Release struct {
	Container topology.ContainerID `json:"container"`
}

// Query asks for Status.
type Query struct{}

// Status is what the plugin knows, for people and programs.
type Status struct {
	Version  string          `json:"version"`
	Started  time.Time       `json:"started"`
	Underlay UnderlayStatus  `json:"underlay"`
	Guard    GuardStatus     `json:"guard"`
	Networks []NetworkStatus `json:"networks"`
	Repairs  int             `json:"repairs"` // pieces of drift the reconciler has mended since Started
	// Cluster is nil on a host that is in none.
	Cluster *ClusterSummary `json:"cluster,omitempty"`
}

// GuardStatus is what keeps containers to their own addresses.
type GuardStatus struct {
	// Mode is bpf, seccomp or off: what networks have that were not created with one.
	Mode  string   `json:"mode"`
	Why   string   `json:"why,omitempty"`   // why it is not bpf, if nobody chose so
	Lacks []string `json:"lacks,omitempty"` // what it does without on this kernel
	// Strangers counts the sockets denied to processes in tenant namespaces that
	// belong to no container.
	Strangers uint64 `json:"strangers"`
	// Since the boot, containers that have ended included.
	Denied  Denials    `json:"denied"`
	Changed Rewritings `json:"changed"`
	Problem string     `json:"problem,omitempty"` // why its counters could not be read
}

// Rewritings count what the guard has let pass in another form.
type Rewritings struct {
	Binds   uint64 `json:"binds,omitempty"`   // of the wildcard or of loopback
	Steered uint64 `json:"steered,omitempty"` // over IPv6, to sockets for both families
	Pings   uint64 `json:"pings,omitempty"`   // echo requests that got their own source
}

// Denials count what the guard has kept a container from since its start.
type Denials struct {
	Binds    uint64 `json:"binds,omitempty"`    // to addresses that are not its own
	Connects uint64 `json:"connects,omitempty"` // to other containers' loopback
	Sources  uint64 `json:"sources,omitempty"`  // datagrams under another's address
	Sockets  uint64 `json:"sockets,omitempty"`  // raw ones, and protocols that cannot be guarded
	Unix     uint64 `json:"unix,omitempty"`     // abstract unix sockets of others
	Packets  uint64 `json:"packets,omitempty"`  // dropped, in and out
}

// Sum adds them up.
func (d Denials) Sum() uint64 {
	return d.Binds + d.Connects + d.Sources + d.Sockets + d.Unix + d.Packets
}

// UnderlayStatus is what VXLAN packets travel over.
type UnderlayStatus struct {
	VTEP string `json:"vtep,omitempty"`
	// Encryption is what they go by, too.
	Encryption topology.Encryption `json:"encryption,omitempty"`
	MTU        int                 `json:"mtu"`
	Port       uint16              `json:"port"`
}

// NetworkStatus is one network on this host.
type NetworkStatus struct {
	ID        topology.NetworkID `json:"id"`
	Name      string             `json:"name,omitempty"`
	VNI       topology.VNI       `json:"vni"`
	MTU       int                `json:"mtu"`
	Internal  bool               `json:"internal"`
	Guard     string             `json:"guard,omitempty"`  // bpf, seccomp or off
	Uplink    string             `json:"uplink,omitempty"` // the network's address on it, if made
	Scope     string             `json:"scope"`            // host or cluster
	Shared    topology.SharedID  `json:"shared,omitempty"` // its id in the cluster
	Peers     int                `json:"peers,omitempty"`  // other hosts that have a part of it
	Pools     []PoolStatus       `json:"pools"`
	Endpoints []EndpointStatus   `json:"endpoints"`
	Problem   string             `json:"problem,omitempty"` // why the data plane does not match, if it does not
}

// PoolStatus is an address pool; a network whose addresses Docker's own IPAM
// hands out has pools without an id.
type PoolStatus struct {
	ID     topology.PoolID `json:"id,omitempty"`
	Subnet netip.Prefix    `json:"subnet"`
	Range  netip.Prefix    `json:"range,omitzero"`
	Used   int             `json:"used"` // addresses held, the gateway and auxiliary ones included
	Free   string          `json:"free"` // a decimal number; a string because IPv6 pools exceed 64 bits
	Blocks []BlockStatus   `json:"blocks,omitempty"`
}

// BlockStatus is a part of a pool that is this host's, on a network that a
// cluster shares: a block, or one address that was asked for by name.
type BlockStatus struct {
	Prefix netip.Prefix `json:"prefix"`
	Used   int          `json:"used"`  // addresses held
	Free   string       `json:"free"`  // a decimal number, of addresses that can be handed out
	State  string       `json:"state"` // serving, suspended (nothing new is handed out), leaving (it is not this host's any more)
}

// Scopes of a network.
const (
	ScopeHost    = "host"
	ScopeCluster = "cluster"
)

// States of a block.
const (
	BlockServing   = "serving"
	BlockSuspended = "suspended"
	BlockLeaving   = "leaving"
)

// EndpointStatus is one container's attachment.
type EndpointStatus struct {
	ID        topology.EndpointID  `json:"id"`
	Container topology.ContainerID `json:"container,omitempty"`
	Name      string               `json:"name,omitempty"`
	IPv4      netip.Addr           `json:"ipv4,omitzero"`
	IPv6      netip.Addr           `json:"ipv6,omitzero"`
	Pid       int                  `json:"pid,omitempty"`
	Cgroup    string               `json:"cgroup,omitempty"`
	State     string               `json:"state"`            // created, joined, running, stopped, leaving
	Own       bool                 `json:"own,omitempty"`    // it has a network namespace of its own
	Reason    string               `json:"reason,omitempty"` // why it has
	Since     time.Time            `json:"since"`
	Denied    Denials              `json:"denied,omitzero"`
	Guests    []GuestStatus        `json:"guests,omitempty"`
}

// GuestStatus is a container that shares an endpoint's addresses
// (--network container:X). It may outlive the endpoint's own container.
type GuestStatus struct {
	Container topology.ContainerID `json:"container"`
	Name      string               `json:"name"`
	Pid       int                  `json:"pid"`
	Cgroup    string               `json:"cgroup,omitempty"`
	Denied    Denials              `json:"denied,omitzero"`
	Since     time.Time            `json:"since"`
}
