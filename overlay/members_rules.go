package overlay

import (
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/topology"
)

// filterRules are the chains of the table, on a host that takes VXLAN at a port.
func filterRules(port uint16) ruleset {
	encrypted := topology.WireGuardRange
	return ruleset{
		{"bridged", "", nil, nil, []rule{
			newRule("this host, which does not send here", family(unix.NFPROTO_IPV4), inSet(source, unix.NFPROTO_IPV4, own4), drop()),
			newRule("this host, which does not send here", family(unix.NFPROTO_IPV6), inSet(source, unix.NFPROTO_IPV6, own6), drop()),
			newRule("a host that is elsewhere", family(unix.NFPROTO_IPV4), inSet(source, unix.NFPROTO_IPV4, members4), notOwn(), strayed(), drop()),
			newRule("a host that is elsewhere", family(unix.NFPROTO_IPV6), inSet(source, unix.NFPROTO_IPV6, members6), notOwn(), strayed(), drop()),
		}},
		{"passing", "", nil, nil, []rule{ // the packets that are many end it by its second rule
			newRule("what containers may have made", fromKind(bridgeKind), jumpTo("bridged")),
			newRule("networks of ours, to any host", withNetwork(port), notrack(), accept()),
			newRule("any network's, to a host of the cluster", family(unix.NFPROTO_IPV4), inSet(destination, unix.NFPROTO_IPV4, members4), notrack()),
			newRule("any network's, to a host of the cluster", family(unix.NFPROTO_IPV6), inSet(destination, unix.NFPROTO_IPV6, members6), notrack()),
		}},
		{"prerouting", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, nftables.ChainPriorityRaw, []rule{
			newRule("VXLAN of any host", toHosts(), goTo("passing")),
		}},
		{"sent", "", nil, nil, []rule{
			newRule("IPv4", family(unix.NFPROTO_IPV4), notrack(), accept()),
			newRule("in plain", inRange(source, encrypted), notTo(wireGuardName), drop()),
			newRule("in plain", inRange(destination, encrypted), notTo(wireGuardName), drop()),
			newRule("all others", notrack()),
		}},
		{"output", nftables.ChainTypeFilter, nftables.ChainHookOutput, nftables.ChainPriorityRaw, []rule{
			newRule("networks of ours, to any host", toHosts(), withNetwork(port), goTo("sent")),
		}},
		{"members", "", nil, nil, []rule{
			newRule("made on this host", from("lo"), drop()),
			newRule("a host of the cluster", family(unix.NFPROTO_IPV4), inSet(source, unix.NFPROTO_IPV4, members4), inSet(destination, unix.NFPROTO_IPV4, own4), accept()),
			newRule("in plain", inRange(source, encrypted), notFrom(wireGuardName), drop()),
			newRule("a host of the cluster", family(unix.NFPROTO_IPV6), inSet(source, unix.NFPROTO_IPV6, members6), inSet(destination, unix.NFPROTO_IPV6, own6), accept()),
			newRule("anybody else", drop()),
		}},
		{"others", "", nil, nil, []rule{
			newRule("VXLAN of others", []expr.Any{vni()}, accept()),
			newRule("a piece that is too short to tell", drop()),
		}},
		{"input", nftables.ChainTypeFilter, nftables.ChainHookInput, nftables.ChainPriorityRaw, []rule{
			newRule("networks of ours", toNetwork(), goTo("members")),
			newRule("nothing else is encrypted", from(wireGuardName), drop()),
			newRule("VXLAN of others, or a piece of any", udpTo(port), goTo("others")),
		}},
		{"forward", nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityRaw, []rule{
			newRule("this host's own end", from(wireGuardName), drop()),
			newRule("this host's own end", to(wireGuardName), drop()),
		}},
	}
}
