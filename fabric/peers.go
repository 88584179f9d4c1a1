package fabric

import (
	"context"
	"errors"
	"net/netip"

	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/topology"
)

// SetPeers says which other hosts have a part of the network, all of them, and
// programs what has changed. The list is kept, and not to be changed afterwards. SavePeers is to follow, for the next start, when nobody
// may be there to ask; the others' containers are answered without it. Peers that this
// host has no way to are told in the network's view. Cause: ErrNoNetwork, also while it
// is being made.
func (f *Fabric) SetPeers(ctx context.Context, id topology.SharedID, peers []topology.Peer) error {
	n, err := f.shared("set peers of network", id)
	if err != nil {
		return err
	}
	n.work.Lock()
	defer n.work.Unlock()
	gone, come := changedPeers(n.peers, peers) // they change under work alone; and containers wait while mu is held
	f.mu.Lock()
	applied, here := n.applied, f.networks[n.ID] == n
	partly := n.unreached != ""
	n.peers, n.peersNew = peers, n.peersNew || len(gone)+len(come) > 0
	segment := f.segment(n)
	f.mu.Unlock()
	if !here {
		return &fault.Error{Op: "set peers of network", On: id.Short(), Err: ErrNoNetwork}
	}
	if !applied {
		_, err = f.apply(ctx, n)
	} else if len(gone)+len(come) > 0 {
		err = f.o.Segments.ChangePeers(ctx, segment, gone, come)
		if partly || errors.Is(err, topology.ErrUnreached) {
			_, err = f.apply(ctx, n) // which hosts cannot be reached is known of all together
		}
	}
	if err != nil {
		f.mu.Lock()
		n.applied = false // Repair makes up for it, or the next container
		f.mu.Unlock()
	}
	return err
}

// changedPeers leaves out of two lists what they have in common: of a thousand hosts
// one has come.
func changedPeers(before, after []topology.Peer) (gone, come []topology.Peer) {
	for len(before) > 0 && len(after) > 0 && before[0].Equal(after[0]) {
		before, after = before[1:], after[1:]
	}
	for len(before) > 0 && len(after) > 0 && before[len(before)-1].Equal(after[len(after)-1]) {
		before, after = before[:len(before)-1], after[:len(after)-1]
	}
	was := make(map[netip.Addr]topology.Peer, len(before))
	for _, p := range before {
		was[p.VTEP] = p
	}
	for _, p := range after {
		if old, ok := was[p.VTEP]; ok && old.Equal(p) {
			delete(was, p.VTEP)
		} else {
			come = append(come, p)
		}
	}
	for _, p := range before {
		if _, ok := was[p.VTEP]; ok {
			gone = append(gone, p)
		}
	}
	return gone, come
}

// SavePeers has on disk what SetPeers told last, if it is not there yet. It is apart
// because the list is long and may change often. A network that is not here is
// success.
func (f *Fabric) SavePeers(_ context.Context, id topology.SharedID) error {
	n, err := f.shared("keep peers of network", id)
	if err != nil {
		return nil
	}
	n.work.Lock()
	defer n.work.Unlock()
	f.mu.Lock()
	peers, due := n.peers, n.peersNew && f.networks[n.ID] == n
	n.peersNew = false
	f.mu.Unlock()
	if !due {
		return nil
	}
	if err = f.o.Peers.Put(string(n.ID), peers); err != nil {
		f.mu.Lock()
		n.peersNew = true
		f.mu.Unlock()
	}
	return err
}
