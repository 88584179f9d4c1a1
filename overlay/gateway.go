package overlay

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"

	"github.com/particle-net/particle/topology"
)

// A network's way out of the host passes a namespace of its own, the gateway:
//
//	tenant namespace                 gateway                      host
//	┌──────────────────────┐   ┌──────────────────────┐   ┌────────────────┐
//	│ up0 ─── veth pair ───┼───┼─ in0            up0 ─┼───┼─ pu4f2a9c01d3b7│
//	│ default via in0      │   │ default via pu…      │   └────────────────┘
//	└──────────────────────┘   │ from up0: via in0    │
//	                           │ masquerade to up0    │
//	                           └──────────────────────┘
//
// Addresses are translated with the help of connection tracking, for which every
// packet pays in a namespace that has it, tracked or exempt: a tenth of the rate of
// small ones between hosts. So the tenant namespace has none, and what does not
// leave the host by the uplink never meets it.
//
// What comes back is routed by the link it came in by, so the gateway knows none of
// the network's subnets.

const (
	// gatewayName is the gateway's end of the link to the tenant namespace.
	gatewayName = "in0"
	// gatewaySuffix ends the name of the file that the gateway is bound on; what is
	// before it is the network's.
	gatewaySuffix = ".gateway"
	// returnTable is the routing table for what comes back, and the priority of the
	// rule that leads there: after table local's, before table main's.
	returnTable = 112
)

// gatewayPath is the file the network's gateway is bound on.
func (h *Host) gatewayPath(id topology.NetworkID) (string, error) {
	path, err := h.path(id)
	return path + gatewaySuffix, err
}

// gateway opens the network's, which is made if there is none.
func (h *Host) gateway(id topology.NetworkID) (gate *namespace, made bool, err error) {
	path, err := h.gatewayPath(id)
	if err != nil {
		return nil, false, err
	}
	gate, err = openNamespace(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return gate, false, err
	}
	gate, err = h.takeNamespace()
	if err != nil {
		return nil, false, err
	}
	if err := bind(gate.source(), path); err != nil {
		gate.close()
		return nil, false, err
	}
	return gate, true, nil
}

// ensureGateway makes the namespace pass on what it should, and nothing else.
func (n *namespace) ensureGateway() (changed bool, err error) {
	return inTurn([]func() (bool, error){
		func() (bool, error) { return n.ensureRules(tableName, gatewayRules()) },
		func() (changed bool, err error) {
			err = enter(n.file, func() (err error) {
				changed, err = settle([]sysctl{
					// The kernel's own filter looks for sources in table main, where the
					// network's are not.
					{"net/ipv4/conf/all/rp_filter", "0"},
					{"net/ipv4/conf/default/rp_filter", "0"},
					{"net/ipv4/ip_forward", "1"},
					{"net/ipv6/conf/all/forwarding", "1"},
				})
				return err
			})
			return changed, err
		},
	})
}

// gatewayRules let a network's containers out and nothing but answers in.
func gatewayRules() ruleset {
	return ruleset{
		{"input", nftables.ChainTypeFilter, nftables.ChainHookInput, nftables.ChainPriorityFilter, []rule{
			newRule("nobody lives here", drop()),
		}},
		{"forward", nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityFilter, []rule{
			newRule("containers to outside", from(gatewayName), to(uplinkName), accept()),
			newRule("answers from outside", from(uplinkName), to(gatewayName), answers(), accept()),
			newRule("nothing else", drop()),
		}},
		{"postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource, []rule{
			newRule("containers leave as the network", to(uplinkName), masquerade()),
		}},
	}
}

// ensureReturn sends what comes in by the uplink to the tenant's end of the link
// inside, for the address's family.
func (n *namespace) ensureReturn(tenant netip.Addr) (changed bool, err error) {
	in, err := n.mustFind(gatewayName)
	if err != nil {
		return false, err
	}
	want := netlink.Route{
		LinkIndex: in.Attrs().Index, Dst: ipNet(netip.PrefixFrom(tenant, 0).Masked()), Gw: tenant.AsSlice(),
		Table: returnTable, Protocol: routeProtocol,
	}
	have, err := listed(func() ([]netlink.Route, error) {
		return n.route.RouteListFiltered(familyOf(tenant), &netlink.Route{Table: returnTable}, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return false, fmt.Errorf("list routes: %w", err)
	}
	if !slices.ContainsFunc(have, func(r netlink.Route) bool {
		return r.LinkIndex == want.LinkIndex && (r.Dst == nil || prefix(r.Dst).Bits() == 0) && address(r.Gw) == tenant
	}) {
		if err := n.route.RouteReplace(&want); err != nil {
			return false, fmt.Errorf("set route of answers via %s: %w", tenant, err)
		}
		changed = true
	}
	did, err := n.ensureReturnRule(familyOf(tenant))
	return changed || did, err
}

func (n *namespace) ensureReturnRule(family int) (changed bool, err error) {
	rules, err := listed(func() ([]netlink.Rule, error) { return n.route.RuleList(family) })
	if err != nil {
		return false, fmt.Errorf("list routing rules: %w", err)
	}
	if slices.ContainsFunc(rules, func(r netlink.Rule) bool {
		return r.IifName == uplinkName && r.Table == returnTable && r.Priority == returnTable
	}) {
		return false, nil
	}
	rule := netlink.NewRule()
	rule.Family, rule.IifName, rule.Table, rule.Priority = family, uplinkName, returnTable, returnTable
	if err := n.route.RuleAdd(rule); err != nil {
		return false, fmt.Errorf("set routing rule for %s: %w", uplinkName, err)
	}
	return true, nil
}

// removeGateway deletes the network's end on the host and lets the gateway go;
// gone is success. The kernel takes the gateway's links along, and so the tenant's
// end, when it comes to it.
func (h *Host) removeGateway(id topology.NetworkID) error {
	path, err := h.gatewayPath(id)
	if err != nil {
		return err
	}
	_, err = h.root.remove(hostEnd(id)) // the other end goes with it
	return errors.Join(err, unbind(path))
}
