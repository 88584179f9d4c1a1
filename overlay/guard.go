package overlay

import (
	"net/netip"

	"github.com/google/nftables"

	"github.com/particle-net/particle/topology"
)

// anyUplink matches the host's ends of all uplinks.
const anyUplink = uplinkPrefix + "*"

// hostRules keep tenants apart from each other and from what else runs on the
// host behind bridges, Docker's networks above all, and let them out under the
// host's address. They do not grow with networks. The bridges named are those
// that lead to other machines.
func hostRules(port uint16, outward []string) ruleset {
	forward := []rule{
		// The host would send it on from its own tunnel address, and a VXLAN
		// device believes every sender.
		newRule("forged VXLAN", from(anyUplink), udpTo(port), drop()),
	}
	for _, bridge := range outward {
		forward = append(forward, newRule("a bridge to other machines", from(anyUplink), to(bridge), accept()))
	}
	forward = append(forward,
		// Docker's own forward rules, which come after DOCKER-USER, would have
		// stopped these. A bridge that is new is taken for one of Docker's.
		newRule("bridges of containers and virtual machines", from(anyUplink), toKind(bridgeKind), notPublished(), drop()),
		newRule("answers to tenants", to(anyUplink), answers(), accept()),
		newRule("nothing else reaches a tenant, from another least of all", to(anyUplink), drop()),
	)
	return ruleset{
		{"prerouting", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, nftables.ChainPriorityRaw, []rule{
			newRule("uplinks need no discovery", from(anyUplink), discovery(), drop()),
			// An address of no scope, or of the link's, is not looked for below.
			newRule("a source that is no tenant's", from(anyUplink), notInRange(source, topology.UplinkRange6), drop()),
			newRule("a source that is not behind this uplink", from(anyUplink), strayed(), drop()),
		}},
		{"input", nftables.ChainTypeFilter, nftables.ChainHookInput, nftables.ChainPriorityFilter, []rule{
			newRule("forged VXLAN", from(anyUplink), udpTo(port), drop()),
			newRule("the uplink of another tenant", from(anyUplink), inRange(destination, topology.UplinkRange), notOwn(), drop()),
			newRule("the uplink of another tenant", from(anyUplink), inRange(destination, topology.UplinkRange6), notOwn(), drop()),
		}},
		{"forward", nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityFilter, forward},
		{"postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource, []rule{
			newRule("tenants leave as the host", inRange(source, topology.UplinkRange), notTo(anyUplink), masquerade()),
			newRule("tenants leave as the host", inRange(source, topology.UplinkRange6), notTo(anyUplink), masquerade()),
		}},
	}
}

// tenantRules let a tenant's containers out by its uplink and nothing in, and
// keep the packets of the overlay and of lo out of connection tracking, which
// would cost a tenth of the packet rate. Other hosts reach what is in the
// network's subnets and nothing else that is local here: neither the uplink's own
// address nor what the namespace has for its containers' sake. Without subnets,
// on a host that is alone, nobody is asked: its VXLAN device hears nobody.
func tenantRules(subnets []netip.Prefix) ruleset {
	input := []rule{
		newRule("answers from outside", from(uplinkName), answers(), accept()),
		newRule("nothing else from outside", from(uplinkName), drop()),
	}
	for _, n := range subnets {
		input = append(input, newRule("other hosts to containers", from(vxlanName), inRange(destination, n), accept()))
	}
	if len(subnets) > 0 {
		input = append(input, newRule("other hosts to anything else", from(vxlanName), drop()))
	}
	return ruleset{
		{"untracked-in", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, nftables.ChainPriorityRaw, append(branchSources(),
			newRule("overlay", from(vxlanName), notrack()),
		)},
		{"untracked-out", nftables.ChainTypeFilter, nftables.ChainHookOutput, nftables.ChainPriorityRaw, []rule{
			newRule("overlay", to(vxlanName), notrack()),
			newRule("between containers on this host", to("lo"), notrack()), // holds on the way in, too
			newRule("branches", to(anyBranch), notrack()),
		}},
		{"input", nftables.ChainTypeFilter, nftables.ChainHookInput, nftables.ChainPriorityFilter, input},
		// New namespaces inherit ip_forward from the host's first one.
		{"forward", nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityFilter, append(branchForwards(),
			newRule("a tenant is no router", drop()),
		)},
		{"postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource, []rule{
			newRule("containers leave as the tenant", to(uplinkName), masquerade()),
		}},
	}
}

// ensureTenantRules makes them those of the subnets that the namespace has.
func (n *namespace) ensureTenantRules() (changed bool, err error) {
	subnets, err := n.subnets()
	if err != nil {
		return false, err
	}
	return n.ensureRules(tenantRules(subnets))
}
