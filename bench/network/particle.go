package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/particle-net/particle/bench/rig"
	"github.com/particle-net/particle/overlay"
	"github.com/particle-net/particle/topology"
)

// particle measures the product's own code.
type particle struct {
	ready  bool // an empty namespace is at hand
	expose bool // bind each container's sandbox key, as on Docker up to 27
	branch bool // each container has a namespace of its own
}

func (p particle) measure(n int) (took time.Duration, err error) {
	ctx := context.Background()
	dir, err := os.MkdirTemp(rig.RunDir, "bench-")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	outer, err := newSpace() // the thread's, hence what overlay takes for the host's
	if err != nil {
		return 0, err
	}
	defer outer.close()
	vtep := netip.MustParseAddr("192.0.2.1")
	if err := underlay(outer, vtep); err != nil {
		return 0, err
	}
	opts := overlay.Options{NamespaceDir: filepath.Join(dir, "netns"), AcceptEvery: time.Minute}
	if p.ready {
		opts.Ready = 1
	}
	h, err := overlay.Open(ctx, opts)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, h.Close()) }()
	seg := topology.Segment{Network: topology.NetworkID(strings.Repeat("0a", 32)), VNI: 1, VTEP: vtep, Port: 4789,
		MTU: 1450, Pools: []netip.Prefix{pool()}}
	keys := make([]string, n)
	for i := range keys {
		keys[i] = filepath.Join(dir, "docker", fmt.Sprintf("%012x", i))
	}
	if err := os.Mkdir(filepath.Join(dir, "docker"), 0o755); err != nil {
		return 0, err
	}
	start := time.Now()
	if _, err := h.Apply(ctx, seg); err != nil {
		return 0, err
	}
	if p.expose {
		for _, key := range keys {
			if err := h.Expose(seg.Network, key); err != nil {
				return 0, err
			}
		}
	}
	if p.branch {
		took, err = branches(ctx, h, seg, n, start)
		return took, errors.Join(err, h.Remove(ctx, seg.Network))
	}
	took = time.Since(start)
	l, err := h.Listen(ctx, seg.Network, "tcp", netip.AddrPortFrom(addr(n-1), 80).String())
	if err != nil {
		return 0, fmt.Errorf("endpoint %d is not connected: %w", n-1, err)
	}
	errs := []error{l.Close()}
	if p.expose {
		for _, key := range keys {
			errs = append(errs, h.Conceal(key))
		}
	}
	return took, errors.Join(append(errs, h.Remove(ctx, seg.Network))...)
}

// branches makes containers' namespaces and connects them. The thread ends up in
// the last one. It says how long that took since start.
func branches(ctx context.Context, h *overlay.Host, seg topology.Segment, n int, start time.Time) (took time.Duration, err error) {
	for i := range n {
		ns, err := newSpace()
		if err != nil {
			return 0, err
		}
		defer ns.close()
		err = h.ApplyBranch(ctx, topology.Branch{Network: seg.Network, Endpoint: topology.EndpointID(fmt.Sprintf("%012x", i)),
			Namespace: fmt.Sprintf("/proc/self/fd/%d", ns.fd()), Link: "eth%d", IPv4: addr(i), MTU: seg.MTU})
		if err != nil {
			return 0, fmt.Errorf("container %d: %w", i, err)
		}
	}
	took = time.Since(start)
	return took, usable(n - 1)
}

// underlay gives the host a link with the tunnel address.
func underlay(outer *space, vtep netip.Addr) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "eth0"
	link := &netlink.Bridge{LinkAttrs: attrs}
	if err := outer.route.LinkAdd(link); err != nil {
		return err
	}
	a, err := netlink.ParseAddr(vtep.String() + "/24")
	if err != nil {
		return err
	}
	if err := outer.route.AddrAdd(link, a); err != nil {
		return err
	}
	return outer.route.LinkSetUp(link)
}
