package overlay

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/topology"
)

// leavingGroup is the link group of ends about to be deleted. Deleting a veth
// pair waits for RCU while it holds RTNL (20 ms), deleting a group of them waits
// once.
const leavingGroup = 0x70616c76

// RemoveBranches disconnects containers; those that are gone already are no
// error. Many at once cost little more than one. Nothing in the containers'
// namespaces but the branch is touched.
func (h *Host) RemoveBranches(ctx context.Context, id topology.NetworkID, endpoints []topology.EndpointID) error {
	path, err := h.path(id)
	if err != nil {
		return err
	}
	release, err := h.write(ctx)
	if err != nil {
		return err
	}
	defer release()
	ns, err := openNamespace(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		defer ns.close()
		err = ns.removeBranches(endpoints)
	}
	return uplinkError("disconnect containers from network", id, err)
}

func (n *namespace) removeBranches(endpoints []topology.EndpointID) error {
	var ends []netlink.Link
	var errs []error
	for _, id := range endpoints {
		end, err := n.find(branchEnd(id))
		errs = append(errs, err)
		if end != nil {
			ends = append(ends, end)
		}
	}
	return errors.Join(append(errs, n.removeTogether(ends))...)
}

// removeTogether deletes links by one message.
func (n *namespace) removeTogether(links []netlink.Link) error {
	if len(links) == 0 {
		return nil
	}
	var errs []error
	for _, l := range links {
		if err := n.route.LinkSetGroup(l, leavingGroup); err != nil && !errors.Is(err, unix.ENODEV) {
			errs = append(errs, fmt.Errorf("set group of %s: %w", l.Attrs().Name, err))
		}
	}
	err := enter(n.file, func() error {
		req := nl.NewNetlinkRequest(unix.RTM_DELLINK, unix.NLM_F_ACK)
		req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
		req.AddData(nl.NewRtAttr(unix.IFLA_GROUP, nl.Uint32Attr(leavingGroup)))
		_, err := req.Execute(unix.NETLINK_ROUTE, 0)
		return err
	})
	if err != nil && !errors.Is(err, unix.ENODEV) { // gone with their containers
		errs = append(errs, fmt.Errorf("delete links of group %#x: %w", leavingGroup, err))
	}
	return errors.Join(errs...)
}

// branchEnds lists the tenant's ends of all branches.
func (n *namespace) branchEnds() ([]netlink.Link, error) {
	links, err := listed(n.route.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	return slices.DeleteFunc(links, func(l netlink.Link) bool {
		return l.Type() != "veth" || !strings.HasPrefix(l.Attrs().Name, branchPrefix)
	}), nil
}

// removeAllBranches is removeBranches for whatever is there.
func (n *namespace) removeAllBranches() error {
	ends, err := n.branchEnds()
	if err != nil {
		return err
	}
	return n.removeTogether(ends)
}

// Branches reads the branches of a network back from the kernel, in no order.
// Of each endpoint's id they have the first 12 digits; MAC, Namespace and
// Subnets are not told, nor an address to which no packets come. Cause: ErrNoNetwork.
func (h *Host) Branches(ctx context.Context, id topology.NetworkID) ([]topology.Branch, error) {
	release, err := h.write(ctx) // the kernel's picture must not change while it is read
	if err != nil {
		return nil, err
	}
	defer release()
	ns, err := h.tenant("list containers of network", id)
	if err != nil {
		return nil, err
	}
	defer ns.close()
	found, err := ns.branches(id)
	return found, uplinkError("list containers of network", id, err)
}

func (n *namespace) branches(id topology.NetworkID) ([]topology.Branch, error) {
	ends, err := n.branchEnds()
	if err != nil || len(ends) == 0 {
		return nil, err
	}
	filter := &netlink.Route{Table: unix.RT_TABLE_LOCAL, Type: unix.RTN_UNICAST, Protocol: routeProtocol}
	routes, err := listed(func() ([]netlink.Route, error) {
		return n.route.RouteListFiltered(netlink.FAMILY_ALL, filter, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_TYPE|netlink.RT_FILTER_PROTOCOL)
	})
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	neighbours, err := listed(func() ([]netlink.Neigh, error) { return n.route.NeighList(0, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list neighbours: %w", err)
	}
	type where struct {
		link int
		addr netip.Addr
	}
	known := make(map[where]bool, len(ends))
	for _, e := range neighbours {
		known[where{e.LinkIndex, address(e.IP)}] = e.State&netlink.NUD_PERMANENT != 0
	}
	found := make([]topology.Branch, 0, len(ends))
	at := make(map[int]*topology.Branch, len(ends))
	for _, end := range ends {
		short := strings.TrimPrefix(end.Attrs().Name, branchPrefix)
		endpoint, err := topology.ParseEndpointID(short)
		if err != nil {
			continue // not a name we give
		}
		found = append(found, topology.Branch{Network: id, Endpoint: endpoint, MTU: end.Attrs().MTU})
		at[end.Attrs().Index] = &found[len(found)-1]
	}
	for _, r := range routes {
		b := at[r.LinkIndex]
		if b == nil || r.Dst == nil {
			continue
		}
		switch a := prefix(r.Dst).Addr(); {
		case !known[where{r.LinkIndex, a}]:
		case a.Is4():
			b.IPv4 = a
		default:
			b.IPv6 = a
		}
	}
	return found, nil
}
