package overlay

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/topology"
)

// vxlanName is the VXLAN device's name in every tenant namespace.
const vxlanName = "vx0"

// addrGenNone keeps the kernel from inventing a link-local address
// (IN6_ADDR_GEN_MODE_NONE of linux/if_link.h).
const addrGenNone = 1

// HardwareAddr is the MAC of the VXLAN devices on the host whose tunnel address
// is vtep. It is a function of the address, so that peers need not be told:
// 0a:58 (locally administered) and the four bytes of an IPv4 address, or 0a and
// five bytes of the SHA-256 of an IPv6 one, which two of ten thousand hosts share
// once in twenty thousand clusters.
func HardwareAddr(vtep netip.Addr) net.HardwareAddr {
	vtep = vtep.Unmap()
	if vtep.Is6() {
		sum := sha256.Sum256(vtep.AsSlice())
		return append(net.HardwareAddr{0x0a}, sum[:5]...)
	}
	return append(net.HardwareAddr{0x0a, 0x58}, vtep.AsSlice()...)
}

// wanted is the device a segment asks for.
func wanted(seg topology.Segment) *netlink.Vxlan {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = vxlanName
	attrs.MTU = seg.MTU
	attrs.HardwareAddr = HardwareAddr(seg.VTEP)
	return &netlink.Vxlan{
		LinkAttrs: attrs,
		VxlanId:   int(seg.VNI),
		SrcAddr:   seg.VTEP.AsSlice(),
		Port:      int(seg.Port),
		Learning:  false,
	}
}

// find gives the link of that name, or nil.
func (n *namespace) find(name string) (netlink.Link, error) {
	link, err := n.route.LinkByName(name)
	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("find %s: %w", name, err)
	}
	return link, nil
}

// mustFind is find for a link that has been made: it is an error if it is gone.
func (n *namespace) mustFind(name string) (netlink.Link, error) {
	link, err := n.find(name)
	if err == nil && link == nil {
		err = fmt.Errorf("find %s: %w", name, unix.ENODEV)
	}
	return link, err
}

// remove deletes the link of that name; gone is success.
func (n *namespace) remove(name string) (changed bool, err error) {
	link, err := n.find(name)
	if err != nil || link == nil {
		return false, err
	}
	if err := n.route.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
		return false, fmt.Errorf("delete %s: %w", name, err)
	}
	return true, nil
}

// hears says whether other hosts can be heard: the network of a host alone has its
// device, which keeps its VNI, but the device is down. It has no UDP socket then and
// takes no packets, whoever sends them.
func hears(seg topology.Segment) bool { return seg.VTEP.IsValid() && len(seg.Subnets) > 0 }

// ensureVXLAN makes the segment's device exist in ns, or not exist if the host
// has no tunnel address. It is up if there may be other hosts.
func (h *Host) ensureVXLAN(ctx context.Context, ns *namespace, seg topology.Segment) (changed bool, err error) {
	if !seg.VTEP.IsValid() {
		return ns.remove(vxlanName)
	}
	link, err := ns.find(vxlanName)
	if err != nil {
		return false, err
	}
	if link == nil {
		return true, h.createVXLAN(ctx, ns, seg)
	}
	if differs(link, wanted(seg)) {
		// The namespace is ours alone and no container has anything on the
		// device, so one that does not fit (the host's tunnel address has
		// changed, say) is replaced.
		if _, err := ns.remove(vxlanName); err != nil {
			return false, err
		}
		return true, h.createVXLAN(ctx, ns, seg)
	}
	if link.Attrs().MTU != seg.MTU {
		if err := ns.route.LinkSetMTU(link, seg.MTU); err != nil {
			return false, mtuError(seg, err)
		}
		changed = true
	}
	switch up := link.Attrs().Flags&net.FlagUp != 0; {
	case up && !hears(seg):
		if err := ns.route.LinkSetDown(link); err != nil {
			return changed, fmt.Errorf("set %s down: %w", vxlanName, err)
		}
		changed = true
	case !up && hears(seg):
		return true, h.raise(ns, link, seg)
	}
	return changed, nil
}

// differs says whether a device found is another than the one wanted, but for
// its MTU, which can be changed in place.
func differs(found netlink.Link, want *netlink.Vxlan) bool {
	have, ok := found.(*netlink.Vxlan)
	return !ok || have.VxlanId != want.VxlanId || have.Port != want.Port ||
		address(have.SrcAddr) != address(want.SrcAddr) || address(have.Group) != address(want.Group) ||
		have.HardwareAddr.String() != want.HardwareAddr.String() ||
		have.Learning || have.FlowBased || have.GBP
}

// createVXLAN makes the device inside the tenant namespace by one message from
// the host's, where its UDP socket stays.
func (h *Host) createVXLAN(ctx context.Context, ns *namespace, seg topology.Segment) error {
	device := wanted(seg)
	device.Namespace = netlink.NsFd(ns.fd())
	err := h.root.route.LinkAdd(device)
	if errors.Is(err, unix.EEXIST) {
		return h.clash(ctx, seg)
	}
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ERANGE) {
		return mtuError(seg, err)
	}
	if err != nil {
		return fmt.Errorf("create %s: %w", vxlanName, err)
	}
	link, err := ns.mustFind(vxlanName)
	if err != nil {
		return err
	}
	err = ns.route.LinkSetIP6AddrGenMode(link, addrGenNone)
	if err != nil && !errors.Is(err, unix.EAFNOSUPPORT) { // a kernel without IPv6
		err = fmt.Errorf("set address generation of %s: %w", vxlanName, err)
	} else if err = nil; hears(seg) {
		err = h.raise(ns, link, seg)
	}
	if err != nil {
		_, undo := ns.remove(vxlanName)
		return errors.Join(err, undo)
	}
	return nil
}

// raise brings the device up, which is when the kernel opens its UDP socket.
func (h *Host) raise(ns *namespace, link netlink.Link, seg topology.Segment) error {
	err := ns.route.LinkSetUp(link)
	if errors.Is(err, unix.EADDRINUSE) {
		return &fault.Error{Op: "listen on UDP port", On: fmt.Sprint(seg.Port),
			Err: errors.New("it is taken by a program, or by a VXLAN device of another kind (external, gbp)"),
			Fix: fmt.Sprintf("find it with `ss -ulpn sport = :%d` or `ip -d link show type vxlan`, or give particle on this host another by PARTICLE_VXLAN_PORT", seg.Port)}
	}
	if err != nil {
		return fmt.Errorf("set %s up: %w", vxlanName, err)
	}
	return nil
}

func mtuError(seg topology.Segment, err error) error {
	return &fault.Error{Op: "set up device " + vxlanName, On: seg.Network.Short(),
		Err: fmt.Errorf("VNI %d, MTU %d: %w", seg.VNI, seg.MTU, err),
		Fix: "check the MTU of the link that carries " + seg.VTEP.String()}
}

// clash explains that another device of the host has the VNI. The kernel keeps
// one table of them for each namespace that holds the sockets, whatever
// namespace the devices are in.
func (h *Host) clash(ctx context.Context, seg topology.Segment) error {
	by, fix := h.holder(ctx, seg), "pass another -o particle.vni=N, or remove what holds it"
	if by == "" {
		by = "a VXLAN device in another namespace, such as that of a Swarm network"
		path, err := h.path(seg.Network)
		if err != nil {
			return err
		}
		if bare(path) {
			by = "what seems to be its own namespace, which somebody has unmounted from " + path + " while containers are in it"
			fix = "stop the network's containers: with the last the namespace ends, and is made anew"
		}
	}
	return &fault.Error{Op: "create network", On: seg.Network.Short(), Err: fmt.Errorf("VNI %d: %w by %s", seg.VNI, topology.ErrVNIInUse, by), Fix: fix}
}

// bare says whether a namespace's file is there, and none is bound on it.
func bare(path string) bool {
	if _, err := os.Lstat(path); err != nil {
		return false
	}
	bound, err := isBound(path)
	return err == nil && !bound
}

// holder names what has the segment's VNI on this host; it is empty if that cannot be told.
func (h *Host) holder(ctx context.Context, seg topology.Segment) string {
	links, _ := listed(h.root.route.LinkList)
	for _, link := range links {
		if v, ok := link.(*netlink.Vxlan); ok && v.VxlanId == int(seg.VNI) {
			return "device " + v.Name
		}
	}
	networks, _ := h.Networks(ctx)
	for _, id := range networks {
		if other, err := h.observe(id); err == nil && other.VNI == seg.VNI && id != seg.Network {
			return "network " + id.Short()
		}
	}
	return ""
}
