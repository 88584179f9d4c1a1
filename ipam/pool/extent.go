package pool

import (
	"fmt"
	"math/big"
	"net/netip"
	"slices"
)

// extent is one range of addresses that Any hands out.
type extent struct {
	prefix      netip.Prefix
	first, last netip.Addr // without reserved addresses; first is past last if there are no others
	size        *big.Int   // addresses from first to last
	mark        netip.Addr // lowest address Any has not looked at; invalid beyond last
	used        int        // held addresses from first to last
}

// step moves the mark on by one.
func (e *extent) step() {
	if e.mark == e.last {
		e.mark = netip.Addr{} // not Next: it may be in the subnet still, and past the range
		return
	}
	e.mark = e.mark.Next()
}

// rewind makes all its addresses fresh.
func (e *extent) rewind() {
	e.mark, e.used = e.first, 0
	if e.size.Sign() <= 0 {
		e.mark = netip.Addr{}
	}
}

// Block is a range added by Extend.
type Block struct {
	Prefix netip.Prefix
	Used   int      // addresses held
	Free   *big.Int // addresses that Any can still give of it
}

// Extend lets Any hand out the addresses of a block as well. Those of its
// addresses that are held already stay so. One that is there already is success;
// one outside the subnet, or overlapping another, is ErrConfig. It costs as much
// as there are addresses on record.
func (p *Pool) Extend(block netip.Prefix) error {
	block = block.Masked()
	if p.extents[block] != nil {
		return nil
	}
	if !block.IsValid() || block.Bits() < p.cfg.Subnet.Bits() || !p.cfg.Subnet.Contains(block.Addr()) {
		return refuse("add block to address pool", p.cfg.Subnet.String(), fmt.Errorf("%w: block %s is not inside the subnet", ErrConfig, block))
	}
	for _, e := range p.order {
		if e.prefix.Overlaps(block) {
			return refuse("add block to address pool", p.cfg.Subnet.String(), fmt.Errorf("%w: block %s overlaps %s", ErrConfig, block, e.prefix))
		}
	}
	e := p.extend(block)
	for addr := range p.turn { // none of them waits: what is in no extent is held, or not known
		if e.holds(addr) {
			e.used++
			p.inRange++
		}
	}
	return nil
}

// extend enters a new extent of which no address is on record.
func (p *Pool) extend(prefix netip.Prefix) *extent {
	e := &extent{prefix: prefix, first: prefix.Addr(), last: last(prefix)}
	if p.reserved(e.first) || p.cfg.Blocks && hostsOwn(prefix) == e.first {
		e.first = e.first.Next()
	}
	if p.reserved(e.last) {
		e.last = e.last.Prev()
	}
	e.size = new(big.Int).SetBytes(e.last.AsSlice())
	e.size.Sub(e.size, new(big.Int).SetBytes(e.first.AsSlice())).Add(e.size, big.NewInt(1))
	if e.size.Sign() < 0 {
		e.size.SetInt64(0) // one address, and reserved: both ends have passed each other
	}
	e.rewind()
	p.size.Add(p.size, e.size)
	p.extents[prefix] = e
	p.order = append(p.order, e)
	if !slices.Contains(p.lengths, prefix.Bits()) {
		p.lengths = append(p.lengths, prefix.Bits())
	}
	return e
}

// Withdraw is the reverse of Extend: Any gives nothing more of the block. What
// is held stays held until its release; what waits is forgotten. It reports
// false if there is no such block. It costs as much as there are addresses on
// record.
func (p *Pool) Withdraw(block netip.Prefix) bool {
	e := p.extents[block.Masked()]
	if e == nil {
		return false
	}
	for addr, turn := range p.turn {
		if turn != held && e.holds(addr) {
			delete(p.turn, addr) // its queue entry is stale now
			p.waiting--
		}
	}
	p.inRange -= e.used
	p.size.Sub(p.size, e.size)
	delete(p.extents, e.prefix)
	i := slices.Index(p.order, e)
	p.order = slices.Delete(p.order, i, i+1)
	if p.next > i {
		p.next--
	}
	p.lengths = nil
	for _, left := range p.order {
		if !slices.Contains(p.lengths, left.prefix.Bits()) {
			p.lengths = append(p.lengths, left.prefix.Bits())
		}
	}
	p.compact()
	return true
}

// Blocks lists what Any hands out, in the order in which it was added.
func (p *Pool) Blocks() []Block {
	all := make([]Block, len(p.order))
	for i, e := range p.order {
		all[i] = Block{e.prefix, e.used, new(big.Int).Sub(e.size, big.NewInt(int64(e.used)))}
	}
	return all
}

// HandsOut reports whether the address is one of those that Any gives.
func (p *Pool) HandsOut(addr netip.Addr) bool { return p.extentOf(addr) != nil }

// lowest is how many free addresses a burst is to find until another block is
// there, if they are not more than half of a block.
const lowest = 16

// Low reports whether it is time to add another block: Any can give no more than
// a quarter of what the block added last holds, and of a small one no more than
// 16 addresses or half of it.
func (p *Pool) Low() bool {
	if len(p.order) == 0 {
		return true
	}
	last := p.order[len(p.order)-1].size
	if !p.size.IsInt64() || !last.IsInt64() {
		return false // held addresses are counted in an int, and are far fewer
	}
	mark := max(last.Int64()/4, min(lowest, last.Int64()/2))
	return p.size.Int64()-int64(p.inRange) <= mark
}

// extentOf is the extent from which Any may give the address, nil if none.
func (p *Pool) extentOf(addr netip.Addr) *extent {
	if p.reserved(addr) {
		return nil
	}
	for _, bits := range p.lengths {
		prefix, err := addr.Prefix(bits)
		if err != nil {
			continue // of the other family
		}
		if e := p.extents[prefix]; e != nil && e.holds(addr) {
			return e
		}
	}
	return nil
}

// ofHost reports whether the address is that of the host which has its block.
func (p *Pool) ofHost(addr netip.Addr) bool {
	for _, bits := range p.lengths {
		if block, err := addr.Prefix(bits); err == nil && p.cfg.Blocks && p.extents[block] != nil && hostsOwn(block) == addr {
			return true
		}
	}
	return false
}

// hostsOwn is the address of a block that is the host's itself, and no
// container's: the first one. What the tenant namespace sends by itself has it as
// its source.
func hostsOwn(block netip.Prefix) netip.Addr {
	if block.IsSingleIP() {
		return netip.Addr{}
	}
	return block.Addr()
}

// holds reports whether the extent hands out the address.
func (e *extent) holds(addr netip.Addr) bool {
	return e.first.Compare(addr) <= 0 && addr.Compare(e.last) <= 0
}
