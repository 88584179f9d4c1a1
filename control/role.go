package control

import (
	"context"
	"errors"
	"net/netip"

	"github.com/particle-net/particle/topology"
)

// Causes that callers may ask for.
var (
	ErrTaken       = errors.New("taken")                                       // by another host or network; the text says by whom
	ErrExhausted   = errors.New("no free block is left")                       //
	ErrNoNetwork   = errors.New("the cluster has no such network")             // or no more
	ErrSettling    = errors.New("hosts are claiming again what they had")      // after a loss of the store; new claims have to wait
	ErrSettled     = errors.New("the time is over in which hosts could do so") // after a loss of the store
	ErrUnreachable = errors.New("the cluster's store does not answer")         // the outcome of a write is unknown
	ErrAlive       = errors.New("it is alive")                                 // a host that was to be suspect
	ErrReserved    = errors.New("the address is kept by the network itself")   // gateway, auxiliary address, first or last
	ErrDouble      = errors.New("it has the same id")                          // another host, which is there already
)

// Allocator decides who owns what, for the host it was opened for. Every method
// is one transaction that either happened or did not; after ErrUnreachable the
// watch tells which. Methods wait until ctx ends at most, and are safe for
// concurrent use.
type Allocator interface {
	// ClaimNetwork registers a network under its id, without a name, with the VNI
	// n.VNI or, if that is 0, a free one. Causes: ErrTaken.
	ClaimNetwork(ctx context.Context, n Network) (topology.VNI, error)
	// NameNetwork gives a registered network its name, options and labels and its
	// auxiliary addresses theirs, and so lets the other hosts make it. Causes: ErrTaken, ErrNoNetwork.
	NameNetwork(ctx context.Context, n Network) error
	// RemoveNetwork marks it as removed and frees its name; not there is success.
	RemoveNetwork(ctx context.Context, id topology.SharedID) error
	// LeaveNetwork gives up all claims of this host on a network. The last host
	// to leave a removed network takes its record away and frees its VNI.
	LeaveNetwork(ctx context.Context, id topology.SharedID) error
	// ClaimBlock claims a block of one of the network's subnets that nobody has:
	// one never owned, else the one that was given up longest ago; that first, if
	// a thousand others were given up since. Causes:
	// ErrExhausted, ErrNoNetwork, ErrSettling.
	ClaimBlock(ctx context.Context, id topology.SharedID, subnet netip.Prefix) (Claim, error)
	// ClaimAddress claims one address that lies in nobody's block; one that this
	// host has already is success, but for a store that has lost claims, which may
	// call its what it has given back. Causes: ErrTaken, ErrReserved, ErrNoNetwork,
	// ErrSettling.
	ClaimAddress(ctx context.Context, id topology.SharedID, addr netip.Addr, holder string) (Claim, error)
	// Restore claims again what this host had: a store that has lost it gets it
	// back. A single address and a block of this host around it are the block alone. If
	// the network was lost too, nobody can claim anything else of it for 10 minutes,
	// until all hosts have had time to do the same; so it is when the store was set
	// back. Cause: ErrTaken if another host has it, or part of it, by now.
	Restore(ctx context.Context, n Network, c Claim) error
	// Vouch notes in a host's name what it answered for before the store lost it,
	// for as long as that host is away: nobody else is granted any of it until the
	// owner has restored or released it, or has been removed. What several hosts
	// remember differently all counts. If the owner has claimed it meanwhile,
	// nothing happens. owner is entered as a suspect host if the store does not know
	// it. Only for itself can a host do so at any time; for others while hosts
	// restore what they had. Causes: ErrNoNetwork, ErrTaken if the network is
	// another by now, ErrSettled.
	Vouch(ctx context.Context, n Network, r Route, owner Node) error
	// Release gives up a claim of this host, and what others have vouched for in its
	// name; not there, or another's, is success.
	Release(ctx context.Context, c Claim) error
}

// Directory tells which hosts and networks there are.
type Directory interface {
	// WatchNetworks delivers every registered network, removed ones too.
	WatchNetworks(ctx context.Context) <-chan Update[Network]
	// WatchNodes delivers every host, with whether its lease lives.
	WatchNodes(ctx context.Context) <-chan Update[NodeState]
}

// NodeState is a host and whether it has been heard of lately, which is advice
// and no more.
type NodeState struct {
	Node
	Alive bool
}

// Distributor tells hosts which host answers for which addresses. Every
// implementation passes the suite in control/controltest.
type Distributor interface {
	// Announce lets the other hosts of the route's network know it, until Withdraw.
	// It may be repeated.
	Announce(ctx context.Context, r Route) error
	// Withdraw takes it back; not there is success.
	Withdraw(ctx context.Context, r Route) error
	// WatchRoutes delivers the routes of one network, this host's own among them.
	WatchRoutes(ctx context.Context, n Network) <-chan Update[Route]
}

// Update is one message of a watch. The first that is healthy is Whole; so is
// the one after each interruption that may have lost changes. The channel is
// closed when the watch's context ends, and only then: whatever else goes wrong
// is told by Down, and the watch goes on by itself.
type Update[T any] struct {
	// Whole: Put is all there is, and Deleted is empty.
	Whole   bool
	Put     []T
	Deleted []T // as last put
	// Unread, of a Whole list, are there too, but what they say cannot be read: a newer
	// version wrote them, or somebody damaged them. They carry no more than what their key
	// tells, and what was known of them before stays.
	Unread []T
	// Down: the watch delivers nothing for now, for the reason given. What was
	// delivered before may be out of date, and is no less true for it.
	Down error
	// Instance and Revision tell whether a Whole list is of the store that the
	// last one was of, and later. Empty and 0 if the source has no such thing.
	Instance string
	Revision int64
	// Mark is of what the source has told with this message or before; none if it has no
	// such thing.
	Mark Mark
}

// Origin is what a host knows of the source that a watch told of last: enough to tell, after
// a restart too, whether that is another one now, or has been set back.
type Origin struct {
	Instance string `json:",omitempty"`
	Revision int64  `json:",omitempty"`
	Mark     Mark   `json:",omitzero"`
}

// Mark is a record of the source and the revision at which it was written. A source that was
// set back to before that, and has come further since, has written something else then.
type Mark struct {
	Record   string
	Revision int64
}

// Later is the one of two that was written later.
func (m Mark) Later(other Mark) Mark {
	if other.Revision > m.Revision {
		return other
	}
	return m
}
