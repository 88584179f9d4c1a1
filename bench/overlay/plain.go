package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func (b *bed) underlay(context.Context, options) (way, error) {
	w := way{name: underlayWay}
	for i, h := range b.hosts {
		w.ends[i], w.addrs[i] = h.space, h.Addr4()
	}
	return w, nil
}

// plain is a VXLAN device in a namespace on each host, that knows the other.
func (b *bed) plain(_ context.Context, o options) (way, error) {
	w := way{name: plainWay}
	for i := range b.hosts {
		w.addrs[i] = netip.AddrFrom4([4]byte{10, 50, 0, byte(i + 1)})
	}
	for i, h := range b.hosts {
		s, err := newSpace()
		if err != nil {
			return w, err
		}
		b.spaces = append(b.spaces, s)
		w.ends[i] = s
		if err := h.tunnel(s, i, o.port); err != nil {
			return w, err
		}
		if err := s.raise("vx0", w.addrs[i].String()+"/24"); err != nil {
			return w, err
		}
		if err := s.acquaint("vx0", w.addrs[1-i], hardware(1-i), b.hosts[1-i].Addr4()); err != nil {
			return w, err
		}
	}
	return w, nil
}

// tunnel makes a VXLAN device of the host's in a namespace.
func (h *host) tunnel(in *space, end, port int) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.Namespace = "vx0", mtu, in.fd()
	attrs.HardwareAddr = hardware(end)
	device := &netlink.Vxlan{LinkAttrs: attrs, VxlanId: 100, SrcAddr: h.Addr4().AsSlice(), Port: port}
	if err := h.space.route.LinkAdd(device); err != nil {
		return fmt.Errorf("make a VXLAN device: %w", err)
	}
	return nil
}

func hardware(end int) net.HardwareAddr { return net.HardwareAddr{2, 0, 0, 0, 0, byte(end + 1)} }

// acquaint tells a VXLAN device of an address, its link's and its host's.
func (s *space) acquaint(device string, a netip.Addr, mac net.HardwareAddr, host netip.Addr) error {
	link, err := s.route.LinkByName(device)
	if err != nil {
		return err
	}
	index := link.Attrs().Index
	return errors.Join(
		s.route.NeighAppend(&netlink.Neigh{LinkIndex: index, Family: unix.AF_BRIDGE, State: netlink.NUD_PERMANENT,
			Flags: netlink.NTF_SELF, IP: host.AsSlice(), HardwareAddr: mac}),
		s.route.NeighSet(&netlink.Neigh{LinkIndex: index, State: netlink.NUD_PERMANENT, IP: a.AsSlice(), HardwareAddr: mac}))
}
