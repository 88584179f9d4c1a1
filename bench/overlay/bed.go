package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/bench/rig"
	"github.com/particle-net/particle/overlay"
	"github.com/particle-net/particle/topology"
)

// names of ways that the report refers to
const (
	underlayWay = "underlay"
	plainWay    = "plain VXLAN"
	swarmWay    = "Swarm's overlay"
	ownWay      = "particle"
)

const (
	port = 4789
	mtu  = 1450 // of VXLAN over Ethernet and IPv4
)

// way is one way to connect a container of one host with one of the other.
type way struct {
	name  string
	ends  [2]*space
	addrs [2]netip.Addr
}

// bed is two hosts, and all ways between them at once.
type bed struct {
	hosts  [2]*space
	spaces []*space
	planes []*overlay.Host
	ways   []way
}

func vtep(host int) netip.Addr { return netip.AddrFrom4([4]byte{192, 0, 2, byte(host + 1)}) }

// newBed gives what is to be closed also if it fails.
func newBed() (*bed, error) {
	b := new(bed)
	for i := range b.hosts {
		s, err := b.space()
		if err != nil {
			return b, err
		}
		b.hosts[i] = s
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "eth0"
	wire := netlink.NewVeth(attrs)
	wire.PeerName, wire.PeerNamespace = "eth0", b.hosts[1].fd()
	if err := b.hosts[0].route.LinkAdd(wire); err != nil {
		return b, err
	}
	for i, h := range b.hosts {
		if err := errors.Join(h.raise("eth0", vtep(i).String()+"/24"), h.wireLike("eth0"), h.track()); err != nil {
			return b, err
		}
	}
	for _, connect := range []func() (way, error){b.underlay, b.plain, b.swarm, b.own} {
		w, err := connect()
		if err != nil {
			return b, fmt.Errorf("%s: %w", w.name, err)
		}
		b.ways = append(b.ways, w)
	}
	return b, nil
}

func (b *bed) space() (*space, error) {
	s, err := newSpace()
	if err == nil {
		b.spaces = append(b.spaces, s)
	}
	return s, err
}

func (b *bed) close() error {
	var errs []error
	for _, h := range b.planes {
		errs = append(errs, h.Remove(context.Background(), network()), h.Close())
	}
	for _, s := range b.spaces {
		s.close()
	}
	return errors.Join(errs...)
}

func (b *bed) underlay() (way, error) {
	return way{underlayWay, b.hosts, [2]netip.Addr{vtep(0), vtep(1)}}, nil
}

// tunnel makes a VXLAN device of the host in a namespace, with the entry for its
// peer's.
func (b *bed) tunnel(host int, in *space, vni int, peer net.HardwareAddr) (netlink.Link, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.Namespace = "vx0", mtu, in.fd()
	attrs.HardwareAddr = hardware(host)
	device := &netlink.Vxlan{LinkAttrs: attrs, VxlanId: vni, SrcAddr: vtep(host).AsSlice(), Port: port}
	if err := b.hosts[host].route.LinkAdd(device); err != nil {
		return nil, err
	}
	if err := in.raise("vx0", ""); err != nil {
		return nil, err
	}
	link, err := in.route.LinkByName("vx0")
	if err == nil {
		err = in.route.NeighAppend(&netlink.Neigh{LinkIndex: link.Attrs().Index, Family: unix.AF_BRIDGE, State: netlink.NUD_PERMANENT,
			Flags: netlink.NTF_SELF, IP: vtep(1 - host).AsSlice(), HardwareAddr: peer})
	}
	return link, err
}

func hardware(host int) net.HardwareAddr { return net.HardwareAddr{2, 0, 0, 0, 0, byte(host + 1)} }

// acquaint tells a link of the other container, as Docker's overlay does.
func acquaint(s *space, link netlink.Link, a netip.Addr, mac net.HardwareAddr) error {
	return s.route.NeighSet(&netlink.Neigh{LinkIndex: link.Attrs().Index, State: netlink.NUD_PERMANENT, IP: a.AsSlice(), HardwareAddr: mac})
}

func (b *bed) plain() (w way, err error) {
	w.name = plainWay
	for i := range b.hosts {
		w.addrs[i] = netip.AddrFrom4([4]byte{10, 50, 0, byte(i + 1)})
	}
	for i := range b.hosts {
		if w.ends[i], err = b.space(); err != nil {
			return w, err
		}
		link, err := b.tunnel(i, w.ends[i], 100, hardware(1-i))
		if err != nil {
			return w, err
		}
		if err := errors.Join(w.ends[i].raise("vx0", w.addrs[i].String()+"/24"), acquaint(w.ends[i], link, w.addrs[1-i], hardware(1-i))); err != nil {
			return w, err
		}
	}
	return w, nil
}

func (b *bed) swarm() (w way, err error) {
	w.name = swarmWay
	container := func(host int) net.HardwareAddr { return net.HardwareAddr{2, 0x42, 10, 51, 0, byte(host + 1)} }
	for i := range b.hosts {
		w.addrs[i] = netip.AddrFrom4([4]byte{10, 51, 0, byte(i + 1)})
	}
	for i := range b.hosts {
		middle, err := b.space()
		if err != nil {
			return w, err
		}
		if w.ends[i], err = b.space(); err != nil {
			return w, err
		}
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU = "br0", mtu
		bridge := &netlink.Bridge{LinkAttrs: attrs}
		if err := middle.route.LinkAdd(bridge); err != nil {
			return w, err
		}
		device, err := b.tunnel(i, middle, 101, container(1-i))
		if err != nil {
			return w, err
		}
		attrs = netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU, attrs.MasterIndex = "veth0", mtu, bridge.Index
		pair := netlink.NewVeth(attrs)
		pair.PeerName, pair.PeerNamespace, pair.PeerHardwareAddr = "eth0", w.ends[i].fd(), container(i)
		err = errors.Join(middle.route.LinkSetMasterByIndex(device, bridge.Index), middle.route.LinkAdd(pair),
			middle.raise("br0", ""), middle.raise("veth0", ""), w.ends[i].raise("eth0", w.addrs[i].String()+"/24"))
		if err != nil {
			return w, err
		}
		end, err := w.ends[i].route.LinkByName("eth0")
		if err == nil {
			err = errors.Join(w.ends[i].route.LinkSetMTU(end, mtu), acquaint(w.ends[i], end, w.addrs[1-i], container(1-i)))
		}
		if err != nil {
			return w, err
		}
	}
	return w, nil
}

func network() topology.NetworkID { return topology.NetworkID(strings.Repeat("0a", 32)) }

func block(host int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 52, byte(host + 1), 0}), 24)
}

// own is the product's own code.
func (b *bed) own() (w way, err error) {
	w.name = ownWay
	ctx := context.Background()
	for i, outer := range b.hosts {
		dir := filepath.Join(rig.RunDir, fmt.Sprint("host-", i))
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return w, err
		}
		var h *overlay.Host
		err := outer.do(func() (err error) {
			h, err = overlay.Open(ctx, overlay.Options{NamespaceDir: dir})
			return err
		})
		if err != nil {
			return w, err
		}
		b.planes = append(b.planes, h)
		if err := h.SetMembers(ctx, []netip.Addr{vtep(1 - i)}); err != nil {
			return w, err
		}
		seg := topology.Segment{Network: network(), VNI: 102, VTEP: vtep(i), Port: port, MTU: mtu,
			Pools: []netip.Prefix{block(i)}, Subnets: []netip.Prefix{netip.MustParsePrefix("10.52.0.0/16")},
			Peers: []topology.Peer{{VTEP: vtep(1 - i), Prefixes: []netip.Prefix{block(1 - i)}}}}
		up, err := topology.NewUplink(network(), 0, mtu)
		if err != nil {
			return w, err
		}
		if _, err := h.Apply(ctx, seg); err != nil {
			return w, err
		}
		if _, err := h.ApplyUplink(ctx, up); err != nil {
			return w, err
		}
		if w.ends[i], err = openSpace(filepath.Join(dir, string(network()))); err != nil {
			return w, err
		}
		b.spaces = append(b.spaces, w.ends[i])
		w.addrs[i] = block(i).Addr().Next()
	}
	return w, nil
}
