package overlay

import (
	"net/netip"

	"github.com/google/nftables"
)

// anyBranch matches the tenant's ends of all branches.
const anyBranch = branchPrefix + "*"

// Sources of hosts that have no address yet: "this network" (RFC 1122 section
// 3.2.1.3) and the unspecified address (RFC 4291 section 2.5.2).
var (
	zeroNetwork  = netip.MustParsePrefix("0.0.0.0/8")
	unspecified6 = netip.MustParsePrefix("::/128")
)

// A container with a namespace of its own may be root there, with every
// capability, so nothing it sends is believed. These rules hold for all
// branches; the route to each says which address is behind it.

// branchTable is a table of its own, for networks with branches alone: a chain more
// costs every packet that comes in from other hosts.
const branchTable = "particle-branches"

func branchRules() ruleset {
	return ruleset{
		{"prerouting", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, nftables.ChainPriorityRaw, []rule{
			newRule("no branch's", notFrom(anyBranch), accept()),
			// The reverse path filter below leaves these to whoever assigns addresses.
			newRule("a branch without a source", inRange(source, zeroNetwork), drop()),
			newRule("a branch without a source", inRange(source, unspecified6), drop()),
			newRule("a branch sends from its own address alone", strayed(), drop()),
		}},
	}
}

// repairTrunk makes what branches have in common what it should be, if there are any.
func (n *namespace) repairTrunk() (changed bool, err error) {
	ends, err := n.branchEnds()
	if err != nil || len(ends) == 0 {
		return false, err
	}
	if changed, err = n.ensureRules(branchTable, branchRules()); err != nil {
		return changed, err // without them it must not forward
	}
	more, err := n.forward()
	return changed || more, err
}

// branchForwards are the exceptions from "a tenant is no router".
func branchForwards() []rule {
	return []rule{
		newRule("between branches", from(anyBranch), to(anyBranch), accept()),
		newRule("branches to other hosts", from(anyBranch), to(vxlanName), accept()),
		newRule("other hosts to branches", from(vxlanName), to(anyBranch), accept()),
		newRule("branches to outside", from(anyBranch), to(uplinkName), accept()),
		newRule("answers from outside to branches", from(uplinkName), to(anyBranch), accept()),
	}
}
