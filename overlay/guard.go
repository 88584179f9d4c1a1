package overlay

import (
	"net/netip"
	"slices"

	"github.com/google/nftables"

	"github.com/particle-net/particle/topology"
)

// anyUplink matches the host's ends of all uplinks.
const anyUplink = uplinkPrefix + "*"

// hostRules keep tenants apart from each other and from what else runs on the
// host behind bridges, Docker's networks above all, and let them out under the
// host's address. They do not grow with networks. The ports are those at which
// hosts of the cluster take VXLAN, and the bridges named those that lead to other
// machines.
func hostRules(ports []uint16, outward []string) ruleset {
	var forged []rule
	for _, port := range ports {
		// The host would send it on from its own tunnel address, and a VXLAN
		// device believes every sender.
		forged = append(forged, newRule("forged VXLAN", udpTo(port), drop()))
	}
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
		{"prerouting", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, nftables.ChainPriorityRaw, slices.Concat([]rule{
			newRule("no tenant's", notFrom(anyUplink), accept()),
			newRule("uplinks need no discovery", discovery(), drop()),
			// An address of no scope, or of the link's, is not looked for below.
			newRule("a source that is no tenant's", notInRange(source, topology.UplinkRange6), drop()),
			newRule("a source that is not behind this uplink", strayed(), drop()),
		}, forged, []rule{
			newRule("the uplink of another tenant", inRange(destination, topology.UplinkRange), notOwn(), drop()),
			newRule("the uplink of another tenant", inRange(destination, topology.UplinkRange6), notOwn(), drop()),
		})},
		{"forward", nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityFilter, forward},
		{"postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource, []rule{
			newRule("tenants leave as the host", inRange(source, topology.UplinkRange), notTo(anyUplink), masquerade()),
			newRule("tenants leave as the host", inRange(source, topology.UplinkRange6), notTo(anyUplink), masquerade()),
		}},
	}
}

// tenantRules keep other hosts to the network's containers and make the tenant
// namespace no router. Other hosts reach what is in the network's subnets and
// nothing else that is local here: neither the uplink's own address nor what the
// namespace has for its containers' sake. Without subnets, on a host that is alone,
// nobody is asked: its VXLAN device is down. What comes in by the uplink has
// passed the gateway.
//
// No rule here may ask for connections or translate addresses: that switches the
// namespace's connection tracking on, for every packet; see gateway.go.
func tenantRules(subnets []netip.Prefix) ruleset {
	var rules ruleset
	if len(subnets) > 0 {
		var input []rule
		for _, n := range subnets { // the packets that are many end a chain by its first rule
			input = append(input, newRule("other hosts to containers", from(vxlanName), inRange(destination, n), accept()))
		}
		input = append(input, newRule("other hosts to anything else", from(vxlanName), drop()))
		rules = append(rules, chain{"input", nftables.ChainTypeFilter, nftables.ChainHookInput, nftables.ChainPriorityFilter, input})
	}
	// New namespaces inherit ip_forward from the host's first one.
	return append(rules, chain{"forward", nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityFilter,
		append(branchForwards(), newRule("a tenant is no router", drop()))})
}

// ensureTenantRules makes them those of the subnets that the namespace has.
func (n *namespace) ensureTenantRules() (changed bool, err error) {
	subnets, err := n.subnets()
	if err != nil {
		return false, err
	}
	return n.ensureRules(tableName, tenantRules(subnets))
}
