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
	guardedWay  = "particle, guarded"
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
	// as are who makes the sockets, if that matters.
	as [2]*container
}

// do runs fn on a thread at an end, as who lives there.
func (w way) do(end int, fn func() error) error {
	return w.as[end].do(func() error { return w.ends[end].do(fn) })
}

// bed is two hosts, and all ways between them at once.
type bed struct {
	hosts  [2]*space
	spaces []*space
	planes []*overlay.Host
	guards []*container
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
	for _, connect := range []func() (way, error){b.underlay, b.plain, b.swarm, b.own, b.guarded} {
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
	for _, c := range b.guards {
		errs = append(errs, c.close())
	}
	for _, h := range b.planes {
		for _, number := range []int{ownNumber, guardedNumber} {
			errs = append(errs, h.Remove(context.Background(), network(number)))
		}
		errs = append(errs, h.Close())
	}
	for _, s := range b.spaces {
		s.close()
	}
	return errors.Join(errs...)
}

func (b *bed) underlay() (way, error) {
	return way{name: underlayWay, ends: b.hosts, addrs: [2]netip.Addr{vtep(0), vtep(1)}}, nil
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

// The networks' numbers, which are their VNIs and in their subnets, too.
const (
	ownNumber     = 102
	guardedNumber = 103
)

func network(number int) topology.NetworkID {
	return topology.NetworkID(strings.Repeat(fmt.Sprintf("%02x", number), 32))
}

func subnet(number int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(number), 0, 0}), 16)
}

func block(number, host int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(number), byte(host + 1), 0}), 24)
}

// own is the product's own code.
func (b *bed) own() (w way, err error) {
	w.name = ownWay
	for i, outer := range b.hosts {
		if err := os.MkdirAll(planeDir(i), 0o755); err != nil {
			return w, err
		}
		err := outer.do(func() error {
			h, err := overlay.Open(context.Background(), overlay.Options{NamespaceDir: planeDir(i)})
			if err == nil {
				b.planes = append(b.planes, h)
				err = h.SetMembers(context.Background(), []netip.AddrPort{netip.AddrPortFrom(vtep(1-i), 0)})
			}
			return err
		})
		if err != nil {
			return w, err
		}
	}
	return w, b.network(&w, ownNumber)
}

func planeDir(host int) string { return filepath.Join(rig.RunDir, fmt.Sprint("host-", host)) }

// network makes one on both hosts.
func (b *bed) network(w *way, number int) error {
	ctx := context.Background()
	id := network(number)
	for i, h := range b.planes {
		seg := topology.Segment{Network: id, VNI: topology.VNI(number), VTEP: vtep(i), Port: port, MTU: mtu,
			Pools: []netip.Prefix{block(number, i)}, Subnets: []netip.Prefix{subnet(number)},
			Peers: []topology.Peer{{VTEP: vtep(1 - i), Prefixes: []netip.Prefix{block(number, 1-i)}}}}
		up, err := topology.NewUplink(id, number, mtu)
		if err != nil {
			return err
		}
		if _, err := h.Apply(ctx, seg); err != nil {
			return err
		}
		if _, err := h.ApplyUplink(ctx, up); err != nil {
			return err
		}
		if w.ends[i], err = openSpace(filepath.Join(planeDir(i), string(id))); err != nil {
			return err
		}
		b.spaces = append(b.spaces, w.ends[i])
		w.addrs[i] = block(number, i).Addr().Next()
	}
	return nil
}

// guarded is own with the address guard, as containers have it.
func (b *bed) guarded() (w way, err error) {
	w.name = guardedWay
	if err := b.network(&w, guardedNumber); err != nil {
		return w, err
	}
	for i, h := range b.planes {
		c, err := admit(h, i, network(guardedNumber), w.addrs[i])
		b.guards = append(b.guards, c)
		if err != nil {
			return w, err
		}
		w.as[i] = c
	}
	return w, nil
}
