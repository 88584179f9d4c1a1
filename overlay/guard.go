package overlay

import (
	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/topology"
)

// anyUplink matches the host's ends of all uplinks.
const anyUplink = uplinkPrefix + "*"

// hostRules keep tenants apart from each other and from Docker's own networks,
// and let them out under the host's address. They do not grow with networks.
func hostRules(port uint16) ruleset {
	return ruleset{
		{"prerouting", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, nftables.ChainPriorityRaw, []rule{
			newRule("uplinks carry IPv4 alone", from(anyUplink), family(unix.NFPROTO_IPV6), drop()),
			newRule("a source that is not behind this uplink", from(anyUplink), strayed(), drop()),
		}},
		{"input", nftables.ChainTypeFilter, nftables.ChainHookInput, nftables.ChainPriorityFilter, []rule{
			newRule("forged VXLAN", from(anyUplink), udpTo(port), drop()),
			newRule("the uplink of another tenant", from(anyUplink), within4(destination4, topology.UplinkRange), notOwn(), drop()),
		}},
		{"forward", nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityFilter, []rule{
			// The host would send it on from its own tunnel address, and a VXLAN
			// device believes every sender.
			newRule("forged VXLAN", from(anyUplink), udpTo(port), drop()),
			// Docker's own forward rules, which come after DOCKER-USER, would
			// have stopped these.
			newRule("Docker's default bridge", from(anyUplink), to("docker0"), notPublished(), drop()),
			newRule("Docker's gateway bridge", from(anyUplink), to("docker_gwbridge"), notPublished(), drop()),
			newRule("Docker's bridge networks", from(anyUplink), to("br-*"), nameLength15(), notPublished(), drop()),
			newRule("answers to tenants", to(anyUplink), answers(), accept()),
			newRule("nothing else reaches a tenant, from another least of all", to(anyUplink), drop()),
		}},
		{"postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource, []rule{
			newRule("tenants leave as the host", within4(source4, topology.UplinkRange), notTo(anyUplink), masquerade()),
		}},
	}
}

// tenantRules let a tenant's containers out by its uplink and nothing in, and
// keep the packets of the overlay and of lo out of connection tracking, which
// would cost a tenth of the packet rate.
func tenantRules() ruleset {
	return ruleset{
		{"untracked-in", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, nftables.ChainPriorityRaw, []rule{
			newRule("overlay", from(vxlanName), notrack()),
		}},
		{"untracked-out", nftables.ChainTypeFilter, nftables.ChainHookOutput, nftables.ChainPriorityRaw, []rule{
			newRule("overlay", to(vxlanName), notrack()),
			newRule("between containers on this host", to("lo"), notrack()), // holds on the way in, too
		}},
		{"input", nftables.ChainTypeFilter, nftables.ChainHookInput, nftables.ChainPriorityFilter, []rule{
			newRule("answers from outside", from(uplinkName), answers(), accept()),
			newRule("nothing else from outside", from(uplinkName), drop()),
		}},
		// New namespaces inherit ip_forward from the host's first one.
		{"forward", nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityFilter, []rule{
			newRule("a tenant is no router", drop()),
		}},
		{"postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource, []rule{
			newRule("containers leave as the tenant", to(uplinkName), masquerade()),
		}},
	}
}
