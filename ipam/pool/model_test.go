package pool_test

import (
	"errors"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/particle-net/particle/ipam/pool"
)

// model is the same allocator written without regard to cost: it keeps lists
// and searches them.
type model struct {
	takeable, given []netip.Addr // what Take and Any may hold, ascending
	inUse, waiting  []netip.Addr // waiting: oldest release first
}

// universe lists the addresses of a prefix and one on either side of it.
func universe(p netip.Prefix) []netip.Addr {
	out := []netip.Addr{p.Addr().Prev()}
	a := p.Addr()
	for ; p.Contains(a); a = a.Next() {
		out = append(out, a)
	}
	return append(out, a)
}

func newModel(subnet, ipRange netip.Prefix) *model {
	m := &model{}
	all := universe(subnet)
	all = all[1 : len(all)-1]
	if len(all) > 2 && subnet.Addr().Is4() {
		all = all[1 : len(all)-1]
	} else if len(all) > 2 {
		all = all[1:]
	}
	m.takeable = all
	for _, a := range all {
		if ipRange.Contains(a) {
			m.given = append(m.given, a)
		}
	}
	return m
}

func (m *model) hold(a netip.Addr) {
	m.inUse = append(m.inUse, a)
	m.waiting = slices.DeleteFunc(m.waiting, func(w netip.Addr) bool { return w == a })
}

func (m *model) any() (netip.Addr, error) {
	for _, a := range m.given {
		if !slices.Contains(m.inUse, a) && !slices.Contains(m.waiting, a) {
			m.hold(a)
			return a, nil
		}
	}
	if len(m.waiting) > 0 {
		a := m.waiting[0]
		m.hold(a)
		return a, nil
	}
	return netip.Addr{}, pool.ErrExhausted
}

func (m *model) take(a netip.Addr, subnet netip.Prefix) error {
	switch {
	case !subnet.Contains(a):
		return pool.ErrOutside
	case !slices.Contains(m.takeable, a):
		return pool.ErrReserved
	case slices.Contains(m.inUse, a):
		return pool.ErrTaken
	}
	m.hold(a)
	return nil
}

func (m *model) release(a netip.Addr) bool {
	i := slices.Index(m.inUse, a)
	if i < 0 {
		return false
	}
	m.inUse = slices.Delete(m.inUse, i, i+1)
	if slices.Contains(m.given, a) {
		m.waiting = append(m.waiting, a)
	}
	return true
}

func (m *model) free() int64 {
	n := int64(len(m.given))
	for _, a := range m.inUse {
		if slices.Contains(m.given, a) {
			n--
		}
	}
	return n
}

// restart is the operation that snapshots and restores. It is rare: it brings
// the queue of released addresses in order, whose disorder is to be tested.
const restart = 255

func kindOf(op byte) byte {
	if op == restart {
		return restart
	}
	return op % 5
}

// walk applies operations to a pool and to the model and compares every
// answer. Each operation is two bytes: what, and which address.
func walk(t *testing.T, subnet, ipRange netip.Prefix, ops []byte) {
	t.Helper()
	p, err := pool.New(pool.Config{Subnet: subnet, Range: ipRange})
	if err != nil {
		t.Fatal(err)
	}
	m, all := newModel(subnet, ipRange), universe(subnet)
	for i := 0; i+1 < len(ops); i += 2 {
		a := all[int(ops[i+1])%len(all)]
		switch kindOf(ops[i]) {
		case 0, 1:
			got, err := p.Any()
			want, wantErr := m.any()
			if got != want || !errors.Is(err, wantErr) {
				t.Fatalf("operation %d: Any() = %s, %v, want %s, %v", i/2, got, err, want, wantErr)
			}
		case 2:
			if err, want := p.Take(a), m.take(a, subnet); !errors.Is(err, want) {
				t.Fatalf("operation %d: Take(%s) = %v, want %v", i/2, a, err, want)
			}
		case restart:
			inUse, released := p.Snapshot()
			if !slices.Equal(released, m.waiting) || len(inUse) != len(m.inUse) {
				t.Fatalf("operation %d: Snapshot() = %v, %v, want %v, %v", i/2, inUse, released, m.inUse, m.waiting)
			}
			if err := p.Restore(inUse, released); err != nil {
				t.Fatalf("operation %d: Restore of a snapshot: %v", i/2, err)
			}
		default:
			if got, want := p.Release(a), m.release(a); got != want {
				t.Fatalf("operation %d: Release(%s) = %t, want %t", i/2, a, got, want)
			}
		}
		if p.Used() != len(m.inUse) || p.Free().Int64() != m.free() {
			t.Fatalf("operation %d: Used %d, Free %s, want %d, %d", i/2, p.Used(), p.Free(), len(m.inUse), m.free())
		}
		for _, a := range all {
			if p.Held(a) != slices.Contains(m.inUse, a) {
				t.Fatalf("operation %d: Held(%s) = %t", i/2, a, p.Held(a))
			}
		}
	}
}

// ground lists pools small enough for the model: those whose ends matter.
func ground() [][2]netip.Prefix {
	var out [][2]netip.Prefix
	for _, c := range [][2]string{
		{"10.9.0.0/28", "10.9.0.0/28"}, {"10.9.0.0/28", "10.9.0.8/29"}, {"10.9.0.0/28", "10.9.0.4/30"},
		{"10.9.0.0/30", "10.9.0.0/30"}, {"10.9.0.0/31", "10.9.0.0/31"}, {"10.9.0.4/32", "10.9.0.4/32"},
		{"fd00::10/124", "fd00::10/124"}, {"fd00::10/124", "fd00::18/126"}, {"fd00::2/127", "fd00::2/127"},
	} {
		out = append(out, [2]netip.Prefix{netip.MustParsePrefix(c[0]), netip.MustParsePrefix(c[1])})
	}
	return out
}

func TestPoolEqualsModel(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	for _, g := range ground() {
		for range 20 {
			ops := make([]byte, 2*1000)
			for i := range ops {
				ops[i] = byte(random.Uint32())
			}
			walk(t, g[0], g[1], ops)
		}
	}
}

// Every sequence of a few operations on the smallest pools, not a sample.
func TestPoolEqualsModelExhaustively(t *testing.T) {
	kinds := []byte{0, 2, 3, restart} // Any, Take, Release, Snapshot and Restore
	for _, g := range ground()[3:6] {
		n := len(universe(g[0]))
		var every []byte
		for _, k := range kinds {
			for a := range n {
				if every = append(every, k, byte(a)); k == 0 || k == restart {
					break // the address means nothing to these
				}
			}
		}
		const length = 4
		count := len(every) / 2
		total := 1
		for range length {
			total *= count
		}
		ops := make([]byte, 2*length)
		for i := range total {
			for at, left := 0, i; at < length; at, left = at+1, left/count {
				copy(ops[2*at:], every[2*(left%count):2*(left%count)+2])
			}
			walk(t, g[0], g[1], ops)
		}
	}
}

func FuzzPool(f *testing.F) {
	f.Add(byte(0), []byte{0, 0, 2, 3, 3, 3, restart, 0, 0, 0})
	f.Add(byte(4), []byte{0, 0, 0, 0, 0, 0, 3, 1, 2, 1, 3, 1, 0, 0})
	pools := ground()
	f.Fuzz(func(t *testing.T, which byte, ops []byte) {
		g := pools[int(which)%len(pools)]
		walk(t, g[0], g[1], ops)
	})
}
