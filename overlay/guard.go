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
	var forward []rule
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
		// What no packet of a tenant's may be, for the host itself or beyond it, is
		// told here: a chain more would cost all other packets of the host, too.
		{"prerouting", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, nftables.ChainPriorityRaw, []rule{
			newRule("no tenant's", notFrom(anyUplink), accept()),
			newRule("uplinks need no discovery", discovery(), drop()),
			// An address of no scope, or of the link's, is not looked for below.
			newRule("a source that is no tenant's", notInRange(source, topology.UplinkRange6), drop()),
			newRule("a source that is not behind this uplink", strayed(), drop()),
			// The host would send it on from its own tunnel address, and a VXLAN
			// device believes every sender.
			newRule("forged VXLAN", udpTo(port), drop()),
			newRule("the uplink of another tenant", inRange(destination, topology.UplinkRange), notOwn(), drop()),
			newRule("the uplink of another tenant", inRange(destination, topology.UplinkRange6), notOwn(), drop()),
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
// would cost a tenth of the packet rate. These are the packets that are many, so
// the first rule of a chain that knows them ends it. Other hosts reach what is in the
// network's subnets and nothing else that is local here: neither the uplink's own
// address nor what the namespace has for its containers' sake. Without subnets,
// on a host that is alone, nobody is asked: its VXLAN device hears nobody.
func tenantRules(subnets []netip.Prefix) ruleset {
	var input []rule
	for _, n := range subnets {
		input = append(input, newRule("other hosts to containers", from(vxlanName), inRange(destination, n), accept()))
	}
	input = append(input, newRule("between containers on this host", from("lo"), accept()))
	if len(subnets) > 0 {
		input = append(input, newRule("other hosts to anything else", from(vxlanName), drop()))
	}
	input = append(input,
		newRule("answers from outside", from(uplinkName), answers(), accept()),
		newRule("nothing else from outside", from(uplinkName), drop()),
	)
	return ruleset{
		{"untracked-in", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, nftables.ChainPriorityRaw, append([]rule{
			newRule("overlay", from(vxlanName), notrack(), accept()),
			newRule("between containers on this host", from("lo"), accept()), // not tracked on its way out
		}, branchSources()...)},
		{"untracked-out", nftables.ChainTypeFilter, nftables.ChainHookOutput, nftables.ChainPriorityRaw, []rule{
			newRule("overlay", to(vxlanName), notrack(), accept()),
			newRule("between containers on this host", to("lo"), notrack(), accept()),
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
