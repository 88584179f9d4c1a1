package overlay

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
)

// pair is a routed veth pair whose ends have addresses: the link of an uplink, or
// that inside of it.
type pair struct {
	outer, inner end
	mtu          int
}

type end struct {
	in         *namespace
	name       string
	ipv4, ipv6 netip.Prefix // the second is invalid if the link has no IPv6
}

func (e end) addr() netip.Addr  { return e.ipv4.Addr() }
func (e end) addr6() netip.Addr { return e.ipv6.Addr() }

// ensure makes the pair and gives its ends what they have of IPv4.
func (p pair) ensure() (changed bool, err error) {
	return inTurn([]func() (bool, error){
		p.ensureLink,
		func() (bool, error) { return p.outer.in.ensureEnd(p.outer.name, p.outer.ipv4, p.mtu) },
		func() (bool, error) { return p.inner.in.ensureEnd(p.inner.name, p.inner.ipv4, p.mtu) },
	})
}

// ensure6 is what a pair with IPv6 takes beyond one without. Its ends are up by
// then: a link loses its IPv6 addresses when it goes down.
func (p pair) ensure6(ctx context.Context) (changed bool, err error) {
	return inTurn([]func() (bool, error){
		func() (bool, error) { return p.outer.in.ensureEnd6(ctx, p.outer.name, p.outer.ipv6) },
		func() (bool, error) { return p.inner.in.ensureEnd6(ctx, p.inner.name, p.inner.ipv6) },
		p.ensureNeighbours,
	})
}

// ensureLink creates the two ends, each where it belongs. Ends that do not belong
// together, or are alone, are replaced.
func (p pair) ensureLink() (changed bool, err error) {
	outer, err := p.outer.in.find(p.outer.name)
	if err != nil {
		return false, err
	}
	inner, err := p.inner.in.find(p.inner.name)
	if err != nil {
		return false, err
	}
	if paired(outer, inner) {
		return false, nil
	}
	_, err = p.outer.in.remove(p.outer.name)
	if err == nil {
		_, err = p.inner.in.remove(p.inner.name)
	}
	if err != nil {
		return false, err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = p.outer.name
	attrs.MTU = p.mtu
	attrs.NumTxQueues, attrs.NumRxQueues = 1, 1 // more cost an RCU wait each time the pair is made
	// udev gives a link whose address the kernel drew another one (systemd.link(5),
	// MACAddressPolicy=persistent), after the other end has learned the first.
	attrs.HardwareAddr = HardwareAddr(p.outer.addr())
	veth := netlink.NewVeth(attrs)
	veth.PeerHardwareAddr = HardwareAddr(p.inner.addr())
	veth.PeerName = p.inner.name
	veth.PeerNamespace = netlink.NsFd(p.inner.in.fd())
	if err := p.outer.in.route.LinkAdd(veth); err != nil {
		return false, fmt.Errorf("create %s: %w", attrs.Name, err)
	}
	return true, nil
}

func paired(outer, inner netlink.Link) bool {
	if outer == nil || inner == nil || outer.Type() != "veth" || inner.Type() != "veth" {
		return false
	}
	return outer.Attrs().ParentIndex == inner.Attrs().Index && inner.Attrs().ParentIndex == outer.Attrs().Index
}

// ensureNeighbours tells each end the other's hardware address for good.
// Discovery would need link-local addresses, and rules that let it through.
func (p pair) ensureNeighbours() (changed bool, err error) {
	outer, err := p.outer.in.mustFind(p.outer.name)
	if err != nil {
		return false, err
	}
	inner, err := p.inner.in.mustFind(p.inner.name)
	if err != nil {
		return false, err
	}
	changed, err = p.outer.in.ensureNeighbour(outer, p.inner.addr6(), inner.Attrs().HardwareAddr)
	if err != nil {
		return changed, err
	}
	did, err := p.inner.in.ensureNeighbour(inner, p.outer.addr6(), outer.Attrs().HardwareAddr)
	return changed || did, err
}
