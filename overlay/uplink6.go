package overlay

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// steps6 are what an uplink with IPv6 takes beyond one without.
func (h *Host) steps6(ctx context.Context, w wayOut, still bool) []func() (bool, error) {
	all := []func() (bool, error){func() (bool, error) { return w.outside.ensure6(ctx) }}
	if !still {
		all = append(all,
			func() (bool, error) { return w.inside.ensure6(ctx) },
			func() (bool, error) { return w.ensureRoutes(end.addr6) },
		)
	}
	return append(all,
		func() (bool, error) { return h.ensureForwarding6(ctx) },
		func() (bool, error) { return h.ensureAccepted(ctx, ip6tables) },
	)
}

// ensureEnd6 gives one end its IPv6 address. Hosts may switch IPv6 off for new
// links, and Docker up to 25 does for all of a namespace. What the other end
// advertises is nothing to believe.
func (n *namespace) ensureEnd6(ctx context.Context, name string, addr netip.Prefix) (changed bool, err error) {
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
	switch {
	case err == nil && did:
		err = n.awaitDelivery(ctx, addr.Addr())
	case err == nil:
		did, err = n.ensureConnected(end, addr)
	}
	return changed || did, err
}

// awaitDelivery waits until packets to a new address of the namespace arrive. The
// kernel makes the route for them later, in a work queue (net/ipv6/addrconf.c,
// addrconf_dad_work), although there is nothing to detect; answers to a packet
// sent meanwhile would be lost.
func (n *namespace) awaitDelivery(ctx context.Context, addr netip.Addr) error {
	ctx, cancel := context.WithTimeout(ctx, socketTimeout)
	defer cancel()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		routes, err := n.route.RouteGet(addr.AsSlice())
		if err == nil && len(routes) == 1 && routes[0].Type == unix.RTN_LOCAL {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("wait for the route to %s: %w", addr, errors.Join(err, context.Cause(ctx)))
		}
	}
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
