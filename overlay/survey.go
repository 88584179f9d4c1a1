package overlay

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// survey is what the rules of uplinks have to know of the host's other links.
type survey struct {
	when    time.Time // zero if there was none
	outward []string  // names, in order, of the bridges that lead to other machines
	ipv6    bool      // other machines are reached over IPv6
}

// ensureHostRules makes the table in the host's namespace, after a look at the
// host's links if the last was too long ago.
func (h *Host) ensureHostRules() (changed bool, err error) {
	if h.surveyed.when.IsZero() || time.Since(h.surveyed.when) >= h.opts.AcceptEvery {
		if h.surveyed, err = h.survey(); err != nil {
			return false, err
		}
	}
	return h.root.ensureRules(tableName, hostRules(h.ports(), h.surveyed.outward))
}

// survey looks at links and routes. A bridge leads to other machines if a
// default route uses it, or if it has a port other than the ends of containers
// and virtual machines. All others, Docker's among them whatever their names,
// connect what runs on this host.
func (h *Host) survey() (s survey, err error) {
	links, err := listed(h.root.route.LinkList)
	if err != nil {
		return s, fmt.Errorf("list links: %w", err)
	}
	exits, err := h.exits(links)
	if err != nil {
		return s, err
	}
	ends := []string{(&netlink.Veth{}).Type(), (&netlink.Tuntap{}).Type(), (&netlink.Dummy{}).Type()}
	inward := []int{loopback} // links by which no other machine is reached
	for _, l := range links {
		index, name := l.Attrs().Index, l.Attrs().Name
		outward := slices.ContainsFunc(exits, func(e exit) bool { return e.link == index }) ||
			slices.ContainsFunc(links, func(port netlink.Link) bool {
				return port.Attrs().MasterIndex == index && !slices.Contains(ends, port.Type())
			})
		switch {
		case l.Type() == bridgeKind && outward:
			s.outward = append(s.outward, name)
		case l.Type() == bridgeKind, strings.HasPrefix(name, uplinkPrefix), name == wireGuardName:
			inward = append(inward, index)
		}
	}
	slices.Sort(s.outward)
	s.ipv6, err = h.reaches6(inward)
	s.when = time.Now()
	return s, err
}

// reaches6 says whether the host has a route of IPv6 by another link than those
// given. The ones to link-local addresses, which every link has, do not count.
func (h *Host) reaches6(inward []int) (bool, error) {
	routes, err := listed(func() ([]netlink.Route, error) {
		return h.root.route.RouteList(nil, netlink.FAMILY_V6)
	})
	if err != nil {
		return false, fmt.Errorf("list routes: %w", err)
	}
	return slices.ContainsFunc(routes, func(r netlink.Route) bool {
		// A kernel without IPv6 lists those of IPv4.
		if r.Family != netlink.FAMILY_V6 || r.Type != unix.RTN_UNICAST || r.Dst != nil && prefix(r.Dst).Addr().IsLinkLocalUnicast() {
			return false
		}
		hops := r.MultiPath
		if len(hops) == 0 {
			hops = []*netlink.NexthopInfo{{LinkIndex: r.LinkIndex}}
		}
		return slices.ContainsFunc(hops, func(hop *netlink.NexthopInfo) bool { return !slices.Contains(inward, hop.LinkIndex) })
	}), nil
}
