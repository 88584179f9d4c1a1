package overlay

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/topology"
)

// A VXLAN device believes every sender, so the host's firewall looks at who sends
// to one of our networks:
//
//	table inet particle-vxlan
//	  set networks   UDP port . VNI, with the network's id as a comment
//	  set ports      UDP ports at which hosts of the cluster take VXLAN, this one's too
//	  set members4   tunnel addresses of the cluster's other hosts
//	  set members6
//	  chain prerouting           UDP to one of ports, of the VNI of one of networks: no connection tracking
//	  chain output               likewise: goto sent
//	  chain sent                 IPv4: no connection tracking;
//	                             from or to WireGuardRange, by another link: drop;  no connection tracking
//	  chain input                UDP to one of networks: goto members;  by WireGuard: drop
//	  chain members              by lo: drop;  from members4: accept;
//	                             from WireGuardRange, by another link: drop;  from members6: accept;  drop
//	  chain forward              to or from WireGuard: drop
//
// Other people's VXLAN, such as Docker Swarm's, has other VNIs and passes, by the
// same port, too. At input a packet is whole, whatever pieces it came in.
//
// That connections are not tracked saves a tenth of the packet rate, and it
// protects the other hosts: what a container of any other network of Docker's
// sends to them is not rewritten to come from this host, which they believe.
//
// Nothing is forwarded into WireGuard: what a container sends to a tunnel address by
// the host would arrive under the host's name.
//
// It is a table of its own because it stands whether or not there are uplinks.

const filterTable = "particle-vxlan"

// receiver is what packets to a network are told by: UDP port and VNI, each
// padded to four bytes as nftables does.
type receiver [8]byte

func receiverOf(seg topology.Segment) (r receiver) {
	binary.BigEndian.PutUint16(r[:], seg.Port)
	binary.BigEndian.PutUint32(r[4:], uint32(seg.VNI)<<8)
	return r
}

// admission is what the sets of the table hold.
type admission struct {
	receivers map[receiver]string // and the ids of the networks they are of
	members   map[netip.Addr]bool
	ports     map[uint16]bool
}

// add takes over the members and ports of another.
func (a admission) add(b admission) {
	maps.Copy(a.members, b.members)
	maps.Copy(a.ports, b.ports)
}

// filter is what is known of the table.
type filter struct {
	seen time.Time // when have was read; zero if it was not, or may be otherwise by now
	have admission
	// wanted are the members and ports that were asked for; nil if none ever were.
	wanted *admission
}

// SetMembers says which tunnel addresses the cluster's other hosts have, and at which
// UDP ports they take VXLAN (0: at this host's): no others' packets reach a network,
// and nothing but this host's own VXLAN goes to those ports under its address. None
// lets nobody's in, as is right for a host that is alone. Until it is called those hold
// that the kernel has from before, which are none on a host that has just booted. It
// does not protect from forged outer sources: who can send under a member's address,
// gets in.
func (h *Host) SetMembers(ctx context.Context, members []netip.AddrPort) error {
	return h.letIn(ctx, members, func(wanted admission) error {
		h.filter.wanted = &wanted
		return h.ensureMembers()
	})
}

// AddMembers is SetMembers of those who are in and more, and takes as long as there
// are more. It is an error before SetMembers has said who is in.
func (h *Host) AddMembers(ctx context.Context, come []netip.AddrPort) error {
	return h.letIn(ctx, come, func(more admission) error {
		if h.filter.wanted == nil {
			return errors.New("it is not known who is in")
		}
		there := len(h.filter.have.receivers) > 0
		for p := range more.ports {
			there = there && h.filter.have.ports[p]
		}
		h.filter.wanted.add(more)
		if there && h.fillMembers(more) == nil {
			return nil
		}
		h.filter.seen = time.Time{}
		return h.ensureMembers()
	})
}

// letIn has set called with what members come to.
func (h *Host) letIn(ctx context.Context, members []netip.AddrPort, set func(admission) error) error {
	const op = "set members of the cluster"
	all := admission{members: make(map[netip.Addr]bool, len(members)), ports: map[uint16]bool{}}
	for _, m := range members {
		a := m.Addr()
		if !a.IsValid() || a.Is4In6() {
			return &fault.Error{Op: op, On: a.String(), Err: errors.New("that is no tunnel address"), Fix: "report this as a bug"}
		}
		all.members[a] = true
		if m.Port() != 0 {
			all.ports[m.Port()] = true
		}
	}
	release, err := h.write(ctx)
	if err != nil {
		return err
	}
	defer release()
	if err := set(all); err != nil {
		return &fault.Error{Op: op, Err: err, Fix: "run `nft list table inet " + filterTable + "` on this host"}
	}
	return nil
}

// ensureMembers makes the table hold those that are wanted.
func (h *Host) ensureMembers() error {
	_, err := h.ensureFilter(func(map[receiver]string) {})
	if err == nil && !h.surveyed.when.IsZero() { // there are uplinks, whose containers are kept from the ports
		_, err = h.ensureHostRules()
	}
	return err
}

// fillMembers adds to the table, which must be there.
func (h *Host) fillMembers(more admission) error {
	conn, err := h.root.firewall()
	if err != nil {
		return err
	}
	defer func() { _ = conn.CloseLasting() }()
	if _, err = newSets().update(conn, admission{}, more); err == nil {
		err = conn.Flush()
	}
	if err == nil {
		h.filter.have.add(more)
	}
	return err
}

// ensureReceiver makes the filter guard the segment's network, before packets
// can reach it.
func (h *Host) ensureReceiver(seg topology.Segment) (changed bool, err error) {
	id, r := string(seg.Network), receiverOf(seg)
	if !seg.VTEP.IsValid() {
		return h.forgetReceiver(seg.Network)
	}
	if h.recent() && h.filter.have.receivers[r] == id {
		return false, nil
	}
	return h.ensureFilter(func(all map[receiver]string) {
		maps.DeleteFunc(all, func(other receiver, of string) bool { return of == id && other != r })
		if all[r] == "" {
			all[r] = id
		}
	})
}

// ensureReceiverOwned names the network, which has its device by now, in place of
// one that is gone and was forgotten.
func (h *Host) ensureReceiverOwned(seg topology.Segment) (changed bool, err error) {
	id, r := string(seg.Network), receiverOf(seg)
	if !seg.VTEP.IsValid() || h.filter.have.receivers[r] == id {
		return false, nil
	}
	return h.ensureFilter(func(all map[receiver]string) { all[r] = id })
}

// forgetReceiver takes a network out of the filter.
func (h *Host) forgetReceiver(id topology.NetworkID) (changed bool, err error) {
	if h.recent() && !slices.Contains(slices.Collect(maps.Values(h.filter.have.receivers)), string(id)) {
		return false, nil
	}
	return h.ensureFilter(func(all map[receiver]string) {
		maps.DeleteFunc(all, func(_ receiver, of string) bool { return of == string(id) })
	})
}

// recent says whether what was seen of the table is taken for granted.
func (h *Host) recent() bool {
	return !h.filter.seen.IsZero() && time.Since(h.filter.seen) < h.opts.AcceptEvery
}

// ensureFilter makes the table hold the members and, after edit, the receivers.
func (h *Host) ensureFilter(edit func(map[receiver]string)) (changed bool, err error) {
	conn, err := h.root.firewall()
	if err != nil {
		return false, err
	}
	defer func() { _ = conn.CloseLasting() }()
	sound := true
	if !h.recent() {
		if sound, err = h.readFilter(conn); err != nil {
			return false, err
		}
	}
	have := h.filter.have
	want := admission{maps.Clone(have.receivers), have.members, maps.Clone(have.ports)}
	if want.receivers == nil {
		want.receivers = map[receiver]string{}
	}
	edit(want.receivers)
	if w := h.filter.wanted; w != nil {
		want.members, want.ports = w.members, maps.Clone(w.ports)
	}
	if want.members == nil {
		want.members = map[netip.Addr]bool{}
	}
	if want.ports == nil {
		want.ports = map[uint16]bool{}
	}
	want.ports[h.opts.Port] = true
	if !sound && len(want.receivers) == 0 && !h.tunnels.guarded {
		return false, nil // a host without networks, and without WireGuard, has nothing to guard
	}
	s := newSets()
	if !sound {
		have = admission{}
		err = s.create(conn, h.opts.Port)
	}
	differ, failed := s.update(conn, have, want)
	if err = errors.Join(err, failed); err == nil && !differ && sound {
		return false, nil
	}
	h.filter.seen = time.Time{}
	if err == nil {
		err = conn.Flush()
	}
	if err != nil {
		return false, fmt.Errorf("fill nftables table %s: %w", filterTable, err)
	}
	h.filter.seen, h.filter.have = time.Now(), want
	return true, nil
}

// readFilter looks at the table. One that is not sound is to be made anew, with
// what was known of it before.
func (h *Host) readFilter(conn *nftables.Conn) (sound bool, err error) {
	state, err := inspect(conn, table(filterTable), filterRules(h.opts.Port))
	if err != nil {
		return false, err
	}
	have, err := newSets().read(conn)
	switch {
	case state != matching && err == nil && h.filter.have.receivers == nil:
		h.filter.have = have // an earlier version's, which let the members in until now
		return false, nil
	case state != matching:
		return false, nil
	case err != nil:
		return false, err
	}
	h.filter.seen, h.filter.have = time.Now(), have
	return true, nil
}

// ports are those at which hosts of the cluster take VXLAN, as far as they are known,
// in order.
func (h *Host) ports() []uint16 {
	all := map[uint16]bool{h.opts.Port: true}
	maps.Copy(all, h.filter.have.ports)
	if w := h.filter.wanted; w != nil {
		maps.Copy(all, w.ports)
	}
	return slices.Sorted(maps.Keys(all))
}

// filterRules are the chains of the table, on a host that takes VXLAN at a port.
func filterRules(port uint16) ruleset {
	encrypted := topology.WireGuardRange
	return ruleset{
		{"prerouting", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, nftables.ChainPriorityRaw, []rule{
			newRule("networks of ours, to any host", ofNetwork(port), notrack()),
		}},
		{"sent", "", nil, nil, []rule{
			newRule("IPv4", family(unix.NFPROTO_IPV4), notrack(), accept()),
			newRule("in plain", inRange(source, encrypted), notTo(wireGuardName), drop()),
			newRule("in plain", inRange(destination, encrypted), notTo(wireGuardName), drop()),
			newRule("all others", notrack()),
		}},
		{"output", nftables.ChainTypeFilter, nftables.ChainHookOutput, nftables.ChainPriorityRaw, []rule{
			newRule("networks of ours, to any host", ofNetwork(port), goTo("sent")),
		}},
		{"members", "", nil, nil, []rule{
			newRule("made on this host", from("lo"), drop()),
			newRule("a host of the cluster", fromMember(unix.NFPROTO_IPV4, source.in4, 4, members4), accept()),
			newRule("in plain", inRange(source, encrypted), notFrom(wireGuardName), drop()),
			newRule("a host of the cluster", fromMember(unix.NFPROTO_IPV6, source.in6, 16, members6), accept()),
			newRule("anybody else", drop()),
		}},
		{"input", nftables.ChainTypeFilter, nftables.ChainHookInput, nftables.ChainPriorityRaw, []rule{
			newRule("networks of ours", toNetwork(), goTo("members")),
			newRule("nothing else is encrypted", from(wireGuardName), drop()),
		}},
		{"forward", nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityRaw, []rule{
			newRule("this host's own end", from(wireGuardName), drop()),
			newRule("this host's own end", to(wireGuardName), drop()),
		}},
	}
}
