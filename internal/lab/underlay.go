package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/internal/fault"
)

// Addresses of the underlay (documentation ranges, RFC 5737 and RFC 3849).
const (
	underlayBridge = "underlay"
	hostLink       = "eth0"
	gatewayIndex   = 254
	maxHosts       = 250
)

// InternetAddr4 and InternetAddr6 are the internet's addresses outside the
// underlay: a host reaches them through its default gateway.
const (
	InternetAddr4 = "203.0.113.10"
	InternetAddr6 = "2001:db8:203::10"
)

// Gateway4 and Gateway6 are the default gateways of every host.
const (
	Gateway4 = "198.51.100.254"
	Gateway6 = "2001:db8:51::fe"
)

// addr4 is the underlay address of the host with the index.
func addr4(index int) netip.Addr { return netip.AddrFrom4([4]byte{198, 51, 100, byte(index)}) }

// addr6 is the same in IPv6.
func addr6(index int) netip.Addr {
	a := netip.MustParseAddr("2001:db8:51::").As16()
	a[15] = byte(index)
	return netip.AddrFrom16(a)
}

// inNamespace opens a netlink handle in the network namespace of a process. The
// caller closes it.
func inNamespace(pid int) (*netlink.Handle, error) {
	ns, err := netns.GetFromPid(pid)
	if err != nil {
		return nil, &fault.Error{Op: "open network namespace", On: fmt.Sprintf("of process %d", pid), Err: err}
	}
	defer ns.Close()
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, &fault.Error{Op: "open netlink", On: fmt.Sprintf("of process %d", pid), Err: err}
	}
	return h, nil
}

// makeUnderlay makes the bridge and the internet's addresses in the internet node.
func makeUnderlay(internet *Node) error {
	h, err := inNamespace(internet.Pid())
	if err != nil {
		return err
	}
	defer h.Close()
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: underlayBridge}}
	if err := h.LinkAdd(bridge); err != nil {
		return &fault.Error{Op: "make bridge", On: underlayBridge, Err: err, Fix: "load the bridge module"}
	}
	if err := address(h, underlayBridge, netip.PrefixFrom(addr4(gatewayIndex), 24), netip.PrefixFrom(addr6(gatewayIndex), 64)); err != nil {
		return err
	}
	return address(h, "lo",
		netip.PrefixFrom(netip.MustParseAddr(InternetAddr4), 32), netip.PrefixFrom(netip.MustParseAddr(InternetAddr6), 128))
}

// address gives a link its addresses and sets it up. Duplicate address detection
// is skipped: it would keep the IPv6 address unusable for a second.
func address(h *netlink.Handle, name string, prefixes ...netip.Prefix) error {
	link, err := h.LinkByName(name)
	if err != nil {
		return &fault.Error{Op: "find link", On: name, Err: err}
	}
	if err := h.LinkSetUp(link); err != nil {
		return &fault.Error{Op: "set up link", On: name, Err: err}
	}
	for _, p := range prefixes {
		a := &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}}
		if p.Addr().Is6() {
			a.Flags = unix.IFA_F_NODAD
		}
		if err := h.AddrAdd(link, a); err != nil {
			return &fault.Error{Op: "add address " + p.String(), On: name, Err: err}
		}
	}
	return nil
}

// wire plugs a host into the underlay. Both ends of the veth pair are made where
// they stay. The bridge's end of a host that ran before is removed first: the
// kernel takes the links of a dead namespace away only some time later.
func (h *Host) wire() error {
	under, err := inNamespace(h.lab.internet.Pid())
	if err != nil {
		return err
	}
	defer under.Close()
	if old, err := under.LinkByName(h.name); err == nil {
		if err := under.LinkDel(old); err != nil && !errors.Is(err, unix.ENODEV) { // gone by now
			return &fault.Error{Op: "unplug", On: h.name, Err: err}
		}
	}
	pair := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: h.name}, PeerName: hostLink, PeerNamespace: netlink.NsPid(h.Pid())}
	if err := under.LinkAdd(pair); err != nil {
		return &fault.Error{Op: "plug in", On: h.name, Err: err, Fix: "load the veth module"}
	}
	if err := h.Heal(); err != nil {
		return err
	}
	own, err := inNamespace(h.Pid())
	if err != nil {
		return err
	}
	defer own.Close()
	if err := address(own, "lo"); err != nil {
		return err
	}
	if err := address(own, hostLink, netip.PrefixFrom(addr4(h.index), 24), netip.PrefixFrom(addr6(h.index), 64)); err != nil {
		return err
	}
	link, err := own.LinkByName(hostLink)
	if err != nil {
		return &fault.Error{Op: "find link", On: hostLink, Err: err}
	}
	for _, gateway := range []string{Gateway4, Gateway6} {
		route := &netlink.Route{LinkIndex: link.Attrs().Index, Gw: net.ParseIP(gateway)}
		if err := own.RouteAdd(route); err != nil {
			return &fault.Error{Op: "route through", On: gateway, Err: err}
		}
	}
	return nil
}

// Cut takes the host off the underlay the way a broken switch does: its link stays
// up, and packets go nowhere. Cutting twice is no error.
func (h *Host) Cut() error {
	return h.atBridge(func(under *netlink.Handle, end netlink.Link) error { return under.LinkSetNoMaster(end) }, "cut")
}

// Heal undoes Cut.
func (h *Host) Heal() error {
	return h.atBridge(func(under *netlink.Handle, end netlink.Link) error {
		bridge, err := under.LinkByName(underlayBridge)
		if err == nil {
			err = under.LinkSetMaster(end, bridge)
		}
		if err == nil {
			err = under.LinkSetUp(end)
		}
		return err
	}, "heal")
}

// atBridge does something with the bridge's end of the host's link.
func (h *Host) atBridge(do func(under *netlink.Handle, end netlink.Link) error, op string) error {
	under, err := inNamespace(h.lab.internet.Pid())
	if err != nil {
		return err
	}
	defer under.Close()
	end, err := under.LinkByName(h.name)
	if err == nil {
		err = do(under, end)
	}
	if err != nil {
		return &fault.Error{Op: op + " underlay", On: h.name, Err: err}
	}
	return nil
}
