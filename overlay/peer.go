package overlay

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/topology"
)

// ChangePeers programs the difference between two states of some of a network's
// other hosts: a tunnel address that is in one list alone comes or goes, one in
// both has other prefixes or another MAC afterwards. Hosts in neither list stay
// as they are. Nothing is looked up that is not needed, so it takes as long as
// there are changes; what is there already, or gone, is no error. What comes does
// so before anything goes: a prefix that moves from one host to another always
// leads to one of them.
//
// The segment is the network's as it was applied, with the other hosts that it has
// afterwards: who comes and is too like one of those that stay is left out, or would
// take its place. Causes: ErrNoNetwork; topology.ErrUnreached, if all else is done.
func (h *Host) ChangePeers(ctx context.Context, seg topology.Segment, before, after []topology.Peer) error {
	const op = "change hosts of network"
	release, err := h.write(ctx)
	if err != nil {
		return err
	}
	defer release()
	ns, err := h.tenant(op, seg.Network)
	if err != nil {
		return err
	}
	defer ns.close()
	return peersError(op, seg.Network, ns.changePeers(seg, before, after))
}

func (n *namespace) changePeers(seg topology.Segment, before, after []topology.Peer) error {
	device, err := n.vxlan()
	if err != nil {
		return err
	}
	s := newSide(device, seg.Pools, seg.Subnets)
	have, want := newPlan(s), newPlan(s)
	_ = have.hosts(before) // what could not be set need not be removed
	after, alike := s.unlike(after, staying(seg.Peers, before, after))
	unreached := errors.Join(want.hosts(after), alike)
	if err := n.bulk.apply(have.changes(want.holding, s.link)); err != nil {
		return err
	}
	return unreached
}

// staying are the hosts of a network that are in neither list of a change.
func staying(all, before, after []topology.Peer) (list []topology.Peer) {
	moving := make(map[netip.Addr]bool, len(before)+len(after))
	for _, lists := range [][]topology.Peer{before, after} {
		for _, p := range lists {
			moving[p.VTEP] = true
		}
	}
	for _, p := range all {
		if !moving[p.VTEP] {
			list = append(list, p)
		}
	}
	return list
}

func peersError(op string, id topology.NetworkID, err error) error {
	var known *fault.Error
	if err == nil || errors.As(err, &known) {
		return err
	}
	return &fault.Error{Op: op, On: id.Short(), Err: err,
		Fix: "run `particle doctor` on this host, and see that the hosts' tunnel addresses differ and are of one IP version"}
}

// ensurePeers makes the namespace hold what the segment says of other hosts, and
// nothing else of ours. Cause: ErrUnreached, if all else is done.
func (n *namespace) ensurePeers(seg topology.Segment) (changed bool, err error) {
	device, err := n.vxlan()
	if err != nil {
		return false, err
	}
	s := newSide(device, seg.Pools, seg.Subnets)
	want := newPlan(s)
	s.unassigned(want.holding)
	unreached := want.hosts(seg.Peers)
	changed, drop, err := n.ensureSources(device, s.sources())
	if err != nil {
		return changed, err
	}
	have, err := n.held(s.link)
	if err != nil {
		return changed, err
	}
	list := have.changes(want.holding, s.link)
	err = n.bulk.apply(list)
	for _, a := range drop { // nothing suggests it any more
		err = errors.Join(err, n.dropAddress(device, a))
	}
	if err == nil {
		err = unreached
	}
	return changed || len(list)+len(drop) > 0, err
}

// beginPeers is ensurePeers for a namespace that has nothing of other hosts yet.
func (n *namespace) beginPeers(seg topology.Segment) error {
	if len(seg.Subnets)+len(seg.Peers) == 0 {
		return nil
	}
	_, err := n.ensurePeers(seg)
	return err
}

// vxlan is the network's device, or nil.
func (n *namespace) vxlan() (*netlink.Vxlan, error) {
	link, err := n.find(vxlanName)
	if err != nil {
		return nil, err
	}
	device, _ := link.(*netlink.Vxlan)
	return device, nil
}

// ensureSources gives the device the addresses that routes are to suggest, and
// tells which it has beyond them. Those of IPv4 go at once: with the last of them
// the kernel takes the link's routes away.
func (n *namespace) ensureSources(device *netlink.Vxlan, want []netip.Addr) (changed bool, beyond []netlink.Addr, err error) {
	if device == nil {
		return false, nil, nil
	}
	have, err := listed(func() ([]netlink.Addr, error) { return n.route.AddrList(device, netlink.FAMILY_V6) })
	if err != nil {
		return false, nil, fmt.Errorf("list addresses of %s: %w", vxlanName, err)
	}
	strays, err := listed(func() ([]netlink.Addr, error) { return n.route.AddrList(device, netlink.FAMILY_V4) })
	if err != nil {
		return false, nil, fmt.Errorf("list addresses of %s: %w", vxlanName, err)
	}
	for _, a := range strays {
		if err := n.dropAddress(device, a); err != nil {
			return changed, nil, err
		}
		changed = true
	}
	present := map[netip.Addr]bool{}
	for _, a := range have {
		if p := prefix(a.IPNet); slices.Contains(want, p.Addr()) && p.IsSingleIP() {
			present[p.Addr()] = true
		} else {
			beyond = append(beyond, a)
		}
	}
	for _, a := range want {
		if present[a] {
			continue
		}
		if err := n.assign(device, a); err != nil {
			return changed, nil, err
		}
		changed = true
	}
	return changed, beyond, nil
}

// dropAddress removes an address; gone is success.
func (n *namespace) dropAddress(from netlink.Link, a netlink.Addr) error {
	if err := n.route.AddrDel(from, &a); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
		return fmt.Errorf("remove %s from %s: %w", a.IPNet, from.Attrs().Name, err)
	}
	return nil
}

// subnets are the network's, or none if the host is alone, as the kernel has them. They
// are sorted.
func (n *namespace) subnets() (list []netip.Prefix, err error) {
	var errs []error
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		found, err := n.bulk.routes(family, routeFilter{unix.RT_TABLE_MAIN, unix.RTN_UNREACHABLE})
		errs = append(errs, err)
		for _, f := range found {
			list = append(list, f.to)
		}
	}
	slices.SortFunc(list, netip.Prefix.Compare)
	return list, errors.Join(errs...)
}

// held reads what the kernel has for other hosts.
func (n *namespace) held(link int) (*holding, error) {
	have := newHolding()
	var errs []error
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		list, err := n.bulk.routes(family, routeFilter{})
		errs = append(errs, err)
		for _, r := range list {
			if r.kind == unix.RTN_UNREACHABLE && r.table == unix.RT_TABLE_MAIN || link != 0 && r.kind == unix.RTN_UNICAST && r.link == link {
				have.routes[r.place] = r.way
			}
		}
	}
	if link != 0 {
		errs = append(errs, n.bulk.neighbours(link, have), n.bulk.tunnels(link, have))
	}
	return have, errors.Join(errs...)
}

// observePeers reads the other hosts of the network and its subnets back from the
// kernel. Both are sorted.
func (n *namespace) observePeers(seg *topology.Segment, device *netlink.Vxlan) error {
	link := 0
	if device != nil {
		link = device.Index
	}
	have, err := n.held(link)
	if err != nil {
		return err
	}
	at := map[mac]*topology.Peer{}
	for t := range have.tunnels {
		p := &topology.Peer{VTEP: t.vtep, MAC: net.HardwareAddr(t.mac[:]), Port: t.port}
		if mac(HardwareAddr(t.vtep)) == t.mac {
			p.MAC = nil
		}
		at[t.mac] = p
	}
	for place, way := range have.routes {
		if way.link == 0 {
			seg.Subnets = append(seg.Subnets, place.to)
		} else if p := at[have.neighbours[way.via]]; p != nil {
			p.Prefixes = append(p.Prefixes, place.to)
		}
	}
	for _, p := range at {
		slices.SortFunc(p.Prefixes, netip.Prefix.Compare)
		seg.Peers = append(seg.Peers, *p)
	}
	slices.SortFunc(seg.Subnets, netip.Prefix.Compare)
	slices.SortFunc(seg.Peers, func(a, b topology.Peer) int { return a.VTEP.Compare(b.VTEP) })
	return nil
}

// routeFilter says which of our routes to list; 0 is any.
type routeFilter struct {
	table, kind byte
}

// typedRoute is a route and its type.
type typedRoute struct {
	route
	kind byte // unix.RTN_UNICAST and so on
}

// routes lists our routes of a family.
func (r *rtnl) routes(family int, of routeFilter) (list []typedRoute, err error) {
	write := func(q *request, flags uint16, seq uint32) {
		q.begin(unix.RTM_GETROUTE, flags, seq)
		q.buf = append(q.buf, byte(family), 0, 0, 0, of.table, routeProtocol, 0, of.kind, 0, 0, 0, 0)
		q.end()
	}
	err = r.dump(write, func() { list = list[:0] }, func(body []byte) {
		if len(body) < unix.SizeofRtMsg || int(body[0]) != family || body[5] != routeProtocol ||
			of.table != 0 && body[4] != of.table || of.kind != 0 && body[7] != of.kind {
			return
		}
		list = append(list, parseRoute(body))
	})
	return list, err
}

func parseRoute(body []byte) (r typedRoute) {
	bits, to := int(body[1]), netip.IPv4Unspecified()
	if body[0] == unix.AF_INET6 {
		to = netip.IPv6Unspecified()
	}
	r.table = int(body[4])
	attributes(body, unix.SizeofRtMsg, func(kind uint16, data []byte) {
		switch kind {
		case unix.RTA_DST:
			to = address(data)
		case unix.RTA_PRIORITY:
			r.metric = binary.NativeEndian.Uint32(data)
		case unix.RTA_GATEWAY:
			r.via = address(data)
		case unix.RTA_VIA:
			r.via = address(data[2:])
		case unix.RTA_PREFSRC:
			r.from = address(data)
		case unix.RTA_OIF:
			r.link = int(binary.NativeEndian.Uint32(data))
		case unix.RTA_METRICS, unix.RTA_FLOW, unix.RTA_ENCAP:
			r.odd = true
		}
	})
	r.to = netip.PrefixFrom(to, bits)
	if r.kind = body[7]; r.kind == unix.RTN_UNREACHABLE {
		r.link = 0 // of IPv6 they are on lo
	}
	return r
}

// neighbours adds the permanent neighbours on a link.
func (r *rtnl) neighbours(link int, have *holding) error {
	write := func(q *request, flags uint16, seq uint32) {
		q.begin(unix.RTM_GETNEIGH, flags, seq)
		q.buf = appendNdMsg(q.buf, unix.AF_UNSPEC, 0, 0, 0)
		q.attr32(unix.NDA_IFINDEX, uint32(link))
		q.end()
	}
	return r.dump(write, func() { clear(have.neighbours) }, func(body []byte) {
		n, ok := parseNeighbour(body, link)
		if ok && (n.family == unix.AF_INET || n.family == unix.AF_INET6) {
			have.neighbours[n.to] = n.mac
		}
	})
}

// tunnels adds the FDB entries of a VXLAN device.
func (r *rtnl) tunnels(link int, have *holding) error {
	write := func(q *request, flags uint16, seq uint32) {
		q.begin(unix.RTM_GETNEIGH, flags, seq)
		q.buf = appendNdMsg(q.buf, unix.AF_BRIDGE, link, 0, 0)
		q.end()
	}
	return r.dump(write, func() { clear(have.tunnels) }, func(body []byte) {
		n, ok := parseNeighbour(body, link)
		if ok && n.family == unix.AF_BRIDGE && n.to.IsValid() {
			have.tunnels[tunnel{link, n.mac, n.to, n.port, n.elsewhere}] = true
		}
	})
}

// entry is a neighbour or an FDB entry.
type entry struct {
	family byte
	to     netip.Addr
	port   uint16 // of an FDB entry; 0 is the device's
	mac    mac
	elsewhere
}

// parseNeighbour reads a permanent entry of the link.
func parseNeighbour(body []byte, link int) (n entry, ok bool) {
	if len(body) < unix.SizeofNdMsg || int(binary.NativeEndian.Uint32(body[4:])) != link ||
		binary.NativeEndian.Uint16(body[8:])&unix.NUD_PERMANENT == 0 {
		return n, false
	}
	n.family = body[0]
	attributes(body, unix.SizeofNdMsg, func(kind uint16, data []byte) {
		switch {
		case kind == unix.NDA_DST:
			n.to = address(data)
		case kind == unix.NDA_PORT && len(data) == 2:
			n.port = binary.BigEndian.Uint16(data)
		case kind == unix.NDA_VNI && len(data) == 4:
			n.vni = binary.NativeEndian.Uint32(data)
		case kind == unix.NDA_IFINDEX && len(data) == 4:
			n.link = binary.NativeEndian.Uint32(data)
		case kind == unix.NDA_LLADDR && len(data) == len(n.mac):
			ok = true
			n.mac = mac(data)
		}
	})
	return n, ok
}
