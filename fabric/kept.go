package fabric

import (
	"net/netip"
	"slices"

	"github.com/particle-net/particle/topology"
)

// A block that this host has lost stays on its network's record for as long as the disk is
// full. A plugin that is killed meanwhile must not have the next one hand it out, so what
// is left is noted where that takes no room on the disk. With the next boot the note goes.

// noteKept notes which of the claims on a network's record are this host's still, unless
// all are. The caller holds mu.
func (f *Fabric) noteKept(n *network, kept []netip.Prefix) (noted bool, err error) {
	if len(kept) == len(n.Claims) && !n.claimsNew {
		return false, nil
	}
	return true, f.o.Kept.Put(string(n.ID), kept)
}

// recorded follows a record that has been written and has the claims as they are. The
// caller holds mu.
func (f *Fabric) recorded(n *network, claims, leaving []netip.Prefix, noted bool) (err error) {
	if n.Claims, n.Leaving = claims, leaving; noted {
		err = f.o.Kept.Delete(string(n.ID))
	}
	n.claimsNew = err != nil // another note would say that what comes is lost
	return err
}

// withdrawLost takes out of records what the notes say is lost. leave is to be called when
// it is known which addresses are used. Open alone calls both.
func (f *Fabric) withdrawLost(notes map[string][]netip.Prefix) (leave func()) {
	var of []*network
	for id, kept := range notes {
		n := f.networks[topology.NetworkID(id)]
		if n == nil {
			continue
		}
		n.Leaving = slices.Concat(n.Leaving, n.Claims)
		n.Claims = slices.DeleteFunc(n.Claims, func(b netip.Prefix) bool { return !slices.Contains(kept, b) })
		n.claimsNew = true
		of = append(of, n)
	}
	return func() {
		for _, n := range of {
			n.Leaving = f.leaving(n, n.Claims)
		}
	}
}
