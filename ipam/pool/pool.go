package pool

import (
	"errors"
	"fmt"
	"math/big"
	"net/netip"
	"slices"

	"github.com/particle-net/particle/internal/fault"
)

// Config says which addresses a pool manages. Host bits are ignored, as Docker
// ignores them in --subnet and --ip-range.
type Config struct {
	Subnet netip.Prefix // every address Take may hold
	Range  netip.Prefix // what Any hands out, inside Subnet; zero means all of it
	Blocks bool         // Any hands out nothing but what Extend adds; Range is not used
}

// Pool is the set of addresses of one subnet. It is not safe for concurrent
// use: the caller locks.
type Pool struct {
	cfg            Config
	network, bcast netip.Addr // reserved; invalid where the subnet has none

	extents map[netip.Prefix]*extent // what Any hands out, by prefix
	lengths []int                    // prefix lengths that occur in extents: one, as a rule
	order   []*extent                // as they came
	next    int                      // of order: all before it have no fresh address left
	size    *big.Int                 // addresses of all extents

	turn    map[netip.Addr]uint64 // held or waiting addresses; see held
	queue   []ticket              // waiting addresses, oldest first, with stale entries among them
	head    int                   // of queue
	serial  uint64                // number of the last ticket
	waiting int                   // live entries of queue
	inRange int                   // held addresses in extents
}

// held is the turn of an address in use. Every other number is that of the
// ticket with which the address waits.
const held uint64 = 0

// A ticket is a place in the queue of waiting addresses. It is stale if the
// address has another turn by now: someone took the address by name.
type ticket struct {
	addr   netip.Addr
	number uint64
}

// New returns a pool with every address fresh, or ErrConfig if the subnet is
// not one, or the range lies outside it or holds no address to hand out.
func New(cfg Config) (*Pool, error) {
	if !cfg.Subnet.IsValid() || cfg.Subnet.Addr().Is4In6() {
		return nil, refuse("open address pool", cfg.Subnet.String(), fmt.Errorf("%w: no IPv4 or IPv6 subnet", ErrConfig))
	}
	if cfg.Blocks || cfg.Range == (netip.Prefix{}) {
		cfg.Range = cfg.Subnet
	}
	p := &Pool{cfg: Config{Subnet: cfg.Subnet.Masked(), Range: cfg.Range.Masked(), Blocks: cfg.Blocks}}
	sub, rng := p.cfg.Subnet, p.cfg.Range
	if !rng.IsValid() || rng.Bits() < sub.Bits() || !sub.Contains(rng.Addr()) {
		return nil, refuse("open address pool", sub.String(), fmt.Errorf("%w: range %s is not inside the subnet", ErrConfig, cfg.Range))
	}
	p.network, p.bcast = ends(sub)
	p.extents, p.size, p.turn = map[netip.Prefix]*extent{}, new(big.Int), map[netip.Addr]uint64{}
	if cfg.Blocks {
		return p, nil
	}
	if e := p.extend(rng); e.size.Sign() <= 0 {
		return nil, refuse("open address pool", sub.String(), fmt.Errorf("%w: range %s holds reserved addresses only", ErrConfig, rng))
	}
	return p, nil
}

func (p *Pool) clear() {
	p.turn, p.next = map[netip.Addr]uint64{}, 0
	p.queue, p.head, p.serial, p.waiting, p.inRange = nil, 0, 0, 0, 0
	for _, e := range p.order {
		e.rewind()
	}
}

// Config is what the pool manages: host bits cleared, Range always set.
func (p *Pool) Config() Config { return p.cfg }

// maxWaiting is how many released addresses wait while fresh ones are left. It
// bounds what a pool remembers: a /64 would never run out of fresh ones.
const maxWaiting = 1 << 16

// Any holds the next address of the range and returns it: fresh ones in
// ascending order, then the one released longest ago, which also goes first
// once 65,536 wait. ErrExhausted if all are held.
func (p *Pool) Any() (netip.Addr, error) {
	sources := []func() (netip.Addr, bool){p.fresh, p.oldest}
	if p.waiting >= maxWaiting {
		slices.Reverse(sources)
	}
	for _, source := range sources {
		if addr, ok := source(); ok {
			p.hold(addr)
			return addr, nil
		}
	}
	return netip.Addr{}, refuse("allocate address", p.cfg.Range.String(), p.exhausted())
}

// fresh gives the next address that was never used, and moves past it.
func (p *Pool) fresh() (netip.Addr, bool) {
	for ; p.next < len(p.order); p.next++ {
		for e := p.order[p.next]; e.mark.IsValid(); {
			addr := e.mark
			e.step()
			if _, used := p.turn[addr]; !used {
				return addr, true
			}
		}
	}
	return netip.Addr{}, false
}

// oldest gives the address released longest ago, and takes it off the queue.
func (p *Pool) oldest() (netip.Addr, bool) {
	for p.head < len(p.queue) {
		t := p.queue[p.head]
		p.head++
		if p.turn[t.addr] == t.number { // tickets count from 1, so a held address never matches
			return t.addr, true
		}
	}
	return netip.Addr{}, false
}

// Take holds the given address, which may lie outside the range but not
// outside the subnet. It fails with ErrOutside, ErrReserved or ErrTaken.
func (p *Pool) Take(addr netip.Addr) error {
	switch {
	case !p.cfg.Subnet.Contains(addr):
		return refuse("reserve address", addr.String(), fmt.Errorf("%w %s", ErrOutside, p.cfg.Subnet))
	case p.reserved(addr):
		return refuse("reserve address", addr.String(), ErrReserved)
	case p.ofHost(addr):
		return &fault.Error{Op: "reserve address", On: addr.String(), Err: ErrReserved, Fix: "choose another --ip: the first address of each block is its host's own"}
	case p.Held(addr):
		return refuse("reserve address", addr.String(), ErrTaken)
	}
	p.hold(addr)
	return nil
}

// hold marks a free address as held.
func (p *Pool) hold(addr netip.Addr) {
	if p.turn[addr] != held {
		p.waiting--
	}
	p.turn[addr] = held
	if e := p.extentOf(addr); e != nil {
		e.used++
		p.inRange++
	}
}

// Release gives an address back. It reports false, and changes nothing, if the
// address was not held.
func (p *Pool) Release(addr netip.Addr) bool {
	if !p.Held(addr) {
		return false
	}
	e := p.extentOf(addr)
	if e == nil {
		delete(p.turn, addr) // Any never gives it, so nothing waits for its turn
		return true
	}
	e.used--
	p.inRange--
	p.enqueue(addr)
	return true
}

// enqueue puts an address of the range at the end of the queue.
func (p *Pool) enqueue(addr netip.Addr) {
	p.serial++
	p.waiting++
	p.turn[addr] = p.serial
	p.queue = append(p.queue, ticket{addr, p.serial})
	p.compact()
}

// compact drops stale and spent queue entries once they outnumber the live
// ones, so that taking and releasing the same address for ever needs no memory.
// The slack keeps short queues from being rewritten at every release.
func (p *Pool) compact() {
	const slack = 64
	if len(p.queue) <= 2*p.waiting+slack {
		return
	}
	live := p.queue[:0]
	for _, t := range p.queue[p.head:] {
		if p.turn[t.addr] == t.number {
			live = append(live, t)
		}
	}
	p.queue, p.head = slices.Clip(live), 0 // the next append moves it, and a queue that once was long goes
}

// Held reports whether the address is in use.
func (p *Pool) Held(addr netip.Addr) bool {
	turn, known := p.turn[addr]
	return known && turn == held
}

// exhausted is the cause when Any has nothing to give.
func (p *Pool) exhausted() error {
	if p.cfg.Blocks {
		return ErrNoBlock
	}
	return ErrExhausted
}

// Used is how many addresses are held, those outside the range included.
func (p *Pool) Used() int { return len(p.turn) - p.waiting }

// Free is how many addresses Any can still give.
func (p *Pool) Free() *big.Int {
	return new(big.Int).Sub(p.size, big.NewInt(int64(p.inRange)))
}

// Snapshot is what Restore needs: the held addresses in ascending order, and
// the waiting ones, oldest release first.
func (p *Pool) Snapshot() (inUse, released []netip.Addr) {
	for addr, turn := range p.turn {
		if turn == held {
			inUse = append(inUse, addr)
		}
	}
	slices.SortFunc(inUse, netip.Addr.Compare)
	for _, t := range p.queue[p.head:] {
		if p.turn[t.addr] == t.number {
			released = append(released, t.addr)
		}
	}
	return inUse, released
}

// Restore replaces the pool's state after a restart: the addresses in use, and
// the released ones in the order of their release as far as it is known. An
// address in neither list counts as fresh; one in both, as in use. Released
// addresses out of range are left out. Addresses in use which the pool cannot
// hold are left out too, and reported together.
func (p *Pool) Restore(inUse, released []netip.Addr) error {
	p.clear()
	var refused []error
	for _, addr := range inUse {
		if p.ofHost(addr) && !p.Held(addr) {
			p.hold(addr) // before it was one of a block
			continue
		}
		if err := p.Take(addr); err != nil && !errors.Is(err, ErrTaken) {
			refused = append(refused, err)
		}
	}
	for _, addr := range released {
		if _, known := p.turn[addr]; !known && p.extentOf(addr) != nil {
			p.enqueue(addr)
		}
	}
	return errors.Join(refused...)
}

func (p *Pool) reserved(addr netip.Addr) bool {
	return addr == p.network || addr == p.bcast
}

// ends tells the addresses of a subnet that no endpoint may own. IPv4: network
// and broadcast address, except on /31 links (RFC 3021) and /32. IPv6: the
// subnet-router anycast address (RFC 4291 section 2.6.1), except on /127 links
// (RFC 6164) and /128.
func ends(sub netip.Prefix) (network, bcast netip.Addr) {
	switch {
	case sub.Bits() >= sub.Addr().BitLen()-1:
		return netip.Addr{}, netip.Addr{}
	case sub.Addr().Is4():
		return sub.Addr(), last(sub)
	default:
		return sub.Addr(), netip.Addr{}
	}
}
