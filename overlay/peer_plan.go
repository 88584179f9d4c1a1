package overlay

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/topology"
)

// What a tenant namespace holds of another host of the network:
//
//	route      10.9.2.0/24 via inet6 fe80::c000:202 dev vx0 metric 3221225986 src 10.9.1.0
//	neighbour  fe80::c000:202 lladdr 0a:58:c0:00:02:02 PERMANENT
//	FDB entry  0a:58:c0:00:02:02 dst 192.0.2.2 self permanent
//
// (the latter with the other host's port, if that is not this one's),
// one route for each of its prefixes, and one of each of the others. All is
// derived from its tunnel address, so nothing has to be remembered to find it
// again, and nothing is ever asked of the network.
//
// The next hop is an IPv6 link-local address if the network has IPv6, and serves
// both families then. If it has none, the next hop is of 240.0.0.0/4, which are
// nobody's addresses (RFC 1112 section 4): IPv4 does not depend on the
// namespace's IPv6 then, which Docker up to 25 switches off. 28 bits of the tunnel
// address tell hosts apart there, and those of 169.254.0.0/16 would not.
//
// The metric is different for each host because the kernel finds routes that
// have all but the next hop in common in one list, which it searches for each
// new one (fib_find_info in net/ipv4/fib_semantics.c): ten thousand would take
// ten times as long as they do. If two hosts claim one prefix, the lower tunnel
// address wins on all hosts.

// unassignedMetric is that of the unreachable routes to whole subnets: worse
// than any host's.
const unassignedMetric = math.MaxUint32

// metric is the host's for its routes.
func metric(vtep netip.Addr) uint32 {
	if vtep.Is4() {
		a := vtep.As4()
		return binary.BigEndian.Uint32(a[:])
	}
	sum := sha256.Sum256(vtep.AsSlice())
	return binary.BigEndian.Uint32(sum[:])>>1 | 1 // 0 is not a metric of IPv6
}

// side is what the routes to other hosts take from this host's own part.
type side struct {
	link           int            // of the VXLAN device; 0 if there is none
	vtep           netip.Addr     // of this host
	port           uint16         // UDP, at which the device takes VXLAN
	pools, subnets []netip.Prefix // sorted
}

func newSide(device *netlink.Vxlan, pools, subnets []netip.Prefix) side {
	var s side
	if device != nil {
		s.link, s.vtep, s.port = device.Index, address(device.SrcAddr), uint16(device.Port)
	}
	for _, p := range pools {
		s.pools = append(s.pools, p.Masked())
	}
	for _, p := range subnets {
		s.subnets = append(s.subnets, p.Masked())
	}
	slices.SortFunc(s.pools, netip.Prefix.Compare)
	slices.SortFunc(s.subnets, netip.Prefix.Compare)
	return s
}

// via is the next hop for a prefix of the host.
func (s side) via(vtep netip.Addr, to netip.Prefix) netip.Addr {
	has6 := slices.ContainsFunc(s.subnets, func(p netip.Prefix) bool { return p.Addr().Is6() })
	if vtep.Is4() && to.Addr().Is4() && !has6 {
		a := vtep.As4()
		a[0] |= 240
		return netip.AddrFrom4(a)
	}
	a := [16]byte{0xfe, 0x80}
	if vtep.Is4() {
		copy(a[12:], vtep.AsSlice())
	} else {
		sum := sha256.Sum256(vtep.AsSlice())
		copy(a[8:], sum[:])
	}
	return netip.AddrFrom16(a)
}

// source is the first address of the host's own part of the subnet that holds
// to; of a subnet it has no part in, that of any other of the family. Blocks go
// before single addresses, which may be given up. Invalid if there is none.
func (s side) source(to netip.Prefix) netip.Addr {
	home := slices.IndexFunc(s.subnets, func(n netip.Prefix) bool { return n.Overlaps(to) })
	best, bestRank := netip.Addr{}, math.MaxInt
	for _, p := range s.pools {
		of := slices.IndexFunc(s.subnets, func(n netip.Prefix) bool { return n.Bits() <= p.Bits() && n.Contains(p.Addr()) })
		if p.Addr().Is4() != to.Addr().Is4() || of < 0 {
			continue
		}
		rank := 0
		if of != home {
			rank += 2
		}
		if p.IsSingleIP() {
			rank++
		}
		if rank < bestRank {
			best, bestRank = p.Addr(), rank
		}
	}
	return best
}

// sources are the addresses of IPv6 that routes suggest. The kernel takes such a
// suggestion only if some link has the address, in spite of AnyIP.
func (s side) sources() []netip.Addr {
	var list []netip.Addr
	for _, n := range s.subnets {
		if a := s.source(n); n.Addr().Is6() && a.IsValid() && !slices.Contains(list, a) {
			list = append(list, a)
		}
	}
	return list
}

// table is where the route to a prefix stands: in table local if the prefix is a
// part of an own one, which would win otherwise.
func (s side) table(to netip.Prefix) int {
	for _, p := range s.pools {
		if p.Bits() < to.Bits() && p.Contains(to.Addr()) {
			return unix.RT_TABLE_LOCAL
		}
	}
	return unix.RT_TABLE_MAIN
}

// unassigned adds the routes that keep packets to addresses of nobody from
// leaving by the uplink.
func (s side) unassigned(want *holding) {
	for _, n := range s.subnets {
		want.routes[place{unix.RT_TABLE_MAIN, n, unassignedMetric}] = way{}
	}
}

// plan collects what the kernel is to hold.
type plan struct {
	side
	*holding
	owner map[mac]netip.Addr // tunnel address of the host with a MAC
}

func newPlan(s side) *plan { return &plan{s, newHolding(), map[mac]netip.Addr{}} }

// toldHosts is of how many hosts that cannot be reached it is told why; as a rule it
// is the same for all.
const toldHosts = 3

// hosts adds those that can be reached, and tells of the others. Cause: ErrUnreached.
func (p *plan) hosts(peers []topology.Peer) error {
	if p.link == 0 && len(peers) > 0 {
		return fmt.Errorf("other hosts %w: this one has no tunnel address", topology.ErrUnreached)
	}
	var errs []error
	for _, peer := range peers {
		if err := p.host(peer); err != nil {
			errs = append(errs, fmt.Errorf("host %s %w: %w", peer.VTEP, topology.ErrUnreached, err))
		}
	}
	if more := len(errs) - toldHosts; more > 0 {
		errs = append(errs[:toldHosts], fmt.Errorf("and %d more", more))
	}
	return errors.Join(errs...)
}

func (p *plan) host(peer topology.Peer) error {
	m, err := p.hardware(peer)
	if err != nil {
		return err
	}
	if other, ok := p.owner[m]; ok && other != peer.VTEP {
		return fmt.Errorf("its MAC %s is that of host %s, too", m, other)
	}
	for _, to := range peer.Prefixes {
		via := p.via(peer.VTEP, to)
		if known, ok := p.neighbours[via]; ok && known != m {
			return fmt.Errorf("its next hop %s is that of MAC %s, too", via, known)
		}
	}
	p.owner[m] = peer.VTEP
	p.tunnels[tunnel{p.link, m, peer.VTEP, beyond(peer.Port, p.port), elsewhere{}}] = true
	for _, to := range peer.Prefixes {
		to = to.Masked()
		via := p.via(peer.VTEP, to)
		p.neighbours[via] = m
		p.routes[place{p.table(to), to, metric(peer.VTEP)}] = way{link: p.link, via: via, from: p.source(to)}
	}
	return nil
}

// unlike leaves out hosts that have a MAC or a next hop of one that stays, and tells of
// them. It takes a look at each host, and no more.
func (s side) unlike(come, stay []topology.Peer) (list []topology.Peer, err error) {
	taken := make([]netip.Addr, len(come)) // by the host that stays
	macs, hops := map[mac][]int{}, map[netip.Addr][]int{}
	p := newPlan(s)
	for i, peer := range come {
		m, err := p.hardware(peer)
		if err != nil || len(peer.Prefixes) == 0 {
			continue // hosts tells
		}
		via := s.via(peer.VTEP, peer.Prefixes[0])
		macs[m], hops[via] = append(macs[m], i), append(hops[via], i)
	}
	for _, peer := range stay {
		m, err := p.hardware(peer)
		if err != nil || len(peer.Prefixes) == 0 {
			continue
		}
		for _, i := range slices.Concat(macs[m], hops[s.via(peer.VTEP, peer.Prefixes[0])]) {
			taken[i] = peer.VTEP
		}
	}
	var errs []error
	for i, peer := range come {
		if !taken[i].IsValid() {
			list = append(list, peer)
			continue
		}
		errs = append(errs, fmt.Errorf("host %s %w: its MAC or its next hop is that of host %s, too", peer.VTEP, topology.ErrUnreached, taken[i]))
	}
	return list, errors.Join(errs...)
}

// beyond is a port that is not the own one; 0 else, as the kernel has it.
func beyond(port, own uint16) uint16 {
	if port == own {
		return 0
	}
	return port
}

// hardware checks that the host can be reached, and gives its MAC.
func (p *plan) hardware(peer topology.Peer) (m mac, err error) {
	hw := peer.MAC
	if hw == nil && peer.VTEP.IsValid() {
		hw = HardwareAddr(peer.VTEP)
	}
	switch {
	case !peer.VTEP.IsValid() || peer.VTEP.Is4In6() || peer.VTEP.IsMulticast() || peer.VTEP.IsUnspecified():
		return m, errors.New("that is no tunnel address")
	case peer.VTEP == p.vtep:
		return m, errors.New("that is this host itself")
	case peer.VTEP.Is4() != p.vtep.Is4():
		return m, fmt.Errorf("this host's %s is of another IP version", p.vtep)
	case len(hw) != len(m):
		return m, fmt.Errorf("%s is no MAC", hw)
	}
	for _, to := range peer.Prefixes {
		if !to.IsValid() || to.Addr().Is4In6() {
			return m, fmt.Errorf("%s is no address range", to)
		}
	}
	return mac(hw), nil
}
