package controltest

import (
	"context"
	"math/rand/v2"
	"net/netip"
	"slices"

	"github.com/particle-net/particle/control"
)

// Churn is one step of a host that claims and releases at random on the first
// subnet of a network, which it returns with what it has after that. Errors are
// for the history to judge.
func Churn(ctx context.Context, a control.Allocator, n control.Network, rng *rand.Rand, have []control.Claim) []control.Claim {
	sub := n.Subnets[0].Prefix
	switch what := rng.IntN(4); {
	case what == 0:
		if c, err := a.ClaimBlock(ctx, n.ID, sub); err == nil {
			have = append(have, c)
		}
	case what == 1:
		at := sub.Addr().As4()
		at[3] = byte(1 + rng.IntN(20)*12)
		c, err := a.ClaimAddress(ctx, n.ID, netip.AddrFrom4(at), "")
		if err == nil && !slices.Contains(have, c) { // who asks twice has it once
			have = append(have, c)
		}
	case len(have) > 0:
		i := rng.IntN(len(have))
		if a.Release(ctx, have[i]) == nil {
			have = append(have[:i], have[i+1:]...)
		}
	}
	return have
}
