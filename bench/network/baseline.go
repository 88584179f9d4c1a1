package main

import (
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/bench/rig"
)

// host is a pretended Docker host: its namespace, and the one that holds the
// bridge and the VXLAN device of a network.
type host struct {
	outer, tunnel *space
	bridge        int // index
	spaces        []*space
}

// newHost prepares what the ways per container find made. The thread ends up in
// the tunnel namespace.
func newHost(ipv6 bool) (*host, error) {
	h := new(host)
	var err error
	if h.outer, err = newSpace(); err != nil {
		return nil, err
	}
	if h.tunnel, err = newSpace(); err != nil {
		return h, err
	}
	if !ipv6 {
		if err := withoutIPv6(); err != nil {
			return h, err
		}
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "br0"
	bridge := &netlink.Bridge{LinkAttrs: attrs}
	if err := h.tunnel.route.LinkAdd(bridge); err != nil {
		return h, err
	}
	h.bridge = bridge.Index
	attrs = netlink.NewLinkAttrs()
	attrs.Name, attrs.Namespace = "vx0", h.tunnel.fd()
	err = h.outer.route.LinkAdd(&netlink.Vxlan{LinkAttrs: attrs, VxlanId: 1, Port: 4789})
	if err != nil {
		return h, err
	}
	device, err := h.tunnel.route.LinkByName("vx0")
	if err != nil {
		return h, err
	}
	for _, step := range []func() error{
		func() error { return h.tunnel.route.LinkSetMasterByIndex(device, h.bridge) },
		func() error { return h.tunnel.route.LinkSetUp(device) },
		func() error { return h.tunnel.route.LinkSetUp(bridge) },
	} {
		if err := step(); err != nil {
			return h, err
		}
	}
	return h, nil
}

func (h *host) close() {
	for _, s := range append(h.spaces, h.tunnel, h.outer) {
		if s != nil {
			s.close()
		}
	}
}

// container moves the thread into a new container's namespace.
func (h *host) container() (*space, error) {
	s, err := newSpace()
	if err == nil {
		h.spaces = append(h.spaces, s)
	}
	return s, err
}

func mac(i int) net.HardwareAddr {
	a := addr(i).As4()
	return net.HardwareAddr{0x02, 0x42, a[0], a[1], a[2], a[3]}
}

// connectMoved is the paper's Figure 2, steps 1 to 6, for one container.
func (h *host) connectMoved(i int) error {
	ns, err := h.container()
	if err != nil {
		return err
	}
	local, guest, err := h.moved(ns, fmt.Sprintf("l%d", i), fmt.Sprintf("g%d", i))
	if err != nil {
		return err
	}
	if err := h.attach(local); err != nil {
		return err
	}
	return configure(ns, guest, mac(i), i)
}

// moved creates a pair in the host's namespace and moves one end into the tunnel
// namespace and the other to a container.
func (h *host) moved(ns *space, local, guest string) (localLink, guestLink netlink.Link, err error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = local
	pair := netlink.NewVeth(attrs)
	pair.PeerName = guest
	if err := h.outer.route.LinkAdd(pair); err != nil {
		return nil, nil, err
	}
	peer, err := h.outer.route.LinkByName(guest)
	if err != nil {
		return nil, nil, err
	}
	if err := h.outer.route.LinkSetNsFd(pair, int(h.tunnel.fd())); err != nil {
		return nil, nil, err
	}
	if err := h.outer.route.LinkSetNsFd(peer, int(ns.fd())); err != nil {
		return nil, nil, err
	}
	if localLink, err = h.tunnel.route.LinkByName(local); err != nil {
		return nil, nil, err
	}
	guestLink, err = ns.route.LinkByName(guest)
	return localLink, guestLink, err
}

func (h *host) attach(local netlink.Link) error {
	if err := h.tunnel.route.LinkSetMasterByIndex(local, h.bridge); err != nil {
		return err
	}
	return h.tunnel.route.LinkSetUp(local)
}

func configure(ns *space, guest netlink.Link, hw net.HardwareAddr, i int) error {
	if err := ns.route.LinkSetHardwareAddr(guest, hw); err != nil {
		return err
	}
	if err := ns.route.AddrAdd(guest, assigned(i)); err != nil {
		return err
	}
	return ns.route.LinkSetUp(guest)
}

// connectBridged is what Docker's bridge driver does up to Docker 27: a pair in
// the namespace of the bridge, and the container's end moved.
func (h *host) connectBridged(i int) error {
	ns, err := h.container()
	if err != nil {
		return err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = fmt.Sprintf("l%d", i)
	pair := netlink.NewVeth(attrs)
	pair.PeerName = fmt.Sprintf("g%d", i)
	if err := h.tunnel.route.LinkAdd(pair); err != nil {
		return err
	}
	if err := h.attach(pair); err != nil {
		return err
	}
	peer, err := h.tunnel.route.LinkByName(pair.PeerName)
	if err != nil {
		return err
	}
	if err := h.tunnel.route.LinkSetNsFd(peer, int(ns.fd())); err != nil {
		return err
	}
	guest, err := ns.route.LinkByName(pair.PeerName)
	if err != nil {
		return err
	}
	if err := ns.route.LinkSetName(guest, "eth0"); err != nil {
		return err
	}
	return configure(ns, guest, mac(i), i)
}

// connectInPlace creates both ends where they belong, by one message from the
// tunnel namespace.
func (h *host) connectInPlace(i int) error {
	ns, err := h.container()
	if err != nil {
		return err
	}
	if err := withoutIPv6(); err != nil {
		return err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = fmt.Sprintf("l%d", i)
	attrs.NumTxQueues, attrs.NumRxQueues = 1, 1
	attrs.MasterIndex = h.bridge
	attrs.Flags = net.FlagUp
	pair := netlink.NewVeth(attrs)
	pair.PeerName, pair.PeerNamespace, pair.PeerHardwareAddr = "eth0", ns.fd(), mac(i)
	if err := h.tunnel.route.LinkAdd(pair); err != nil {
		return err
	}
	guest, err := ns.route.LinkByName("eth0")
	if err != nil {
		return err
	}
	if err := ns.route.AddrAdd(guest, assigned(i)); err != nil {
		return err
	}
	return ns.route.LinkSetUp(guest)
}

// connectPublished is Particle as the paper has it: the steps above once, and
// then one secondary address a container, one message each.
func (h *host) connectPublished(n int) error {
	ns, err := h.container()
	if err != nil {
		return err
	}
	local, guest, err := h.moved(ns, "l0", "g0")
	if err != nil {
		return err
	}
	if err := h.attach(local); err != nil {
		return err
	}
	if err := configure(ns, guest, mac(0), 0); err != nil {
		return err
	}
	for i := 1; i < n; i++ {
		if err := ns.route.AddrAdd(guest, assigned(i)); err != nil {
			return fmt.Errorf("address %d: %w", i, err)
		}
	}
	return nil
}

// settled waits until the kernel has torn down all namespaces closed before: it
// does so in the order they were closed, so the end of one more is the end of
// them all. That one's link has its peer in a namespace that is watched.
func settled() error {
	return rig.OnThread(func() error {
		watch, err := newSpace()
		if err != nil {
			return err
		}
		defer watch.close()
		updates := make(chan netlink.LinkUpdate)
		done := make(chan struct{})
		defer close(done)
		if err := netlink.LinkSubscribe(updates, done); err != nil {
			return err
		}
		last, err := newSpace()
		if err != nil {
			return err
		}
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "witness"
		pair := netlink.NewVeth(attrs)
		pair.PeerName, pair.PeerNamespace = "last", last.fd()
		err = watch.route.LinkAdd(pair)
		if err == nil {
			err = unix.Setns(int(watch.fd()), unix.CLONE_NEWNET) // or the thread itself holds the last one
		}
		last.close()
		if err != nil {
			return err
		}
		for update := range updates {
			if update.Header.Type == unix.RTM_DELLINK && update.Attrs().Name == "witness" {
				return nil
			}
		}
		return fmt.Errorf("lost sight of the witness link")
	})
}
