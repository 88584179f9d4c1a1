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
// IPv4 is preferred, and what is not deprecated. An address of lo, as hosts have that
// tell routers of it, is taken if it is wanted or the source of a default route, with the
// MTU of the narrowest default route. A host with no such address gets an invalid VTEP:
// its networks work, on this host alone.
func (h *Host) Underlay(ctx context.Context, want netip.Addr) (topology.Underlay, error) {
	release, err := h.write(ctx)
	if err != nil {
		return topology.Underlay{}, err
	}
	defer release()
	links, err := listed(h.root.route.LinkList)
	var candidates []candidate
	if err == nil {
		candidates, err = h.addresses(links)
	}
	var exits []exit
	if err == nil {
		exits, err = h.exits(links)
	}
	if err != nil {
		return topology.Underlay{}, &fault.Error{Op: "find tunnel address", Err: err, Fix: "set the tunnel address explicitly"}
	}
	if want.IsValid() {
		return h.chosen(candidates, exits, want.Unmap())
	}
	candidates = slices.DeleteFunc(candidates, func(c candidate) bool {
		return !c.up || c.flags&unix.IFA_F_TEMPORARY != 0 || (c.loopback || foreign(c.name)) && rank(exits, c) == unranked
	})
	slices.SortStableFunc(candidates, func(a, b candidate) int {
		return cmp.Or(cmp.Compare(a.addr.BitLen(), b.addr.BitLen()), cmp.Compare(a.flags&unix.IFA_F_DEPRECATED, b.flags&unix.IFA_F_DEPRECATED),
			cmp.Compare(rank(exits, a), rank(exits, b)))
	})
	if len(candidates) == 0 {
		return topology.Underlay{MTU: defaultMTU, Port: h.opts.Port}, nil
	}
	return topology.Underlay{VTEP: candidates[0].addr, MTU: narrowest(exits, candidates[0]), Port: h.opts.Port}, nil
}

func (h *Host) chosen(candidates []candidate, exits []exit, want netip.Addr) (topology.Underlay, error) {
	for _, c := range candidates {
		if c.addr == want {
			return topology.Underlay{VTEP: want, MTU: narrowest(exits, c), Port: h.opts.Port}, nil
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
	// loopback is an address by which packets neither come nor go.
	loopback bool
	flags    int // IFA_F_..., of an IPv6 address
}

// foreign tells links that exist for containers.
func foreign(name string) bool {
	return slices.ContainsFunc([]string{"docker", "br-", "veth", uplinkPrefix, wireGuardName}, func(p string) bool {
		return strings.HasPrefix(name, p)
	})
}

// addresses lists the global unicast addresses of the host in the kernel's
// order, without those that are not usable yet.
func (h *Host) addresses(links []netlink.Link) ([]candidate, error) {
	addrs, err := listed(func() ([]netlink.Addr, error) {
		return h.root.route.AddrList(nil, netlink.FAMILY_ALL)
	})
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	var found []candidate
	for _, a := range addrs {
		ip := address(a.IP)
		i := slices.IndexFunc(links, func(l netlink.Link) bool { return l.Attrs().Index == a.LinkIndex })
		flags := 0
		if ip.Is6() { // IFA_F_TEMPORARY means "secondary" in IPv4
			flags = a.Flags
		}
		if i < 0 || !ip.IsGlobalUnicast() || flags&unix.IFA_F_TENTATIVE != 0 {
			continue
		}
		attrs := links[i].Attrs()
		found = append(found, candidate{addr: ip, link: attrs.Index, name: attrs.Name, mtu: attrs.MTU,
			up: attrs.Flags&net.FlagUp != 0, loopback: attrs.Flags&net.FlagLoopback != 0, flags: flags})
	}
	return found, nil
}

// exit is a default route: its link, and the source address it asks for.
type exit struct {
	six    bool
	link   int
	mtu    int
	source netip.Addr // zero if any of the link's
}

const unranked = math.MaxInt

// rank orders candidates by the default route that would use them.
func rank(exits []exit, c candidate) int {
	for i, e := range exits {
		if e.source == c.addr || e.link == c.link && !e.source.IsValid() {
			return i
		}
	}
	return unranked
}

// narrowest is the MTU of the way by which packets of an address leave.
func narrowest(exits []exit, c candidate) int {
	if !c.loopback {
		return c.mtu
	}
	mtu := math.MaxInt
	for _, e := range exits {
		if e.six == c.addr.Is6() && e.mtu > 0 {
			mtu = min(mtu, e.mtu)
		}
	}
	if mtu == math.MaxInt {
		return defaultMTU
	}
	return mtu
}

// exits are the default routes of each family, the most preferred first, as the
// kernel lists routes to one destination.
func (h *Host) exits(links []netlink.Link) ([]exit, error) {
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
	add := func(r netlink.Route, link int) {
		e := exit{six: r.Family == netlink.FAMILY_V6, link: link, source: address(r.Src)}
		if i := slices.IndexFunc(links, func(l netlink.Link) bool { return l.Attrs().Index == link }); i >= 0 {
			e.mtu = links[i].Attrs().MTU
		}
		list = append(list, e)
	}
	for _, r := range routes {
		if r.LinkIndex != 0 {
			add(r, r.LinkIndex)
		}
		for _, hop := range r.MultiPath {
			add(r, hop.LinkIndex)
		}
	}
	return list, nil
}
