package overlay

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Routed is what the host reaches otherwise than by a default route.
type Routed struct {
	Prefix netip.Prefix
	Link   string // by which it is reached
}

// Routed lists them, but for what leads to particle's own uplinks and tunnels, to
// link-local addresses and into loopback.
func (h *Host) Routed(context.Context) ([]Routed, error) {
	links, err := listed(h.root.route.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	routes, err := listed(func() ([]netlink.Route, error) {
		return h.root.route.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	var all []Routed
	for _, r := range routes {
		if r.Type != unix.RTN_UNICAST || r.Dst == nil {
			continue
		}
		to, index := prefix(r.Dst), r.LinkIndex
		if len(r.MultiPath) > 0 {
			index = r.MultiPath[0].LinkIndex
		}
		i := slices.IndexFunc(links, func(l netlink.Link) bool { return l.Attrs().Index == index })
		if to.Bits() == 0 || to.Addr().IsLinkLocalUnicast() || index == loopback || i < 0 {
			continue
		}
		if name := links[i].Attrs().Name; !strings.HasPrefix(name, uplinkPrefix) && name != wireGuardName {
			all = append(all, Routed{to, name})
		}
	}
	return all, nil
}
