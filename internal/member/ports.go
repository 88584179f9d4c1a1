package member

import (
	"context"
	"net/netip"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/particle-net/particle/control"
	"github.com/particle-net/particle/fabric"
	"github.com/particle-net/particle/internal/engine"
	"github.com/particle-net/particle/topology"
)

// Store is a connection to the cluster's store.
type Store interface {
	control.Allocator
	control.Directory
	control.Distributor
	// SetNode tells the cluster about this host.
	SetNode(context.Context, control.Node) error
	// RemoveNode gives up all that a host had, which is suspect or this one.
	RemoveNode(context.Context, topology.NodeID) error
	// Close ends the connection; watches end.
	Close() error
}

// Fabric is this host's part of the networks that hosts share.
type Fabric interface {
	Shared() []fabric.SharedNetwork
	// FindShared is one of them, without Peers and Live.
	FindShared(topology.SharedID) (fabric.SharedNetwork, bool)
	// SetClaims tells which addresses of a network are this host's to give out.
	SetClaims(context.Context, topology.SharedID, []netip.Prefix) error
	// NeedsBlock says whether what it has of a subnet is nearly used up now. If not, it
	// says Low anew when it is.
	NeedsBlock(topology.SharedID, netip.Prefix) bool
	// SuspendClaims stops giving out addresses for the reason given, or, with nil, allows
	// it again.
	SuspendClaims(topology.SharedID, error)
	// SetPeers tells which other hosts answer for which addresses.
	SetPeers(context.Context, topology.SharedID, []topology.Peer) error
	// SavePeers has on disk what SetPeers told last.
	SavePeers(context.Context, topology.SharedID) error
}

// Engine is this host's Docker.
type Engine interface {
	Specs(context.Context) ([]engine.Spec, error)
	Endpoints(context.Context, topology.NetworkID) (map[topology.EndpointID]fabric.EngineContainer, error)
	Create(ctx context.Context, driver string, s engine.Spec) (topology.NetworkID, error)
	Remove(context.Context, topology.NetworkID) error
}

// Overlay lets in the VXLAN packets of these tunnel addresses and no others, takes
// their ports for those of VXLAN, and encrypts for these hosts and no others.
type Overlay interface {
	SetMembers(context.Context, []netip.AddrPort) error
	AddMembers(context.Context, []netip.AddrPort) error
	SetWireGuardPeers(context.Context, []topology.WireGuardPeer) error
}

// Options are what a Member stands on. All are needed but Chosen.
type Options struct {
	Node    control.Node // this host; how it is reached may be told later, by SetReach
	Fabric  Fabric
	Engine  Engine
	Overlay Overlay
	Driver  string // by which Docker knows ours
	Known   fabric.Table[Known]
	Hosts   fabric.Table[control.Node] // of an encrypted cluster
	// Chosen says whether a subnet may be one that we chose because the user
	// named none.
	Chosen func(netip.Prefix) bool
	// Clock is the time since the boot, sleep included.
	Clock func() time.Duration
	// Wall is the time that people see, which may be any: hosts compare none of
	// theirs with another's.
	Wall func() time.Time
	Log  *logrus.Entry
}
