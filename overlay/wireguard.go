package overlay

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/internal/wireguard"
	"github.com/particle-net/particle/topology"
)

// In an encrypted cluster, the host has one WireGuard device for all networks, and
// its tunnel address is on that device and nowhere else:
//
//	tenant namespaces        host namespace
//	vx0  ── VXLAN ──UDP──>   particle-wg  fd91:9a00:bcf:<of the host's id>/128
//	                             │ one peer a host; it may use its own address alone
//	                         eth0  UDP 7793, encrypted
//
//	fd91:9a00:bcf::/48 dev particle-wg
//	unreachable fd91:9a00:bcf::/48 metric 2147483647
//
// Whatever is missing, nothing leaves the host in plain: without the device, its
// route or the peer there is no way to another host's tunnel address; and the
// firewall (members.go) drops what has one of these addresses and goes out, or comes
// in, by another link. Nothing but VXLAN of our networks goes through.

// wireGuardName is the device's name.
const wireGuardName = "particle-wg"

// lastMetric is that of a route which is for want of any other.
const lastMetric = math.MaxInt32

// leastMTU is what a link needs to have addresses of IPv6 (RFC 8200 section 5).
// What is longer than the underlay takes, WireGuard sends in fragments.
const leastMTU = 1280

// ErrNoWireGuard is the cause when this host cannot encrypt.
var ErrNoWireGuard = errors.New("the kernel has no WireGuard")

// CanEncrypt says whether this host can be in an encrypted cluster. It changes
// nothing, but for a kernel module that may get loaded. Cause: ErrNoWireGuard.
func (h *Host) CanEncrypt() error {
	fix := "load the module (`modprobe wireguard`), or install a kernel that has it (Linux 5.6 and later can)"
	_, err := h.root.route.GenlFamilyGet("wireguard") // exists with the module, devices or not
	if errors.Is(err, unix.ENOENT) {
		err = ErrNoWireGuard
	}
	if err == nil {
		_, err = os.Stat(sysctlRoot + "net/ipv6")
		if errors.Is(err, fs.ErrNotExist) {
			err, fix = errors.New("the kernel was started without IPv6, which tunnel addresses are of"), "take ipv6.disable=1 off the kernel's command line"
		}
	}
	if err != nil {
		return &fault.Error{Op: "encrypt between hosts", Err: err, Fix: fix}
	}
	return nil
}

// ApplyWireGuard makes the host's end of encrypted tunnels what it should be, and
// reports whether anything had to be changed. What it makes first is what keeps
// packets from leaving in plain, and that stays where the rest fails. Cause:
// ErrNoWireGuard.
func (h *Host) ApplyWireGuard(ctx context.Context, w wireguard.End) (changed bool, err error) {
	const op = "encrypt between hosts"
	if !topology.WireGuardRange.Contains(w.Address) || !w.Secret.Valid() || w.Port == 0 {
		return false, &fault.Error{Op: op, On: w.Address.String(), Err: errors.New("address, key or port is missing"), Fix: "report this as a bug"}
	}
	release, err := h.write(ctx)
	if err != nil {
		return false, err
	}
	defer release()
	h.tunnels.guarded = true
	var link netlink.Link
	changed, err = inTurn([]func() (bool, error){
		func() (bool, error) {
			return h.ensureFilter(func(all map[receiver]listener) { locate(all, w.Address) })
		},
		h.root.ensureUnreachable,
		func() (made bool, err error) { link, made, err = h.root.ensureWireGuard(w); return made, err },
		func() (bool, error) { return h.ensureTunnels(w) },
		func() (bool, error) { return h.root.ensureWireGuardUp(link) },
		func() (bool, error) { return h.root.ensureAddress(link, netip.PrefixFrom(w.Address, 128)) },
		func() (bool, error) { return h.root.ensureWireGuardRoute(link) },
	})
	var known *fault.Error
	if err != nil && !errors.As(err, &known) {
		err = &fault.Error{Op: op, On: wireGuardName, Err: err, Fix: "run `particle doctor` on this host"}
	}
	return changed, err
}

// RemoveWireGuard takes the device and its routes away; gone is success.
func (h *Host) RemoveWireGuard(ctx context.Context) error {
	release, err := h.write(ctx)
	if err != nil {
		return err
	}
	defer release()
	h.tunnels = tunnels{}
	link, err := h.root.find(wireGuardName)
	if err == nil && link != nil && link.Type() == wireGuardKind {
		_, err = h.root.remove(wireGuardName)
	}
	if failed := h.root.route.RouteDel(unreachable()); failed != nil && !errors.Is(failed, unix.ESRCH) &&
		!errors.Is(failed, unix.EAFNOSUPPORT) && !errors.Is(failed, unix.EOPNOTSUPP) { // a kernel without IPv6
		err = errors.Join(err, fmt.Errorf("withdraw %s: %w", topology.WireGuardRange, failed))
	}
	if err != nil {
		return &fault.Error{Op: "stop encrypting between hosts", Err: err, Fix: "run `ip link delete " + wireGuardName + "`"}
	}
	return nil
}

// wireGuardKind is the kind of the device, as `ip link show type wireguard` has it.
const wireGuardKind = "wireguard"

// ensureWireGuard makes the device, which is down at first.
func (n *namespace) ensureWireGuard(w wireguard.End) (link netlink.Link, changed bool, err error) {
	mtu := max(w.MTU, leastMTU)
	if link, err = n.find(wireGuardName); err != nil {
		return nil, false, err
	}
	switch {
	case link == nil:
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU = wireGuardName, mtu
		if err = n.route.LinkAdd(&netlink.Wireguard{LinkAttrs: attrs}); errors.Is(err, unix.EOPNOTSUPP) {
			return nil, false, &fault.Error{Op: "encrypt between hosts", Err: ErrNoWireGuard,
				Fix: "load the module (`modprobe wireguard`); until then this host reaches no other"}
		}
		if err != nil {
			return nil, false, fmt.Errorf("create %s: %w", wireGuardName, err)
		}
		link, err = n.mustFind(wireGuardName)
		return link, true, err
	case link.Type() != wireGuardKind:
		return nil, false, fault.New("encrypt between hosts", wireGuardName, "this host has a link of that name, of kind "+link.Type(), "rename or delete it")
	case link.Attrs().MTU != mtu:
		if err := n.route.LinkSetMTU(link, mtu); err != nil {
			return nil, false, fmt.Errorf("set MTU of %s to %d: %w", wireGuardName, mtu, err)
		}
		changed = true
	}
	return link, changed, nil
}

// ensureWireGuardUp brings the device up, which is when the kernel opens its UDP
// sockets. Hosts may switch IPv6 off for new links.
func (n *namespace) ensureWireGuardUp(link netlink.Link) (changed bool, err error) {
	err = enter(n.file, func() (err error) {
		changed, err = settle([]sysctl{{"net/ipv6/conf/" + wireGuardName + "/disable_ipv6", "0"}})
		return err
	})
	if err != nil || link.Attrs().Flags&net.FlagUp != 0 {
		return changed, err
	}
	err = n.route.LinkSetUp(link)
	if errors.Is(err, unix.EADDRINUSE) {
		return changed, portTaken()
	}
	if err != nil {
		return changed, fmt.Errorf("set %s up: %w", wireGuardName, err)
	}
	return true, nil
}

func portTaken() error {
	return fault.New("listen on WireGuard's UDP port", "", "another program has it, or another WireGuard device",
		"find it with `ss -ulpn`, or give particle another port with PARTICLE_WIREGUARD_PORT")
}

func wireGuardRoute(link netlink.Link) *netlink.Route {
	return &netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(topology.WireGuardRange), Table: unix.RT_TABLE_MAIN,
		Type: unix.RTN_UNICAST, Protocol: routeProtocol}
}

func unreachable() *netlink.Route {
	return &netlink.Route{Dst: ipNet(topology.WireGuardRange), Table: unix.RT_TABLE_MAIN,
		Type: unix.RTN_UNREACHABLE, Protocol: routeProtocol, Priority: lastMetric}
}

func (n *namespace) ensureWireGuardRoute(link netlink.Link) (changed bool, err error) {
	return n.ensureRangeRoute(wireGuardRoute(link), func(r netlink.Route) bool {
		return r.Type == unix.RTN_UNICAST && r.LinkIndex == link.Attrs().Index
	})
}

func (n *namespace) ensureUnreachable() (changed bool, err error) {
	return n.ensureRangeRoute(unreachable(), func(r netlink.Route) bool {
		return r.Type == unix.RTN_UNREACHABLE && r.Priority == lastMetric
	})
}

// ensureRangeRoute adds a route to the tunnel addresses where none is like it.
func (n *namespace) ensureRangeRoute(want *netlink.Route, like func(netlink.Route) bool) (changed bool, err error) {
	have, err := listed(func() ([]netlink.Route, error) {
		return n.route.RouteListFiltered(netlink.FAMILY_V6, &netlink.Route{Dst: want.Dst, Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_DST|netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return false, fmt.Errorf("list routes to %s: %w", topology.WireGuardRange, err)
	}
	for _, r := range have {
		if like(r) {
			return false, nil
		}
	}
	if err := n.route.RouteReplace(want); err != nil {
		return false, fmt.Errorf("make route to %s: %w", topology.WireGuardRange, err)
	}
	return true, nil
}
