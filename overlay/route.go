package overlay

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// loopback is lo's index: the kernel registers lo first in every namespace.
const loopback = 1

// routeProtocol marks the routes we make (rtnetlink(7) leaves values above
// RTPROT_STATIC to whoever wants them), so that those of others are left alone.
const routeProtocol = 112

// resolver is where Docker's embedded resolver listens.
func resolver() netip.Prefix { return netip.MustParsePrefix("127.0.0.11/32") }

// ensureBase brings lo up and blocks the address of Docker's resolver.
func (n *namespace) ensureBase() (changed bool, err error) {
	lo, err := n.route.LinkByIndex(loopback)
	if err != nil {
		return false, fmt.Errorf("find lo: %w", err)
	}
	if lo.Attrs().Flags&net.FlagUp == 0 {
		if err := n.route.LinkSetUp(lo); err != nil {
			return false, fmt.Errorf("set lo up: %w", err)
		}
		changed = true
	}
	blocked, err := n.routes(netlink.FAMILY_V4, unix.RTN_UNREACHABLE)
	if err != nil {
		return changed, err
	}
	if slices.Contains(blocked, resolver()) {
		return changed, nil
	}
	err = n.route.RouteReplace(&netlink.Route{
		Dst: ipNet(resolver()), Table: unix.RT_TABLE_LOCAL, Type: unix.RTN_UNREACHABLE, Protocol: routeProtocol,
	})
	if err != nil {
		return changed, fmt.Errorf("block %s: %w", resolver(), err)
	}
	return true, nil
}

// routes are the prefixes of our routes of one type in table local, sorted.
func (n *namespace) routes(family, routeType int) ([]netip.Prefix, error) {
	filter := &netlink.Route{Table: unix.RT_TABLE_LOCAL}
	list, err := listed(func() ([]netlink.Route, error) {
		return n.route.RouteListFiltered(family, filter, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	var prefixes []netip.Prefix
	for _, r := range list {
		if r.Type == routeType && r.Protocol == routeProtocol && r.Dst != nil {
			prefixes = append(prefixes, prefix(r.Dst))
		}
	}
	slices.SortFunc(prefixes, netip.Prefix.Compare)
	return prefixes, nil
}

// ensurePools makes the addresses of pools, and of no others, local.
func (n *namespace) ensurePools(pools []netip.Prefix) (changed bool, err error) {
	have, err := n.routes(netlink.FAMILY_ALL, unix.RTN_LOCAL)
	if err != nil {
		return false, err
	}
	add, drop := diff(have, pools)
	var errs []error
	for _, pool := range add {
		if err := n.route.RouteReplace(poolRoute(pool)); err != nil {
			errs = append(errs, fmt.Errorf("make %s local: %w", pool, err))
		}
	}
	for _, pool := range drop {
		route := poolRoute(pool)
		route.Priority = 0 // any
		if err := n.route.RouteDel(route); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, fmt.Errorf("withdraw %s: %w", pool, err))
		}
	}
	return len(add)+len(drop) > 0, errors.Join(errs...)
}

// poolRoute is AnyIP: every address of the pool is local, and on no link. The
// route of a pool of one address yields to that of a branch with the address,
// which is as long.
func poolRoute(pool netip.Prefix) *netlink.Route {
	metric := 0
	if pool.IsSingleIP() {
		metric = branchMetric
	}
	return &netlink.Route{
		Priority:  metric,
		LinkIndex: loopback,
		Dst:       ipNet(pool.Masked()),
		Table:     unix.RT_TABLE_LOCAL,
		Type:      unix.RTN_LOCAL,
		Scope:     unix.RT_SCOPE_HOST,
		Protocol:  routeProtocol,
	}
}

// diff tells what to add to have, and what to drop from it, to reach want.
func diff(have, want []netip.Prefix) (add, drop []netip.Prefix) {
	for _, p := range want {
		if p = p.Masked(); !slices.Contains(have, p) && !slices.Contains(add, p) {
			add = append(add, p)
		}
	}
	for _, p := range have {
		wanted := slices.ContainsFunc(want, func(w netip.Prefix) bool { return w.Masked() == p })
		if !wanted {
			drop = append(drop, p)
		}
	}
	return add, drop
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func prefix(n *net.IPNet) netip.Prefix {
	addr, _ := netip.AddrFromSlice(n.IP)
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(addr.Unmap(), bits)
}

// address is the zero Addr for no IP.
func address(ip net.IP) netip.Addr {
	addr, _ := netip.AddrFromSlice(ip)
	return addr.Unmap()
}
