package pool_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/particle-net/particle/ipam/pool"
)

func blocks(t testing.TB, subnet string, list ...string) *pool.Pool {
	t.Helper()
	p, err := pool.New(pool.Config{Subnet: netip.MustParsePrefix(subnet), Blocks: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range list {
		if err := p.Extend(netip.MustParsePrefix(b)); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

// blockModel is the model of a pool of blocks: it keeps what is handed out in the
// order in which the blocks came.
type blockModel struct {
	model
	blocks []netip.Prefix
}

// hosts says whether the address is that of the host which has its block.
func (m *blockModel) hosts(a netip.Addr) bool {
	return slices.ContainsFunc(m.blocks, func(b netip.Prefix) bool { return a == b.Addr() && !b.IsSingleIP() })
}

func (m *blockModel) take(a netip.Addr, subnet netip.Prefix) error {
	if m.hosts(a) {
		return pool.ErrReserved
	}
	return m.model.take(a, subnet)
}

func (m *blockModel) cut() {
	m.given = nil
	for _, b := range m.blocks {
		for _, a := range m.takeable {
			if b.Contains(a) && !m.hosts(a) {
				m.given = append(m.given, a)
			}
		}
	}
	m.waiting = slices.DeleteFunc(m.waiting, func(a netip.Addr) bool { return !slices.Contains(m.given, a) })
}

func (m *blockModel) extend(b netip.Prefix) error {
	if slices.Contains(m.blocks, b) {
		return nil
	}
	if slices.ContainsFunc(m.blocks, b.Overlaps) {
		return pool.ErrConfig
	}
	m.blocks = append(m.blocks, b)
	m.cut()
	return nil
}

func (m *blockModel) withdraw(b netip.Prefix) bool {
	i := slices.Index(m.blocks, b)
	if i < 0 {
		return false
	}
	m.blocks = slices.Delete(m.blocks, i, i+1)
	m.cut()
	return true
}

// low is told in words: no more than a quarter of the last block is left in all,
// or than half of it where that is not more than 16.
func (m *blockModel) low() bool {
	if len(m.blocks) == 0 {
		return true
	}
	last := 0
	for _, a := range m.takeable {
		if m.blocks[len(m.blocks)-1].Contains(a) && !m.hosts(a) {
			last++
		}
	}
	if last/2 <= 16 {
		return m.free() <= int64(last/2)
	}
	return m.free() <= max(int64(last/4), 16)
}

func (m *blockModel) compare(t *testing.T, op int, p *pool.Pool) {
	t.Helper()
	if p.Used() != len(m.inUse) || p.Free().Int64() != m.free() || p.Low() != m.low() {
		t.Fatalf("operation %d: Used %d, Free %s, Low %t, want %d, %d, %t", op, p.Used(), p.Free(), p.Low(), len(m.inUse), m.free(), m.low())
	}
	for i, b := range p.Blocks() {
		used := 0
		for _, a := range m.inUse {
			if b.Prefix.Contains(a) && !m.hosts(a) {
				used++
			}
		}
		if len(p.Blocks()) != len(m.blocks) || b.Prefix != m.blocks[i] || b.Used != used {
			t.Fatalf("operation %d: block %d is %+v, want %s with %d used", op, i, b, m.blocks[i], used)
		}
	}
	inUse, waiting := p.Snapshot()
	slices.SortFunc(m.inUse, netip.Addr.Compare)
	if !slices.Equal(waiting, m.waiting) || !slices.Equal(inUse, m.inUse) {
		t.Fatalf("operation %d: in use %v, waiting %v, want %v, %v", op, inUse, waiting, m.inUse, m.waiting)
	}
	for _, a := range m.takeable {
		if p.HandsOut(a) != slices.Contains(m.given, a) {
			t.Fatalf("operation %d: HandsOut(%s) = %t", op, a, p.HandsOut(a))
		}
	}
}

// walkBlocks is walk for a pool whose blocks come and go.
func walkBlocks(t *testing.T, subnet netip.Prefix, cuts []netip.Prefix, ops []byte) {
	t.Helper()
	p := blocks(t, subnet.String())
	m := &blockModel{model: *newModel(subnet, netip.Prefix{})}
	all := universe(subnet)
	for i := 0; i+1 < len(ops); i += 2 {
		a, cut := all[int(ops[i+1])%len(all)], cuts[int(ops[i+1])%len(cuts)]
		switch op := ops[i] % 32; {
		case op < 12:
			got, err := p.Any()
			want, wantErr := m.any()
			if got != want || (err == nil) != (wantErr == nil) || err != nil && !errors.Is(err, pool.ErrNoBlock) {
				t.Fatalf("operation %d: Any() = %s, %v, want %s, %v", i/2, got, err, want, wantErr)
			}
		case op < 16:
			if err, want := p.Take(a), m.take(a, subnet); !errors.Is(err, want) {
				t.Fatalf("operation %d: Take(%s) = %v, want %v", i/2, a, err, want)
			}
		case op < 26:
			if got, want := p.Release(a), m.release(a); got != want {
				t.Fatalf("operation %d: Release(%s) = %t, want %t", i/2, a, got, want)
			}
		case op < 29:
			if err, want := p.Extend(cut), m.extend(cut); !errors.Is(err, want) {
				t.Fatalf("operation %d: Extend(%s) = %v, want %v", i/2, cut, err, want)
			}
		case op < 31:
			if got, want := p.Withdraw(cut), m.withdraw(cut); got != want {
				t.Fatalf("operation %d: Withdraw(%s) = %t, want %t", i/2, cut, got, want)
			}
		default:
			if err := p.Restore(p.Snapshot()); err != nil {
				t.Fatalf("operation %d: Restore of a snapshot: %v", i/2, err)
			}
		}
		m.compare(t, i/2, p)
	}
}

// cuts are blocks of one length, as hosts have them, and some that overlap them.
func cuts(texts ...string) []netip.Prefix {
	var all []netip.Prefix
	for _, s := range texts {
		all = append(all, netip.MustParsePrefix(s))
	}
	return all
}

func blockGround() map[netip.Prefix][]netip.Prefix {
	return map[netip.Prefix][]netip.Prefix{
		netip.MustParsePrefix("10.9.0.0/27"):  cuts("10.9.0.0/29", "10.9.0.8/29", "10.9.0.16/29", "10.9.0.24/29"),
		netip.MustParsePrefix("10.9.0.0/28"):  cuts("10.9.0.0/30", "10.9.0.4/30", "10.9.0.8/29", "10.9.0.8/30", "10.9.0.0/28", "10.9.0.15/32", "10.9.0.0/32"),
		netip.MustParsePrefix("fd00::20/123"): cuts("fd00::20/125", "fd00::28/125", "fd00::30/124", "fd00::20/128"),
	}
}

func TestBlocksEqualModel(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	for subnet, cuts := range blockGround() {
		for range 40 {
			ops := make([]byte, 2*500)
			for i := range ops {
				ops[i] = byte(random.Uint32())
			}
			walkBlocks(t, subnet, cuts, ops)
		}
	}
}

func FuzzBlocks(f *testing.F) {
	f.Add([]byte{26, 0, 0, 0, 26, 1, 0, 0, 29, 0, 16, 1, 0, 0})
	f.Fuzz(func(t *testing.T, ops []byte) {
		for subnet, cuts := range blockGround() {
			walkBlocks(t, subnet, cuts, ops)
		}
	})
}

func TestExtendRefuses(t *testing.T) {
	p := blocks(t, "10.9.0.0/24", "10.9.0.16/28")
	for _, b := range []string{"10.9.1.0/28", "10.9.0.0/23", "10.9.0.0/27", "10.9.0.20/30", "fd00::/112"} {
		if err := p.Extend(netip.MustParsePrefix(b)); !errors.Is(err, pool.ErrConfig) {
			t.Errorf("Extend(%s): %v", b, err)
		}
	}
	if err := p.Extend(netip.Prefix{}); !errors.Is(err, pool.ErrConfig) {
		t.Errorf("Extend of no block: %v", err)
	}
}

// Every block that comes costs the same at each address, however many there are.
func BenchmarkBlocks(b *testing.B) {
	for _, n := range []int{1, 16, 256} {
		b.Run(fmt.Sprintf("blocks=%d", n), func(b *testing.B) {
			p := blocks(b, "10.0.0.0/8")
			for i := range n {
				if err := p.Extend(netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i), 0, 0}), 24)); err != nil {
					b.Fatal(err)
				}
			}
			for b.Loop() {
				a, err := p.Any()
				if err != nil {
					b.Fatal(err)
				}
				p.Release(a)
			}
		})
	}
}

func TestFirstAddressOfABlockIsItsHosts(t *testing.T) {
	p := blocks(t, "fd00::/64", "fd00::1:0/126")
	for _, want := range []string{"fd00::1:1", "fd00::1:2", "fd00::1:3"} {
		if got, err := p.Any(); err != nil || got != netip.MustParseAddr(want) {
			t.Errorf("got %v, %v, want %s", got, err, want)
		}
	}
	if _, err := p.Any(); !errors.Is(err, pool.ErrNoBlock) {
		t.Errorf("a fourth address: %v", err)
	}
	first := netip.MustParseAddr("fd00::1:0")
	if err := p.Take(first); !errors.Is(err, pool.ErrReserved) || p.HandsOut(first) {
		t.Errorf("the first is handed out: %v", err)
	} else if !strings.Contains(err.Error(), "the first address of each block is its host's") {
		t.Errorf("who asked for the first is told: %v", err)
	}
	if got := p.Blocks()[0]; got.Used != 3 || got.Free.Sign() != 0 {
		t.Errorf("got %+v", got)
	}
}
