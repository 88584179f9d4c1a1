package overlay

import (
	"context"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"

	"github.com/particle-net/particle/topology"
)

// hasIPv6 says whether IPv6 is on on the host, as far as that can be known
// without looking at each link.
func (h *Host) hasIPv6() bool {
	var off string
	err := enter(h.root.file, func() (err error) {
		off, err = readSysctl("net/ipv6/conf/all/disable_ipv6")
		return err
	})
	return err == nil && off == "0"
}

// steps6 are what an uplink with IPv6 takes beyond one without. The link's ends
// are up by then: a link loses its IPv6 addresses when it goes down.
func (h *Host) steps6(ctx context.Context, ns *namespace, up topology.Uplink) []func() (bool, error) {
	host := hostEnd(up.Network)
	return []func() (bool, error){
		func() (bool, error) { return h.root.ensureEnd6(host, up.Host6) },
		func() (bool, error) { return ns.ensureEnd6(uplinkName, up.Tenant6) },
		func() (bool, error) { return h.ensureNeighbours(ns, up) },
		func() (bool, error) { return ns.ensureDefault(up.Host6.Addr()) },
		func() (bool, error) { return h.ensureForwarding6(ctx) },
		func() (bool, error) { return h.ensureAccepted(ctx, ip6tables) },
	}
}

// ensureEnd6 gives one end its IPv6 address. Hosts may switch IPv6 off for new
// links, and Docker up to 25 does for all of a namespace. What the other end
// advertises is nothing to believe.
func (n *namespace) ensureEnd6(name string, addr netip.Prefix) (changed bool, err error) {
	err = enter(n.file, func() (err error) {
		changed, err = settle([]sysctl{
			{"net/ipv6/conf/" + name + "/disable_ipv6", "0"},
			{"net/ipv6/conf/" + name + "/accept_ra", "0"},
			{"net/ipv6/conf/" + name + "/accept_redirects", "0"},
		})
		return err
	})
	if err != nil {
		return changed, err
	}
	end, err := n.mustFind(name)
	if err != nil {
		return changed, err
	}
	did, err := n.ensureAddress(end, addr)
	return changed || did, err
}

// ensureNeighbours tells each end the other's hardware address for good.
// Discovery would need link-local addresses, and rules that let it through.
func (h *Host) ensureNeighbours(ns *namespace, up topology.Uplink) (changed bool, err error) {
	outer, err := h.root.mustFind(hostEnd(up.Network))
	if err != nil {
		return false, err
	}
	inner, err := ns.mustFind(uplinkName)
	if err != nil {
		return false, err
	}
	changed, err = h.root.ensureNeighbour(outer, up.Tenant6.Addr(), inner.Attrs().HardwareAddr)
	if err != nil {
		return changed, err
	}
	did, err := ns.ensureNeighbour(inner, up.Host6.Addr(), outer.Attrs().HardwareAddr)
	return changed || did, err
}

func (n *namespace) ensureNeighbour(on netlink.Link, addr netip.Addr, mac net.HardwareAddr) (changed bool, err error) {
	have, err := listed(func() ([]netlink.Neigh, error) {
		return n.route.NeighList(on.Attrs().Index, netlink.FAMILY_V6)
	})
	if err != nil {
		return false, fmt.Errorf("list neighbours on %s: %w", on.Attrs().Name, err)
	}
	for _, e := range have {
		if address(e.IP) == addr && e.State == netlink.NUD_PERMANENT && e.HardwareAddr.String() == mac.String() {
			return false, nil
		}
	}
	err = n.route.NeighSet(&netlink.Neigh{
		LinkIndex: on.Attrs().Index, IP: addr.AsSlice(), HardwareAddr: mac, State: netlink.NUD_PERMANENT,
	})
	if err != nil {
		return false, fmt.Errorf("set neighbour %s on %s: %w", addr, on.Attrs().Name, err)
	}
	return true, nil
}
