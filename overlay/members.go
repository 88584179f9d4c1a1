package overlay

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/google/nftables"

	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/topology"
)

// A VXLAN device believes every sender, so the host's firewall looks at who sends
// to one of our networks:
//
//	table inet particle-vxlan
//	  set networks   UDP port . VNI, with the network's id and this host's tunnel address as a comment
//	  set ports      UDP ports at which hosts of the cluster take VXLAN, this one's too
//	  set own4       those tunnel addresses of this host
//	  set own6
//	  set members4   tunnel addresses of the cluster's other hosts
//	  set members6
//	  chain prerouting           UDP to one of ports: goto passing
//	  chain passing              by a bridge: jump to bridged;
//	                             of the VNI of one of networks, or to members4 or members6: no connection tracking
//	  chain bridged              from own4, own6: drop;  not to the bridge itself, from members4 or
//	                             members6, whom this host reaches by another link: drop
//	  chain output               UDP to one of ports, of the VNI of one of networks: goto sent
//	  chain sent                 IPv4: no connection tracking;
//	                             from or to WireGuardRange, by another link: drop;  no connection tracking
//	  chain input                UDP to one of networks: goto members;  by WireGuard: drop;
//	                             other UDP to this host's port: goto others
//	  chain others               with a VNI: accept;  drop
//	  chain members              by lo: drop;  from members4 to own4: accept;
//	                             from WireGuardRange, by another link: drop;  from members6 to own6: accept;  drop
//	  chain forward              to or from WireGuard: drop
//
// Other people's VXLAN, such as Docker Swarm's, has other VNIs and passes, by the
// same port, too. At input a packet of IPv4 is whole, whatever pieces it came in; one of
// IPv6 need not be, where the host tracks no connections of it. The first piece may
// end before the VNI then: whatever it is of, it is not let in. The later ones do not
// tell their port, and come to nothing without it.
//
// That connections are not tracked saves a tenth of the packet rate, and it
// protects the other hosts: what a container of any other network of Docker's
// sends to them is not rewritten to come from this host, which they believe. They
// have networks that this one does not know, so whatever is for their tunnel addresses
// is left as it is, also by a host that has no networks itself; and packets to other
// addresses that they have, which this host cannot know either, they do not take.
//
// A container with raw sockets, which Docker gives to all, may send under a host's
// address, to this host or by it to another. It is behind a bridge. Other hosts may be
// behind one, too: they are reached by it, or send to the tunnel address that it has,
// and are not to suffer where this host's answers go by another link.
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
	receivers map[receiver]listener
	members   map[netip.Addr]bool
	ports     map[uint16]bool
	own       map[netip.Addr]bool // at which receivers listen
}

func (a admission) equals(b admission) bool {
	return maps.Equal(a.receivers, b.receivers) && maps.Equal(a.members, b.members) && maps.Equal(a.ports, b.ports) && maps.Equal(a.own, b.own)
}

// listener is the network that a receiver is of, and the tunnel address that it has
// on this host; earlier versions did not note that.
type listener struct {
	id string
	at netip.Addr
}

func listenerOf(seg topology.Segment) listener { return listener{string(seg.Network), seg.VTEP} }

// parseListener reads what String writes.
func parseListener(s string) listener {
	id, at, _ := strings.Cut(s, " at ")
	addr, _ := netip.ParseAddr(at)
	return listener{id, addr}
}

func (l listener) String() string {
	if !l.at.IsValid() {
		return l.id
	}
	return l.id + " at " + l.at.String()
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
		there := len(h.filter.have.receivers)+len(h.filter.have.members) > 0
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
	return membersError(op, set(all))
}

// ensureMembers makes the table hold those that are wanted.
func (h *Host) ensureMembers() error {
	_, err := h.ensureFilter(func(map[receiver]listener) {})
	if err == nil && !h.surveyed.when.IsZero() { // there are uplinks, whose containers are kept from the ports
		_, err = h.ensureHostRules()
	}
	return err
}

// RepairMembers makes the table hold those that SetMembers has said, or that are there,
// whatever else has changed it. Apply does likewise, but a host without networks has
// something to guard, too: what its containers send to others.
func (h *Host) RepairMembers(ctx context.Context) (changed bool, err error) {
	release, err := h.write(ctx)
	if err != nil {
		return false, err
	}
	defer release()
	if h.recent() {
		return false, nil
	}
	changed, err = h.ensureFilter(func(map[receiver]listener) {})
	return changed, membersError("repair members of the cluster", err)
}

func membersError(op string, err error) error {
	if err == nil {
		return nil
	}
	return &fault.Error{Op: op, Err: err, Fix: "run `nft list table inet " + filterTable + "` on this host"}
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
	l, r := listenerOf(seg), receiverOf(seg)
	if !hears(seg) {
		return h.forgetReceiver(seg.Network)
	}
	if h.recent() && h.filter.have.receivers[r] == l {
		return false, nil
	}
	return h.ensureFilter(func(all map[receiver]listener) {
		maps.DeleteFunc(all, func(other receiver, of listener) bool { return of.id == l.id && other != r })
		if all[r].id == "" || all[r].id == l.id {
			all[r] = l
		}
	})
}

// ensureReceiverOwned names the network, which has its device by now, in place of
// one that is gone and was forgotten.
func (h *Host) ensureReceiverOwned(seg topology.Segment) (changed bool, err error) {
	l, r := listenerOf(seg), receiverOf(seg)
	if h.filter.have.receivers[r] == l {
		return false, nil
	}
	return h.ensureFilter(func(all map[receiver]listener) { all[r] = l })
}

// locate notes the tunnel address of networks that are there from an earlier version.
func locate(all map[receiver]listener, at netip.Addr) {
	for r, l := range all {
		if !l.at.IsValid() {
			all[r] = listener{l.id, at}
		}
	}
}

// forgetReceiver takes a network out of the filter.
func (h *Host) forgetReceiver(id topology.NetworkID) (changed bool, err error) {
	if h.recent() && !slices.ContainsFunc(slices.Collect(maps.Values(h.filter.have.receivers)), func(l listener) bool { return l.id == string(id) }) {
		return false, nil
	}
	return h.ensureFilter(func(all map[receiver]listener) {
		maps.DeleteFunc(all, func(_ receiver, l listener) bool { return l.id == string(id) })
	})
}

// recent says whether what was seen of the table is taken for granted.
func (h *Host) recent() bool {
	return !h.filter.seen.IsZero() && time.Since(h.filter.seen) < h.opts.AcceptEvery
}

// ensureFilter makes the table hold the members and, after edit, the receivers.
func (h *Host) ensureFilter(edit func(map[receiver]listener)) (changed bool, err error) {
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
		if sound {
			h.filter.seen = time.Now()
		}
	}
	have, want := h.filter.have, h.admission(edit)
	if !sound && len(want.receivers)+len(want.members) == 0 && !h.tunnels.guarded {
		return false, nil // a host that is alone, without WireGuard, has nothing to guard
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

// admission is what the table is to hold after edit.
func (h *Host) admission(edit func(map[receiver]listener)) admission {
	have := h.filter.have
	want := admission{map[receiver]listener{}, map[netip.Addr]bool{}, map[uint16]bool{h.opts.Port: true}, map[netip.Addr]bool{}}
	maps.Copy(want.receivers, have.receivers)
	edit(want.receivers)
	for _, l := range want.receivers {
		if l.at.IsValid() {
			want.own[l.at] = true
		}
	}
	if w := h.filter.wanted; w != nil {
		want.add(*w)
	} else {
		want.add(have)
	}
	return want
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
	h.filter.have = have
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
