package overlay

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/topology"
)

// A container that must not share a namespace gets one of its own, and a branch:
//
//	tenant namespace                                  the container's own
//	┌───────────────────────────────────────────┐     ┌──────────────────────────┐
//	│ lo   local 10.9.0.0/24                    │     │ eth0  10.9.0.2/32        │
//	│ pb4f2a9c01d3b7 ───────────────────────────┼─────┼─ default via 169.254.1.1 │
//	│      10.9.0.0/32                          │     └──────────────────────────┘
//	│      route 10.9.0.2/32, in table local    │
//	└───────────────────────────────────────────┘
//
// The route stands in table local, beside the pool's: there the longer prefix
// wins for both families. In table main it would win for IPv4 alone, and only
// until somebody adds a routing rule, which unmerges the tables for good.
//
// Both ends know each other's MAC from permanent neighbour entries and the
// tenant's end has ARP switched off, so whatever the container says about MACs
// is not heard. Its packets pass branchRules.
//
// The tenant's end carries the zero address of the pool, which no container has
// (in IPv6 it is the routers' anycast address, RFC 4291 section 2.6.1): whoever
// sends from the tenant namespace without binding a source needs one.

// branchPrefix starts the names of the tenant's ends.
const branchPrefix = "pb"

// branchEnd is the name of the tenant's end: 14 of the 15 bytes a name can have.
func branchEnd(id topology.EndpointID) string { return branchPrefix + id.Short() }

// gateway is the container's next hop. No link has the address: the neighbour
// entry is all that is needed of it.
func gateway(family int) netip.Addr {
	if family == netlink.FAMILY_V6 {
		return netip.MustParseAddr("fe80::1")
	}
	return netip.MustParseAddr("169.254.1.1")
}

// branchMetric is worse than what Docker gives the routes of other networks, so
// that they go before ours and do not clash with them. The kernel's own metric for
// IPv6 is 1024.
const branchMetric = 2048

// ErrNoContainer is the cause when the container's namespace is gone.
var ErrNoContainer = errors.New("the container has ended")

// branch is one that is being made.
type branch struct {
	topology.Branch
	trunk         trunk
	tenant, guest *namespace
	outer, inner  netlink.Link // the tenant's end, the container's
}

// ApplyBranch connects a container's namespace to its network, which must have
// been applied. It may be repeated; what others changed at the container's end
// meanwhile is set again. Another container's branch with one of the addresses
// loses it. Causes: ErrNoNetwork, ErrNoContainer.
func (h *Host) ApplyBranch(ctx context.Context, want topology.Branch) error {
	fail := func(err error, fix string) error {
		return &fault.Error{Op: "connect container to network", On: want.Network.Short(), Err: err, Fix: fix}
	}
	if err := checkBranch(want); err != nil {
		return fail(err, "start the container again")
	}
	release, err := h.write(ctx)
	if err != nil {
		return err
	}
	defer release()
	b := branch{Branch: want}
	if b.tenant, err = h.tenant("connect container to network", want.Network); err != nil {
		return err
	}
	defer b.tenant.close()
	b.guest, err = openNamespace(want.Namespace)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fail(ErrNoContainer, "start it again")
	case err != nil:
		return fail(err, "run `particle doctor` on this host")
	}
	defer b.guest.close()
	if err = h.apart(b); err == nil {
		err = h.ensureTrunk(&b)
	}
	if err == nil {
		err = b.connect(ctx)
	}
	return uplinkError("connect container to network", want.Network, err)
}

func checkBranch(b topology.Branch) error {
	switch {
	case len(b.Addresses()) == 0:
		return errors.New("it was given no address")
	case b.IPv4.IsValid() && !b.IPv4.Is4(), b.IPv6.IsValid() && (!b.IPv6.Is6() || b.IPv6.Is4In6()):
		return fmt.Errorf("addresses %v are of the wrong family", b.Addresses())
	case b.MTU <= 0:
		return fmt.Errorf("MTU %d is none", b.MTU)
	case b.Link == "" || strings.Count(b.Link, "%") != strings.Count(b.Link, "%d"):
		return fmt.Errorf("%q is no name for a link", b.Link)
	}
	_, err := topology.ParseEndpointID(string(b.Endpoint))
	return err
}

// apart makes sure that the container's namespace is neither the host's nor a
// tenant's: a link there would connect all who live in it.
func (h *Host) apart(b branch) error {
	same, err := sameNamespace(h.root.source(), b.guest.source())
	if err != nil {
		return err
	}
	if same {
		return &fault.Error{Op: "connect container to network", On: b.Network.Short(),
			Err: errors.New("it is in the host's network namespace"), Fix: "start it without --network host"}
	}
	entries, err := os.ReadDir(h.opts.NamespaceDir)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		same, err := sameNamespace(filepath.Join(h.opts.NamespaceDir, entry.Name()), b.guest.source())
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if same {
			return &fault.Error{Op: "connect container to network", On: b.Network.Short(),
				Err: fmt.Errorf("the container shares the namespace of network %.12s with that network's other containers", entry.Name()),
				Fix: "disconnect it again, and give it the label particle.namespace=own to have it on several networks"}
		}
	}
	return nil
}

// trunk is what the branches of a network have in common.
type trunk struct {
	seen  time.Time
	pools []netip.Prefix
}

// ensureTrunk has the rules in place before the tenant namespace forwards, and
// learns the network's pools. Both are taken for granted for a while: looking for
// the rules takes as long as all else that a branch needs, and for the pools the
// kernel lists the routes to all branches.
func (h *Host) ensureTrunk(b *branch) error {
	known, ok := h.trunks[b.Network]
	if b.trunk = known; ok && time.Since(known.seen) < h.opts.AcceptEvery {
		return nil
	}
	_, err := b.tenant.ensureRules(branchTable, branchRules())
	if err == nil {
		_, err = b.tenant.ensureTenantRules()
	}
	if err == nil {
		_, err = b.tenant.forward()
	}
	if err == nil {
		b.trunk.pools, err = b.tenant.routes(netlink.FAMILY_ALL, unix.RTN_LOCAL)
	}
	if err == nil {
		b.trunk.seen = time.Now()
		h.trunks[b.Network] = b.trunk
	}
	return err
}

// forward has packets pass between branches and the rest.
func (n *namespace) forward() (changed bool, err error) {
	err = enter(n.file, func() (err error) {
		changed, err = settle([]sysctl{
			{"net/ipv4/ip_forward", "1"},
			{"net/ipv6/conf/all/forwarding", "1"},
			{"net/ipv6/conf/default/addr_gen_mode", "1"}, // none; see addrGenNone
		})
		return err
	})
	return changed, err
}

// connect makes the pair and sets up its ends. A pair that was made by a call
// that fails goes again.
func (b *branch) connect(ctx context.Context) error {
	made, err := b.ensurePair()
	if err != nil {
		return err
	}
	for _, step := range []func() error{b.configureOuter, b.configureInner, b.awaitCarrier} {
		if err = step(); err != nil {
			break
		}
	}
	// Later a container may have routes that keep it waiting.
	if err == nil && made && b.IPv6.IsValid() {
		err = b.guest.awaitDelivery(ctx, b.IPv6)
	}
	if err != nil && made {
		_, undo := b.tenant.remove(branchEnd(b.Endpoint))
		err = errors.Join(err, undo)
	}
	return err
}

// ensurePair finds or creates the pair, each end where it belongs. One that
// leads to another namespace is replaced.
func (b *branch) ensurePair() (made bool, err error) {
	if found, err := b.findPair(); found || err != nil {
		return false, err
	}
	if _, err := b.tenant.remove(branchEnd(b.Endpoint)); err != nil {
		return false, err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = branchEnd(b.Endpoint)
	attrs.MTU = b.MTU
	attrs.HardwareAddr = HardwareAddr(gateway(netlink.FAMILY_V4))
	attrs.NumTxQueues, attrs.NumRxQueues = 1, 1 // more cost an RCU wait each time the pair is made
	pair := netlink.NewVeth(attrs)
	pair.PeerName = b.Link // the kernel puts the number in
	pair.PeerHardwareAddr = b.mac()
	pair.PeerNamespace = netlink.NsFd(b.guest.fd())
	if err := b.tenant.route.LinkAdd(pair); err != nil {
		return false, fmt.Errorf("create %s: %w", attrs.Name, err)
	}
	if found, err := b.findPair(); !found {
		return true, errors.Join(fmt.Errorf("find %s: %w", attrs.Name, unix.ENODEV), err)
	}
	return true, nil
}

// findPair looks for both ends. Links of different namespaces may have equal
// numbers, so the namespace of the other end counts, too.
func (b *branch) findPair() (found bool, err error) {
	b.outer, err = b.tenant.find(branchEnd(b.Endpoint))
	if b.outer == nil || err != nil {
		return false, err
	}
	nsid, err := b.tenant.route.GetNetNsIdByFd(b.guest.fd())
	if err != nil {
		return false, fmt.Errorf("identify namespace %s: %w", b.Namespace, err)
	}
	if nsid < 0 || b.outer.Attrs().NetNsID != nsid {
		return false, nil
	}
	b.inner, err = b.guest.route.LinkByIndex(b.outer.Attrs().ParentIndex)
	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) {
		return false, nil
	}
	return err == nil && paired(b.outer, b.inner), err
}

func (b *branch) mac() net.HardwareAddr {
	if b.MAC != nil {
		return b.MAC
	}
	return HardwareAddr(b.Addresses()[0])
}

func familyOf(a netip.Addr) int {
	if a.Is4() {
		return netlink.FAMILY_V4
	}
	return netlink.FAMILY_V6
}

// host is the prefix that holds one address.
func host(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }
