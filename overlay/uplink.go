package overlay

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/topology"
)

// uplinkName is the name of the end that leads outwards: the tenant's towards the
// gateway, and the gateway's towards the host.
const uplinkName = "up0"

// uplinkPrefix starts the names of the host's ends.
const uplinkPrefix = "pu"

// hostEnd is the name of the host's end: 14 of the 15 bytes a name can have.
func hostEnd(id topology.NetworkID) string { return uplinkPrefix + id.Short() }

// ApplyUplink gives the network its way out of the host and reports whether it
// had to change anything. The network must have been applied. Rules come before
// the link, so that nothing passes unguarded.
//
// It turns the host's forwarding on if it is off, as dockerd does: of IPv4
// always, of IPv6 (see ensureForwarding6) when an uplink needs it. Until the host
// has IPv6 itself, its uplinks get none. Cause: ErrNoNetwork.
func (h *Host) ApplyUplink(ctx context.Context, up topology.Uplink) (changed bool, err error) {
	release, err := h.write(ctx)
	if err != nil {
		return false, err
	}
	defer release()
	ns, err := h.tenant("apply uplink", up.Network)
	if err != nil {
		return false, err
	}
	defer ns.close()
	gate, changed, err := h.gateway(up.Network)
	if err != nil {
		return false, uplinkError("apply uplink", up.Network, err)
	}
	defer gate.close()
	w := newWayOut(h.root, gate, ns, up)
	did, err := h.lead(ctx, w, up)
	return changed || did, uplinkError("apply uplink", up.Network, err)
}

// lead makes the way out. Where all of the network's namespaces was in order and has
// been still since, what is left to look at is what changes without a word, and the
// host's part.
func (h *Host) lead(ctx context.Context, w wayOut, up topology.Uplink) (changed bool, err error) {
	if changed, err = h.ensureHostRules(); err != nil {
		return changed, err
	}
	six := up.Host6.IsValid() && h.surveyed.ipv6
	gate, now, err := h.uplinkSight(w, up, six)
	if err != nil {
		return changed, err
	}
	still := gate.inOrder == now
	did, err := inTurn(h.steps(ctx, w, up.Network, still))
	changed = changed || did
	if err == nil && six {
		did, err = inTurn(h.steps6(ctx, w, still))
		changed = changed || did
	}
	gate.note(now, !changed && err == nil)
	return changed, err
}

// uplinkSight is what there is to find in order of the uplink, before a look, and the
// watch that keeps it.
func (h *Host) uplinkSight(w wayOut, up topology.Uplink, six bool) (*watch, sight, error) {
	path, err := h.path(up.Network)
	if err != nil {
		return nil, sight{}, err
	}
	tenant, err := h.watchOf(path, w.tenant)
	if err != nil {
		return nil, sight{}, err
	}
	gate, err := h.watchOf(path+gatewaySuffix, w.gate)
	if err != nil {
		return nil, sight{}, err
	}
	type wish struct {
		topology.Uplink
		six bool
	}
	return gate, sight{tenant.hear() + gate.hear(), maphash.Comparable(seed, wish{up, six})}, nil
}

// steps are what an uplink takes, after the host's rules.
func (h *Host) steps(ctx context.Context, w wayOut, id topology.NetworkID, still bool) []func() (bool, error) {
	all := []func() (bool, error){w.gate.ensurePassing, w.outside.ensure}
	if !still {
		all = []func() (bool, error){
			w.tenant.ensureTenantRules,
			func() (bool, error) { return w.gate.ensureRules(tableName, gatewayRules()) },
			w.gate.ensurePassing,
			w.outside.ensure,
			w.inside.ensure,
			func() (bool, error) { return w.ensureRoutes(end.addr) },
		}
	}
	return append(all,
		func() (bool, error) { return h.ensureForwarding(ctx, id) },
		func() (bool, error) { return h.ensureAccepted(ctx, iptables) },
	)
}

// inTurn takes steps until one fails.
func inTurn(steps []func() (bool, error)) (changed bool, err error) {
	for _, step := range steps {
		did, err := step()
		changed = changed || did
		if err != nil {
			return changed, err
		}
	}
	return changed, nil
}

func uplinkError(op string, id topology.NetworkID, err error) error {
	var known *fault.Error
	if err == nil || errors.As(err, &known) {
		return err
	}
	return &fault.Error{Op: op, On: id.Short(), Err: err, Fix: "run `particle doctor` on this host"}
}

// ensureEnd gives one end its MTU and its address, and brings it up.
func (n *namespace) ensureEnd(name string, addr netip.Prefix, mtu int) (changed bool, err error) {
	end, err := n.mustFind(name)
	if err != nil {
		return false, err
	}
	if end.Attrs().MTU != mtu {
		if err := n.route.LinkSetMTU(end, mtu); err != nil {
			return false, fmt.Errorf("set MTU %d of %s: %w", mtu, name, err)
		}
		changed = true
	}
	did, err := n.ensureAddress(end, addr)
	if err != nil {
		return changed, err
	}
	changed = changed || did
	if end.Attrs().Flags&net.FlagUp != 0 {
		did, err := n.ensureConnected(end, addr)
		return changed || did, err
	}
	err = n.route.LinkSetIP6AddrGenMode(end, addrGenNone)
	if err != nil && !errors.Is(err, unix.EAFNOSUPPORT) { // a kernel without IPv6
		return changed, fmt.Errorf("set address generation of %s: %w", name, err)
	}
	if err := n.route.LinkSetUp(end); err != nil {
		return changed, fmt.Errorf("set %s up: %w", name, err)
	}
	return true, nil
}

// ensureAddress makes addr the link's only address of its family. IPv6
// link-local ones do not count: network managers give links such, and nothing
// is routed to them.
func (n *namespace) ensureAddress(on netlink.Link, addr netip.Prefix) (changed bool, err error) {
	family, flags := netlink.FAMILY_V4, 0
	if addr.Addr().Is6() {
		family, flags = netlink.FAMILY_V6, unix.IFA_F_NODAD // nobody else can have it
	}
	have, err := listed(func() ([]netlink.Addr, error) { return n.route.AddrList(on, family) })
	if err != nil {
		return false, fmt.Errorf("list addresses of %s: %w", on.Attrs().Name, err)
	}
	present := false
	for _, a := range have {
		if prefix(a.IPNet) == addr {
			present = true
			continue
		}
		if ip := address(a.IP); ip.Is6() && ip.IsLinkLocalUnicast() {
			continue
		}
		if err := n.route.AddrDel(on, &a); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return changed, fmt.Errorf("remove %s from %s: %w", a.IPNet, on.Attrs().Name, err)
		}
		changed = true
	}
	if present {
		return changed, nil
	}
	if err := n.route.AddrReplace(on, &netlink.Addr{IPNet: ipNet(addr), Flags: flags}); err != nil {
		return changed, fmt.Errorf("add %s to %s: %w", addr, on.Attrs().Name, err)
	}
	return true, nil
}

// ensureConnected makes the route to what is on the link, which the kernel makes with an
// address of a link that is up: whoever flushes the host's routes to set them anew knows
// nothing of it. It is not looked for: the kernel would list all of the host's.
func (n *namespace) ensureConnected(on netlink.Link, addr netip.Prefix) (changed bool, err error) {
	route := &netlink.Route{LinkIndex: on.Attrs().Index, Dst: ipNet(addr.Masked()), Protocol: unix.RTPROT_KERNEL}
	if addr.Addr().Is4() {
		route.Src, route.Scope = addr.Addr().AsSlice(), unix.RT_SCOPE_LINK
	} else {
		route.Priority = 256 // as the kernel's (include/uapi/linux/ipv6_route.h, IP6_RT_PRIO_ADDRCONF)
	}
	err = n.route.RouteAdd(route)
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return false, fmt.Errorf("set route to %s by %s: %w", addr.Masked(), on.Attrs().Name, err)
	}
	return err == nil, nil
}

// ensureDefault makes an address the gateway by a link, for its family, in a routing
// table.
func (n *namespace) ensureDefault(name string, table int, gateway netip.Addr) (changed bool, err error) {
	link, err := n.mustFind(name)
	if err != nil {
		return false, err
	}
	have, err := listed(func() ([]netlink.Route, error) {
		filter := &netlink.Route{LinkIndex: link.Attrs().Index, Table: table}
		return n.route.RouteListFiltered(familyOf(gateway), filter, netlink.RT_FILTER_OIF|netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return false, fmt.Errorf("list routes: %w", err)
	}
	if slices.ContainsFunc(have, func(r netlink.Route) bool {
		return (r.Dst == nil || prefix(r.Dst).Bits() == 0) && address(r.Gw) == gateway
	}) {
		return false, nil
	}
	err = n.route.RouteReplace(&netlink.Route{
		LinkIndex: link.Attrs().Index, Dst: ipNet(netip.PrefixFrom(gateway, 0).Masked()), Gw: gateway.AsSlice(),
		Table: table, Protocol: routeProtocol,
	})
	if err != nil {
		return false, fmt.Errorf("set default route via %s in table %d: %w", gateway, table, err)
	}
	return true, nil
}
