package overlay

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

// mac is a hardware address that can be compared.
type mac [6]byte

func (m mac) String() string { return net.HardwareAddr(m[:]).String() }

// neighbour tells a link the MAC of a next hop, for good.
type neighbour struct {
	link int
	via  netip.Addr
	mac  mac
}

func (n neighbour) String() string { return fmt.Sprintf("neighbour %s at %s", n.via, n.mac) }

func (n neighbour) write(q *request, kind, flags uint16, seq uint32) {
	q.begin(kind, unix.NLM_F_REQUEST|flags, seq)
	q.buf = appendNdMsg(q.buf, familyOf(n.via), n.link, unix.NUD_PERMANENT, 0)
	q.attr(unix.NDA_DST, n.via.AsSlice())
	if kind == unix.RTM_NEWNEIGH {
		q.attr(unix.NDA_LLADDR, n.mac[:])
	}
	q.end()
}

func (n neighbour) set(q *request, seq uint32) {
	n.write(q, unix.RTM_NEWNEIGH, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, seq)
}

func (n neighbour) unset(q *request, seq uint32) { n.write(q, unix.RTM_DELNEIGH, 0, seq) }

// tunnel tells the VXLAN device which host has a MAC: an FDB entry.
type tunnel struct {
	link int
	mac  mac
	vtep netip.Addr
	port uint16 // UDP; 0 is the device's own
	elsewhere
}

// elsewhere is what none of ours has.
type elsewhere struct{ vni, link uint32 }

func (t tunnel) String() string { return fmt.Sprintf("tunnel for %s to %s", t.mac, t.vtep) }

func (t tunnel) write(q *request, kind, flags uint16, seq uint32) {
	q.begin(kind, unix.NLM_F_REQUEST|flags, seq)
	q.buf = appendNdMsg(q.buf, unix.AF_BRIDGE, t.link, unix.NUD_PERMANENT, unix.NTF_SELF)
	q.attr(unix.NDA_LLADDR, t.mac[:])
	q.attr(unix.NDA_DST, t.vtep.AsSlice())
	if t.port != 0 {
		q.attr(unix.NDA_PORT, binary.BigEndian.AppendUint16(nil, t.port))
	}
	if t.elsewhere.vni != 0 {
		q.attr32(unix.NDA_VNI, t.elsewhere.vni)
	}
	if t.elsewhere.link != 0 {
		q.attr32(unix.NDA_IFINDEX, t.elsewhere.link)
	}
	q.end()
}

func (t tunnel) set(q *request, seq uint32) {
	t.write(q, unix.RTM_NEWNEIGH, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, seq)
}

func (t tunnel) unset(q *request, seq uint32) { t.write(q, unix.RTM_DELNEIGH, 0, seq) }

// appendNdMsg is struct ndmsg of linux/neighbour.h.
func appendNdMsg(b []byte, family, link int, state uint16, flags byte) []byte {
	b = append(b, byte(family), 0, 0, 0)
	b = binary.NativeEndian.AppendUint32(b, uint32(link))
	b = binary.NativeEndian.AppendUint16(b, state)
	return append(b, flags, 0)
}

// place is what the kernel knows a route by.
type place struct {
	table  int
	to     netip.Prefix
	metric uint32
}

// way is where a route leads: to another host, or nowhere.
type way struct {
	link int // 0 if nowhere
	via  netip.Addr
	from netip.Addr // the source that the route suggests; invalid if none
	odd  bool       // it has more than ours have, such as an MTU
}

// route is a route of ours to other hosts' addresses.
type route struct {
	place
	way
}

func (r route) String() string {
	if r.link == 0 {
		return fmt.Sprintf("unreachable route to %s", r.to)
	}
	return fmt.Sprintf("route to %s via %s", r.to, r.via)
}

func (r route) set(q *request, seq uint32) {
	q.begin(unix.RTM_NEWROUTE, unix.NLM_F_REQUEST|unix.NLM_F_CREATE|unix.NLM_F_REPLACE, seq)
	r.body(q)
	if r.from.IsValid() {
		q.attr(unix.RTA_PREFSRC, r.from.AsSlice())
	}
	q.end()
}

func (r route) unset(q *request, seq uint32) {
	q.begin(unix.RTM_DELROUTE, unix.NLM_F_REQUEST, seq)
	r.body(q)
	q.end()
}

// body writes struct rtmsg of linux/rtnetlink.h and the attributes that tell
// the route apart.
func (r route) body(q *request) {
	kind, flags := byte(unix.RTN_UNREACHABLE), uint32(0)
	if r.link != 0 {
		kind = unix.RTN_UNICAST
	}
	if r.via.Is4() {
		flags = unix.RTNH_F_ONLINK // no address of the link says that the next hop is on it
	}
	q.buf = append(q.buf, byte(familyOf(r.to.Addr())), byte(r.to.Bits()), 0, 0,
		byte(r.table), routeProtocol, unix.RT_SCOPE_UNIVERSE, kind)
	q.buf = binary.NativeEndian.AppendUint32(q.buf, flags)
	q.attr(unix.RTA_DST, r.to.Addr().AsSlice())
	q.attr32(unix.RTA_PRIORITY, r.metric)
	if r.link != 0 {
		q.attr32(unix.RTA_OIF, uint32(r.link))
	}
	switch {
	case !r.via.IsValid():
	case r.via.Is6() && r.to.Addr().Is4():
		q.attr(unix.RTA_VIA, append(binary.NativeEndian.AppendUint16(nil, unix.AF_INET6), r.via.AsSlice()...))
	default:
		q.attr(unix.RTA_GATEWAY, r.via.AsSlice())
	}
}

// holding is what the kernel has for other hosts.
type holding struct {
	neighbours map[netip.Addr]mac
	tunnels    map[tunnel]bool
	routes     map[place]way
}

func newHolding() *holding {
	return &holding{neighbours: map[netip.Addr]mac{}, tunnels: map[tunnel]bool{}, routes: map[place]way{}}
}

// changes lead from what there is to what is wanted. What routes use comes before
// them and goes after them, and all that comes does so before anything goes, so
// that a prefix that moves to another host always leads somewhere.
func (have *holding) changes(want *holding, link int) []change {
	var list []change
	for via, m := range want.neighbours {
		if have.neighbours[via] != m {
			list = append(list, change{object: neighbour{link, via, m}})
		}
	}
	for t := range want.tunnels {
		if !have.tunnels[t] {
			list = append(list, change{object: t})
		}
	}
	for p, w := range want.routes {
		if found, ok := have.routes[p]; !ok || found != w {
			list = append(list, change{object: route{p, w}})
		}
	}
	for p, w := range have.routes {
		if _, ok := want.routes[p]; !ok {
			list = append(list, change{route{p, w}, true})
		}
	}
	for t := range have.tunnels {
		if !want.tunnels[t] {
			list = append(list, change{t, true})
		}
	}
	for via, m := range have.neighbours {
		if _, ok := want.neighbours[via]; !ok {
			list = append(list, change{neighbour{link, via, m}, true})
		}
	}
	return list
}
