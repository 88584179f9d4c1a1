package overlay

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/topology"
)

// A network's way out of the host passes a namespace of its own, the gateway:
//
//	tenant namespace                 gateway                      host
//	┌──────────────────────┐   ┌──────────────────────┐   ┌────────────────┐
//	│ up0 ─── veth pair ───┼───┼─ in0            up0 ─┼───┼─ pu4f2a9c01d3b7│
//	│ default via in0      │   │ default via pu…      │   └────────────────┘
//	└──────────────────────┘   │ from up0, lo: via in0│
//	                           │ masquerade to up0    │
//	                           └──────────────────────┘
//
// Addresses are translated with the help of connection tracking, for which every
// packet pays in a namespace that has it, tracked or exempt: a tenth of the rate of
// small ones between hosts. So the tenant namespace has none, and what does not
// leave the host by the uplink never meets it.
//
// What comes back is routed by the link it came in by, so the gateway knows none of
// the network's subnets. What the gateway says itself, that a packet has expired
// above all, is for containers: by its default route it would leave the host, for an
// address that may be somebody else's there.

const (
	// gatewayName is the gateway's end of the link to the tenant namespace.
	gatewayName = "in0"
	// gatewaySuffix ends the name of the file that the gateway is bound on; what is
	// before it is the network's.
	gatewaySuffix = ".gateway"
	// returnTable is the routing table for what comes back, and the priority of the
	// rules that lead there: after table local's, before table main's.
	returnTable = 112
	// selfName is the link that packets of a namespace's own come from to its rules.
	selfName = "lo"
)

// wayOut is the way from a tenant namespace by its gateway to the host.
type wayOut struct {
	tenant, gate    *namespace
	inside, outside pair // as seen from the gateway
}

func newWayOut(root, gate, tenant *namespace, up topology.Uplink) wayOut {
	in := up.Inside()
	return wayOut{
		tenant: tenant, gate: gate,
		outside: pair{end{root, hostEnd(up.Network), up.Host, up.Host6}, end{gate, uplinkName, up.Tenant, up.Tenant6}, up.MTU},
		inside:  pair{end{gate, gatewayName, in.Host, in.Host6}, end{tenant, uplinkName, in.Tenant, in.Tenant6}, in.MTU},
	}
}

// ensureRoutes leads out and back again, in the family of the addresses that addr
// tells of ends.
func (w wayOut) ensureRoutes(addr func(end) netip.Addr) (changed bool, err error) {
	back := addr(w.inside.inner)
	return inTurn([]func() (bool, error){
		func() (bool, error) {
			return w.gate.ensureDefault(uplinkName, unix.RT_TABLE_MAIN, addr(w.outside.outer))
		},
		func() (bool, error) {
			return w.tenant.ensureDefault(uplinkName, unix.RT_TABLE_MAIN, addr(w.inside.outer))
		},
		func() (bool, error) { return w.gate.ensureDefault(gatewayName, returnTable, back) },
		func() (bool, error) { return w.gate.ensureReturnRules(familyOf(back), uplinkName, selfName) },
	})
}

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

// ensurePassing makes the gateway pass on what its rules let it.
func (n *namespace) ensurePassing() (changed bool, err error) {
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

// ensureReturnRules has what comes in by the links follow returnTable.
func (n *namespace) ensureReturnRules(family int, links ...string) (changed bool, err error) {
	rules, err := listed(func() ([]netlink.Rule, error) { return n.route.RuleList(family) })
	if err != nil {
		return false, fmt.Errorf("list routing rules: %w", err)
	}
	for _, link := range links {
		if slices.ContainsFunc(rules, func(r netlink.Rule) bool {
			return r.IifName == link && r.Table == returnTable && r.Priority == returnTable
		}) {
			continue
		}
		rule := netlink.NewRule()
		rule.Family, rule.IifName, rule.Table, rule.Priority = family, link, returnTable, returnTable
		if err := n.route.RuleAdd(rule); err != nil {
			return changed, fmt.Errorf("set routing rule for %s: %w", link, err)
		}
		changed = true
	}
	return changed, nil
}

// removeGateway deletes the network's end on the host and lets the gateway go;
// gone is success. The kernel takes the gateway's links along, and so the tenant's
// end, when it comes to it.
func (h *Host) removeGateway(id topology.NetworkID) error {
	path, err := h.gatewayPath(id)
	if err != nil {
		return err
	}
	h.unwatch(path)
	_, err = h.root.remove(hostEnd(id)) // the other end goes with it
	return errors.Join(err, unbind(path))
}
