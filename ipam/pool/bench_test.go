package pool_test

import (
	"fmt"
	"net/netip"
	"runtime"
	"testing"

	"github.com/particle-net/particle/ipam/pool"
)

// full returns a pool with n addresses held.
func full(b testing.TB, subnet string, n int) *pool.Pool {
	b.Helper()
	p := open(b, subnet, "")
	for range n {
		if _, err := p.Any(); err != nil {
			b.Fatal(err)
		}
	}
	return p
}

// The time of one operation must not depend on how many addresses are held.
func BenchmarkPool(b *testing.B) {
	for _, subnet := range []string{"10.0.0.0/8", "fd00::/8"} {
		for _, n := range []int{10, 10_000, 1_000_000} {
			b.Run(fmt.Sprintf("AnyRelease/%s/held=%d", subnet, n), func(b *testing.B) {
				p := full(b, subnet, n)
				b.ReportAllocs()
				for b.Loop() {
					addr, err := p.Any()
					if err != nil {
						b.Fatal(err)
					}
					p.Release(addr)
				}
			})
			b.Run(fmt.Sprintf("TakeRelease/%s/held=%d", subnet, n), func(b *testing.B) {
				p := full(b, subnet, n)
				addr := netip.MustParsePrefix(subnet).Addr().Next()
				b.ReportAllocs()
				for b.Loop() {
					p.Release(addr)
					if err := p.Take(addr); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

// A pool that is used up: every Any takes from the queue of released addresses.
func BenchmarkPoolInRotation(b *testing.B) {
	for _, bits := range []int{28, 18, 12} {
		p := open(b, fmt.Sprintf("10.0.0.0/%d", bits), "")
		drain(b, p)
		addr := netip.MustParseAddr("10.0.0.1")
		b.Run(fmt.Sprintf("/%d", bits), func(b *testing.B) {
			for b.Loop() {
				p.Release(addr)
				if got, err := p.Any(); err != nil || got != addr {
					b.Fatal(got, err)
				}
			}
		})
	}
}

// Taking and releasing one address for ever must not fill the memory.
func TestChurnKeepsNoMemory(t *testing.T) {
	p := open(t, "10.9.0.0/24", "")
	drain(t, p)
	addr := netip.MustParseAddr("10.9.0.9")
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for range 200_000 { // 6 MB of queue if stale entries stayed
		p.Release(addr)
		if err := p.Take(addr); err != nil {
			t.Fatal(err)
		}
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 1<<20 {
		t.Errorf("200,000 rounds on one address left %d bytes", grown)
	}
	runtime.KeepAlive(p)
}
