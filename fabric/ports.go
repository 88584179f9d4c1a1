package fabric

import (
	"context"
	"net/netip"
	"time"

	"github.com/particle-net/particle/topology"
)

// Segments makes networks in the kernel. Every method may be repeated.
type Segments interface {
	// Apply makes the kernel match and says whether anything had to change. With the
	// cause topology.ErrUnreached it does, but for the way to some peers.
	Apply(context.Context, topology.Segment) (changed bool, err error)
	// ApplyUplink does the same for a network's way out.
	ApplyUplink(context.Context, topology.Uplink) (changed bool, err error)
	// Remove takes everything of the network away; gone already is success.
	Remove(context.Context, topology.NetworkID) error
	// ChangePeers programs the difference between two lists of peers of a network that
	// was applied. Cause: topology.ErrUnreached, as of Apply.
	ChangePeers(ctx context.Context, applied topology.Segment, before, after []topology.Peer) error
	// Networks lists the networks that have a namespace on this host.
	Networks(context.Context) ([]topology.NetworkID, error)
}

// Cluster shares networks with other hosts. Only Share, ClaimAddress and Refill
// wait for the cluster's store, and for no longer than their context; a
// container's start calls the latter two, and only if it asks for an address of
// another host's part by name, or finds every address of this host's in use. Docker
// holds up all other starts on the network meanwhile, so they do not wait at all
// once it is known that the store does not answer.
//
// Methods may call each other's host back (SetClaims and the like), but not from
// within a call of Share, ClaimAddress or Unshare: the network is locked then.
type Cluster interface {
	// Joined says whether this host is in a cluster. It may wait, for seconds at
	// most, until that is known after a start: a network made meanwhile would be
	// this host's alone for good.
	Joined() bool
	// Share makes a network known to the other hosts, or joins one that is, and
	// claims a block of each managed subnet for this host. ok is false if this
	// host is in no cluster.
	Share(context.Context, SharedSpec) (s Shared, ok bool, err error)
	// Unshare notes that a user has removed the network here. It is carried out
	// when the store answers, and survives a restart.
	Unshare(topology.SharedID) error
	// ClaimAddress makes one address outside all blocks this host's.
	ClaimAddress(ctx context.Context, id topology.SharedID, addr netip.Addr, holder string) error
	// ReleaseAddress gives it back; it returns at once. A ClaimAddress of the same
	// address that comes after it happens after it. Not this host's is success.
	ReleaseAddress(id topology.SharedID, addr netip.Addr)
	// Low says that this host's blocks of a subnet are nearly used up, once until
	// another serves or NeedsBlock has denied it. It returns at once; another block
	// comes with SetClaims.
	Low(id topology.SharedID, subnet netip.Prefix)
	// Refill waits until SetClaims has brought another block of a subnet, or none is
	// needed any more, or tells why none comes.
	Refill(ctx context.Context, id topology.SharedID, subnet netip.Prefix) error
}

// SharedSpec is a network as this host's Docker is about to have it.
type SharedSpec struct {
	ID       topology.SharedID // of a network that other hosts have; empty if it is new
	Network  topology.NetworkID
	VNI      topology.VNI // 0 chooses a free one
	MTU      int          // bytes
	Internal bool
	Blocks   BlockSizes
	Subnets  []Subnet
	Ranges   []netip.Prefix // of the subnet of the same index; invalid: all of it
}

// Shared is what the cluster has made of it.
type Shared struct {
	ID     topology.SharedID
	VNI    topology.VNI
	MTU    int
	Claims []netip.Prefix // this host's
}

// Branches connects containers that have a network namespace of their own. Every
// method may be repeated.
type Branches interface {
	ApplyBranch(context.Context, topology.Branch) error
	// RemoveBranches disconnects containers; gone already is success. Many take
	// hardly longer than one.
	RemoveBranches(context.Context, topology.NetworkID, []topology.EndpointID) error
	// Branches lists those of a network, with the start of each endpoint's id.
	Branches(context.Context, topology.NetworkID) ([]topology.Branch, error)
}

// Sandboxes looks after the files by which Docker knows a container's network
// namespace.
type Sandboxes interface {
	// State tells what the key's file holds.
	State(id topology.NetworkID, key string) (SandboxState, error)
	// Expose binds the tenant namespace on the key.
	Expose(id topology.NetworkID, key string) error
	// Conceal undoes Expose; gone already is success.
	Conceal(key string) error
	// Namespace is a path of what the key holds, for Branches.
	Namespace(key string) (path string, err error)
	// Restore binds the namespace at a path on the key, in place of all else.
	Restore(key, path string) error
}

// SandboxState is what a sandbox key's file holds.
type SandboxState int

// A key has no namespace bound on it before Docker or we bind one.
const (
	SandboxAbsent  SandboxState = iota // no namespace
	SandboxTenant                      // the network's tenant namespace
	SandboxForeign                     // another namespace
)

// Guard keeps each container of a network to its own addresses, in the kernel:
// what it was told holds on without the plugin. Every method may be repeated.
type Guard interface {
	// Protect lets no process use the network's namespace that was not admitted.
	// Call it again when a link is new. ipv6 tells whether the network has IPv6.
	Protect(ctx context.Context, id topology.NetworkID, ipv6 bool) error
	// ProtectBranch does so for the link to a container with a namespace of its own.
	ProtectBranch(context.Context, topology.NetworkID, topology.EndpointID) error
	// Unprotect forgets a network whose namespace is about to go.
	Unprotect(context.Context, topology.NetworkID) error
	// Admit lets the processes of a cgroup, named by its path in the version 2
	// hierarchy, use the identity's addresses from now on.
	Admit(ctx context.Context, cgroup string, id topology.Identity) (topology.CgroupID, error)
	// Expel undoes Admit; gone already is success. It waits for nothing.
	Expel(topology.CgroupID) error
	// Admitted lists who is admitted.
	Admitted() (map[topology.CgroupID]topology.Identity, error)
}

// Table keeps records of one kind; a record is safe when Put returns.
type Table[T any] interface {
	Put(key string, v T) error
	Delete(key string) error
	DeletePrefix(prefix string) error
	All() (map[string]T, error)
}

// Engine is what the Docker API can tell. Its answers may be late or missing:
// nothing that a container's start needs depends on them, except the name of a
// network that was created a moment ago.
type Engine interface {
	// Networks lists all of Docker's networks.
	Networks(context.Context) ([]EngineNetwork, error)
	// Network resolves a name, an id or the start of an id as Docker does.
	// found is false when there is none; Ours says whether the driver is ours.
	Network(ctx context.Context, ref string) (n EngineNetwork, found bool, err error)
	// Endpoints lists the endpoints that Docker knows on a network.
	Endpoints(context.Context, topology.NetworkID) (map[topology.EndpointID]EngineContainer, error)
}

// EngineNetwork is a network as Docker lists it.
type EngineNetwork struct {
	ID   topology.NetworkID
	Name string
	Ours bool // its driver is ours
	// Pools are its subnets if their addresses come from our IPAM.
	Pools []netip.Prefix
}

// EngineContainer is the container that holds an endpoint; ID is empty while
// Docker is still starting it.
type EngineContainer struct {
	ID   topology.ContainerID
	Name string
}

// Processes tells live processes from dead ones.
type Processes interface {
	// StartTime is the process's start in clock ticks since boot; ok is false
	// when there is no such process, or only a zombie. Pid and start time
	// together name a process for ever.
	StartTime(pid int) (ticks uint64, ok bool)
	// Namespace is a path of the process's network namespace, for Branches.
	Namespace(pid int) (path string)
}

// RunFiles are the files under /run/particle that others read.
type RunFiles interface {
	// PublishNetworks writes the list by which particle-runtime knows our
	// networks while the plugin is down.
	PublishNetworks([]EngineNetwork) error
	// SweepResolv removes the resolv.conf files, older than age, of containers
	// that keep rejects.
	SweepResolv(keep func(topology.ContainerID) bool, age time.Duration) error
}

// Resolvers serves names inside a tenant namespace on behalf of name servers
// that only the host can reach.
type Resolvers interface {
	// Serve makes sure that a resolver answers for the network, and returns
	// its address; invalid if the host needs none.
	Serve(context.Context, topology.NetworkID) (netip.Addr, error)
	// Stop ends it.
	Stop(topology.NetworkID)
}
