package overlay

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/topology"
)

// defaultMTU is Ethernet's, for a host that has no underlay to ask.
const defaultMTU = 1500

// Underlay finds the host's tunnel address and the MTU of the link it is on:
// want if it is valid, else the source of the default route, else the first
// global unicast address of a link that is up and is neither Docker's nor ours.
// IPv4 is preferred. A host with no such address gets an invalid VTEP: its
// networks work, on this host alone.
func (h *Host) Underlay(ctx context.Context, want netip.Addr) (topology.Underlay, error) {
	release, err := h.write(ctx)
	if err != nil {
		return topology.Underlay{}, err
	}
	defer release()
	candidates, err := h.addresses()
	if err == nil && want.IsValid() {
		return h.chosen(candidates, want.Unmap())
	}
	var exits []exit
	if err == nil {
		exits, err = h.exits()
	}
	if err != nil {
		return topology.Underlay{}, &fault.Error{Op: "find tunnel address", Err: err, Fix: "set the tunnel address explicitly"}
	}
	candidates = slices.DeleteFunc(candidates, func(c candidate) bool {
		return !c.up || (foreign(c.name) && rank(exits, c) == unranked)
	})
	slices.SortStableFunc(candidates, func(a, b candidate) int {
		return cmp.Or(cmp.Compare(a.addr.BitLen(), b.addr.BitLen()), cmp.Compare(rank(exits, a), rank(exits, b)))
	})
	if len(candidates) == 0 {
		return topology.Underlay{MTU: defaultMTU, Port: h.opts.Port}, nil
	}
	return topology.Underlay{VTEP: candidates[0].addr, MTU: candidates[0].mtu, Port: h.opts.Port}, nil
}

func (h *Host) chosen(candidates []candidate, want netip.Addr) (topology.Underlay, error) {
	for _, c := range candidates {
		if c.addr == want {
			return topology.Underlay{VTEP: want, MTU: c.mtu, Port: h.opts.Port}, nil
		}
	}
	return topology.Underlay{}, &fault.Error{Op: "use tunnel address", On: want.String(),
		Err: errors.New("no link of this host has it"), Fix: "choose one that `ip address` lists, or none to have it found"}
}

// candidate is an address that could carry tunnels.
type candidate struct {
	addr netip.Addr
	link int
	name string
	mtu  int
	up   bool
}

// foreign tells links that exist for containers.
func foreign(name string) bool {
	return slices.ContainsFunc([]string{"docker", "br-", "veth", uplinkPrefix, wireGuardName}, func(p string) bool {
		return strings.HasPrefix(name, p)
	})
}

// addresses lists the global unicast addresses of the host in the kernel's
// order, without those about to go or not yet usable.
func (h *Host) addresses() ([]candidate, error) {
	links, err := listed(h.root.route.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	addrs, err := listed(func() ([]netlink.Addr, error) {
		return h.root.route.AddrList(nil, netlink.FAMILY_ALL)
	})
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	// IFA_F_TEMPORARY is for IPv6 alone: the bit means "secondary" in IPv4.
	const unusable = unix.IFA_F_TEMPORARY | unix.IFA_F_DEPRECATED | unix.IFA_F_TENTATIVE
	var found []candidate
	for _, a := range addrs {
		ip := address(a.IP)
		i := slices.IndexFunc(links, func(l netlink.Link) bool { return l.Attrs().Index == a.LinkIndex })
		if i < 0 || !ip.IsGlobalUnicast() || ip.Is6() && a.Flags&unusable != 0 {
			continue
		}
		attrs := links[i].Attrs()
		if attrs.Flags&net.FlagLoopback != 0 {
			continue
		}
		found = append(found, candidate{addr: ip, link: attrs.Index, name: attrs.Name, mtu: attrs.MTU,
			up: attrs.Flags&net.FlagUp != 0})
	}
	return found, nil
}

// exit is a default route: its link, and the source address it asks for.
type exit struct {
	link   int
	source netip.Addr // zero if any of the link's
}

const unranked = math.MaxInt

// rank orders candidates by the default route that would use them.
func rank(exits []exit, c candidate) int {
	for i, e := range exits {
		if e.link == c.link && (!e.source.IsValid() || e.source == c.addr) {
			return i
		}
	}
	return unranked
}

// exits are the default routes of each family, the most preferred first, as the
// kernel lists routes to one destination.
func (h *Host) exits() ([]exit, error) {
	routes, err := listed(func() ([]netlink.Route, error) {
		return h.root.route.RouteList(nil, netlink.FAMILY_ALL)
	})
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	routes = slices.DeleteFunc(routes, func(r netlink.Route) bool {
		return r.Type != unix.RTN_UNICAST || r.Dst != nil && prefix(r.Dst).Bits() != 0
	})
	var list []exit
	for _, r := range routes {
		if r.LinkIndex != 0 {
			list = append(list, exit{link: r.LinkIndex, source: address(r.Src)})
		}
		for _, hop := range r.MultiPath {
			list = append(list, exit{link: hop.LinkIndex, source: address(r.Src)})
		}
	}
	return list, nil
}
