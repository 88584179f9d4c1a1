package overlay

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// configureOuter sets up the tenant's end: the route last, which is when packets
// to the address begin to leave for the container.
func (b *branch) configureOuter() error {
	if b.outer.Attrs().RawFlags&unix.IFF_NOARP == 0 {
		if err := b.tenant.route.LinkSetARPOff(b.outer); err != nil {
			return fmt.Errorf("switch ARP of %s off: %w", b.outer.Attrs().Name, err)
		}
	}
	if err := b.tenant.raiseEnd(b.outer, b.MTU); err != nil {
		return err
	}
	for _, a := range b.Addresses() {
		pool := slices.IndexFunc(b.trunk.pools, func(p netip.Prefix) bool { return p.Contains(a) })
		if pool < 0 {
			return fmt.Errorf("%s is in no pool of the network", a)
		}
		if zero := b.trunk.pools[pool].Addr(); zero != a {
			if err := b.tenant.assign(b.outer, zero); err != nil {
				return err
			}
		}
		if err := b.tenant.acquaint(b.outer, a, b.mac()); err != nil {
			return err
		}
		if err := b.tenant.route.RouteReplace(branchRoute(b.outer, a)); err != nil {
			return fmt.Errorf("set route to %s: %w", a, err)
		}
	}
	return nil
}

// branchRoute leads to the container; see the top of this file.
func branchRoute(end netlink.Link, a netip.Addr) *netlink.Route {
	route := &netlink.Route{
		LinkIndex: end.Attrs().Index, Dst: ipNet(host(a)), Table: unix.RT_TABLE_LOCAL, Type: unix.RTN_UNICAST, Protocol: routeProtocol,
	}
	if a.Is4() {
		route.Scope = unix.RT_SCOPE_LINK
	}
	return route
}

// configureInner sets up the container's end.
func (b *branch) configureInner() error {
	lo, err := b.guest.route.LinkByIndex(loopback)
	if err == nil && lo.Attrs().Flags&net.FlagUp == 0 {
		err = b.guest.route.LinkSetUp(lo)
	}
	if err != nil {
		return fmt.Errorf("set lo up: %w", err)
	}
	if err := b.rename(); err != nil {
		return err
	}
	if err := b.allowIPv6(); err != nil {
		return err
	}
	err = b.guest.route.LinkSetIP6AddrGenMode(b.inner, addrGenNone)
	if err != nil && !errors.Is(err, unix.EAFNOSUPPORT) { // a kernel without IPv6
		return fmt.Errorf("set address generation of %s: %w", b.inner.Attrs().Name, err)
	}
	if err := b.guest.raiseEnd(b.inner, b.MTU); err != nil {
		return err
	}
	for _, a := range b.Addresses() {
		if err := b.guest.assign(b.inner, a); err != nil {
			return err
		}
		via := gateway(familyOf(a))
		if err := b.guest.acquaint(b.inner, via, HardwareAddr(gateway(netlink.FAMILY_V4))); err != nil {
			return err
		}
		if err := b.direct(a, via); err != nil {
			return err
		}
	}
	return nil
}

// rename gives the link the name that is wanted now. It has to be down for that.
func (b *branch) rename() error {
	name := b.inner.Attrs().Name
	stem, numbered := strings.CutSuffix(b.Link, "%d")
	number := strings.TrimPrefix(name, stem)
	if name == b.Link || numbered && number != name && strings.Trim(number, "0123456789") == "" {
		return nil
	}
	err := b.guest.route.LinkSetDown(b.inner)
	if err == nil {
		err = b.guest.route.LinkSetName(b.inner, b.Link)
	}
	if err == nil {
		b.inner, err = b.guest.route.LinkByIndex(b.inner.Attrs().Index)
	}
	if err != nil {
		return fmt.Errorf("rename %s to %s: %w", name, b.Link, err)
	}
	return nil
}

// allowIPv6 undoes what Docker up to 25 does to every container's namespace.
func (b *branch) allowIPv6() error {
	if !b.IPv6.IsValid() {
		return nil
	}
	return enter(b.guest.file, func() error {
		_, err := settle([]sysctl{
			{"net/ipv6/conf/lo/disable_ipv6", "0"},
			{"net/ipv6/conf/" + b.inner.Attrs().Name + "/disable_ipv6", "0"},
		})
		return err
	})
}

// direct gives the container its routes in one family. The metric is the link's own, so
// that what another of our networks leads to as well (the outside, the resolver, an equal
// subnet) stays that one's while it is connected, and is there when one of them goes.
func (b *branch) direct(a, via netip.Addr) error {
	reached := slices.Clone(b.Subnets)
	if !b.Internal {
		reached = append(reached, netip.PrefixFrom(a, 0))
	}
	for _, p := range reached {
		if p.Addr().Is4() != a.Is4() {
			continue
		}
		route := &netlink.Route{
			LinkIndex: b.inner.Attrs().Index, Dst: ipNet(p.Masked()), Gw: via.AsSlice(), Flags: int(netlink.FLAG_ONLINK),
			Priority: branchMetric + b.inner.Attrs().Index,
		}
		if err := b.guest.route.RouteReplace(route); err != nil {
			return fmt.Errorf("set route to %s: %w", p, err)
		}
	}
	return nil
}

// carrierLimit bounds the wait for work that the kernel has begun already.
const carrierLimit = time.Second

// awaitCarrier waits until the tenant's end sends. It was up before there was
// anybody at the other end, and the kernel drops what it is to send until its
// link watch has seen the change: the first packet of the container would go
// unanswered, and TCP repeats one after a second. Recent kernels look when they
// are asked (rtnl_getlink in net/core/rtnetlink.c).
func (b *branch) awaitCarrier() error {
	for deadline := time.Now().Add(carrierLimit); ; {
		end, err := b.tenant.find(b.outer.Attrs().Name)
		switch {
		case err != nil:
			return err
		case end == nil:
			return ErrNoContainer
		case end.Attrs().OperState == netlink.OperUp:
			return nil
		case time.Now().After(deadline):
			return fmt.Errorf("%s does not get a carrier", b.outer.Attrs().Name)
		}
		<-time.After(time.Millisecond)
	}
}

// raiseEnd gives a link its MTU and brings it up.
func (n *namespace) raiseEnd(end netlink.Link, mtu int) error {
	if end.Attrs().MTU != mtu {
		if err := n.route.LinkSetMTU(end, mtu); err != nil {
			return fmt.Errorf("set MTU %d of %s: %w", mtu, end.Attrs().Name, err)
		}
	}
	if end.Attrs().Flags&net.FlagUp != 0 {
		return nil
	}
	if err := n.route.LinkSetUp(end); err != nil {
		return fmt.Errorf("set %s up: %w", end.Attrs().Name, err)
	}
	return nil
}

// assign adds an address without its pool's prefix length; see the package's
// invariants.
func (n *namespace) assign(on netlink.Link, a netip.Addr) error {
	flags := 0
	if a.Is6() {
		flags = unix.IFA_F_NODAD // there is nobody to ask, and it would be unusable meanwhile
	}
	if err := n.route.AddrReplace(on, &netlink.Addr{IPNet: ipNet(host(a)), Flags: flags}); err != nil {
		return fmt.Errorf("add %s to %s: %w", a, on.Attrs().Name, err)
	}
	return nil
}

// acquaint tells a link the MAC of a neighbour for good.
func (n *namespace) acquaint(on netlink.Link, a netip.Addr, mac net.HardwareAddr) error {
	err := n.route.NeighSet(&netlink.Neigh{
		LinkIndex: on.Attrs().Index, Family: familyOf(a), State: netlink.NUD_PERMANENT, IP: a.AsSlice(), HardwareAddr: mac,
	})
	if err != nil {
		return fmt.Errorf("set neighbour %s on %s: %w", a, on.Attrs().Name, err)
	}
	return nil
}
