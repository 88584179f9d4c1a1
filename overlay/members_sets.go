package overlay

import (
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// names of the sets in filterTable
const (
	networks = "networks"
	ports    = "ports"
	own4     = "own4"
	own6     = "own6"
	members4 = "members4"
	members6 = "members6"
)

// sets are those of filterTable.
type sets struct {
	networks, ports, own4, own6, members4, members6 *nftables.Set
}

func (s sets) all() []*nftables.Set {
	return []*nftables.Set{s.networks, s.ports, s.own4, s.own6, s.members4, s.members6}
}

func newSets() sets {
	in := table(filterTable)
	// nft has no type of three bytes. It prints them as if they were four, in the
	// host's order.
	key, _ := nftables.ConcatSetType(nftables.TypeInetService, nftables.TypeMark) // only five types do not fit
	// An ID tells the sets of one transaction apart. The library would count them in
	// a variable that it shares, unguarded, between all its connections.
	return sets{
		networks: &nftables.Set{Table: in, ID: 1, Name: networks, KeyType: key, Concatenation: true},
		members4: &nftables.Set{Table: in, ID: 2, Name: members4, KeyType: nftables.TypeIPAddr},
		members6: &nftables.Set{Table: in, ID: 3, Name: members6, KeyType: nftables.TypeIP6Addr},
		ports:    &nftables.Set{Table: in, ID: 4, Name: ports, KeyType: nftables.TypeInetService},
		own4:     &nftables.Set{Table: in, ID: 5, Name: own4, KeyType: nftables.TypeIPAddr},
		own6:     &nftables.Set{Table: in, ID: 6, Name: own6, KeyType: nftables.TypeIP6Addr},
	}
}

// create puts the table down anew, with its sets empty.
func (s sets) create(conn *nftables.Conn, port uint16) error {
	conn.AddTable(table(filterTable))
	conn.DelTable(table(filterTable)) // what is there, or the one just added
	conn.AddTable(table(filterTable))
	var errs []error
	for _, set := range s.all() {
		errs = append(errs, conn.AddSet(set, nil))
	}
	fill(conn, table(filterTable), filterRules(port))
	return errors.Join(errs...)
}

// read tells what the kernel's sets hold. One that is not there is of no use, but for
// those which earlier versions did not have.
func (s sets) read(conn *nftables.Conn) (have admission, err error) {
	have = admission{map[receiver]listener{}, map[netip.Addr]bool{}, map[uint16]bool{}, map[netip.Addr]bool{}}
	young := []*nftables.Set{s.ports, s.own4, s.own6}
	for _, set := range s.all() {
		elements, err := conn.GetSetElements(set)
		if err != nil && !(slices.Contains(young, set) && errors.Is(err, unix.ENOENT)) {
			return have, fmt.Errorf("list nftables set %s: %w", set.Name, err)
		}
		for _, e := range elements {
			switch set {
			case s.networks:
				have.receivers[receiver(e.Key)] = parseListener(e.Comment)
			case s.ports:
				have.ports[binary.BigEndian.Uint16(e.Key)] = true
			case s.own4, s.own6:
				have.own[address(e.Key)] = true
			default:
				have.members[address(e.Key)] = true
			}
		}
	}
	return have, nil
}

const (
	// atOnce is how many elements one message takes: a list of them is an
	// attribute, and those end at 64 KB.
	atOnce = 500
	// perCommit is how many one transaction takes, which is one send.
	perCommit = 2000
)

// update puts down what leads from have to want.
func (s sets) update(conn *nftables.Conn, have, want admission) (changed bool, err error) {
	come, leave := map[*nftables.Set][]nftables.SetElement{}, map[*nftables.Set][]nftables.SetElement{}
	for r, l := range have.receivers {
		if want.receivers[r] != l {
			leave[s.networks] = append(leave[s.networks], nftables.SetElement{Key: r[:]})
		}
	}
	for r, l := range want.receivers {
		if have.receivers[r] != l {
			come[s.networks] = append(come[s.networks], nftables.SetElement{Key: r[:], Comment: l.String()})
		}
	}
	for set, key := range s.lacking(want, have) {
		leave[set] = append(leave[set], nftables.SetElement{Key: key})
	}
	for set, key := range s.lacking(have, want) {
		come[set] = append(come[set], nftables.SetElement{Key: key})
	}
	err = errors.Join(inParts(conn, leave, conn.SetDeleteElements), inParts(conn, come, conn.SetAddElements))
	return len(come)+len(leave) > 0, err
}

// lacking are the addresses and ports that b has and a does not, each with its set.
func (s sets) lacking(a, b admission) iter.Seq2[*nftables.Set, []byte] {
	return func(yield func(*nftables.Set, []byte) bool) {
		for p := range b.ports {
			if !a.ports[p] && !yield(s.ports, binary.BigEndian.AppendUint16(nil, p)) {
				return
			}
		}
		for _, of := range []struct {
			in4, in6 *nftables.Set
			a, b     map[netip.Addr]bool
		}{{s.own4, s.own6, a.own, b.own}, {s.members4, s.members6, a.members, b.members}} {
			for addr := range of.b {
				set := of.in4
				if addr.Is6() {
					set = of.in6
				}
				if !of.a[addr] && !yield(set, addr.AsSlice()) {
					return
				}
			}
		}
	}
}

func inParts(conn *nftables.Conn, of map[*nftables.Set][]nftables.SetElement, put func(*nftables.Set, []nftables.SetElement) error) error {
	var errs []error
	pending := 0
	for set, elements := range of {
		for part := range slices.Chunk(elements, atOnce) {
			errs = append(errs, put(set, part))
			if pending += len(part); pending >= perCommit {
				errs = append(errs, conn.Flush())
				pending = 0
			}
		}
	}
	return errors.Join(errs...)
}

// toNetwork matches UDP to a port and VNI of ours.
func toNetwork() []expr.Any {
	return append(udp(),
		toPort(),
		vni(),
		&expr.Lookup{SourceRegister: 1, SetName: networks},
	)
}

// toHosts matches UDP to a port of any host of the cluster.
func toHosts() []expr.Any {
	return append(udp(),
		toPort(),
		&expr.Lookup{SourceRegister: 1, SetName: ports},
	)
}

// withNetwork matches, of UDP, a VNI of ours, which networks has with this host's port.
func withNetwork(port uint16) []expr.Any {
	return []expr.Any{
		&expr.Immediate{Register: 1, Data: binary.BigEndian.AppendUint16(nil, port)},
		vni(),
		&expr.Lookup{SourceRegister: 1, SetName: networks},
	}
}

func udp() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_UDP}},
	}
}

// toPort has the destination port in register 1.
func toPort() expr.Any {
	return &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2}
}

// vni has the VNI behind it. It is at the fourth byte of the VXLAN header, which
// follows UDP's eight (RFC 7348 section 5).
func vni() expr.Any {
	const second = 9 // NFT_REG32_01: the four bytes after the first four of register 1
	return &expr.Payload{DestRegister: second, Base: expr.PayloadBaseTransportHeader, Offset: 12, Len: 3}
}

// inSet matches an address, of packets of the IP version, that is in a set.
func inSet(f field, proto byte, set string) []expr.Any {
	offset, size := f.in4, uint32(4)
	if proto == unix.NFPROTO_IPV6 {
		offset, size = f.in6, 16
	}
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size},
		&expr.Lookup{SourceRegister: 1, SetName: set},
	}
}

// jumpTo has another chain looked at, and comes back.
func jumpTo(chain string) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: chain}}
}

// goTo leaves the chain for another.
func goTo(chain string) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: expr.VerdictGoto, Chain: chain}}
}
