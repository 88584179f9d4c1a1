package overlay_test

import (
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/particle-net/particle/overlay"
	"github.com/particle-net/particle/topology"
)

// crowd are n other hosts with a block each, and one more beyond them.
func crowd(n int, v6 bool) []topology.Peer {
	all := make([]topology.Peer, n+1)
	for i := range all {
		all[i].VTEP = netip.AddrFrom4([4]byte{10, 200, byte(i >> 8), byte(i)})
		all[i].Prefixes = []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(16 + i>>12), byte(i >> 4), byte(i << 4)}), 28)}
		if v6 {
			a := [16]byte{0xfd, 0, 0, 9, 0, 0, byte(i >> 8), byte(i)}
			all[i].Prefixes = append(all[i].Prefixes, netip.PrefixFrom(netip.AddrFrom16(a), 64))
		}
	}
	return all
}

func crowded(v6 bool) topology.Segment {
	seg := part([]string{"10.9.1.0/24"}, []string{"10.0.0.0/8"})
	if v6 {
		seg.Pools, seg.Subnets = append(seg.Pools, netip.MustParsePrefix("fd00:9:ffff::/64")), append(seg.Subnets, netip.MustParsePrefix("fd00:9::/32"))
	}
	return seg
}

// taken has rules of the firewall taken for granted, as the plugin does.
func taken(o *overlay.Options) { o.AcceptEvery = time.Hour }

// BenchmarkPeers programs many hosts at once, by the difference and by all there
// is to be; one more beside them; and looks whether all is as it should be.
func BenchmarkPeers(b *testing.B) {
	for _, hosts := range []int{1000, 10000} {
		for version, v6 := range map[string]bool{"IPv4": false, "both": true} {
			all := crowd(hosts, v6)
			seg := crowded(v6)
			name := func(what string) string { return fmt.Sprintf("%s/%s/hosts=%d", what, version, hosts) }
			b.Run(name("come"), func(b *testing.B) {
				m := newMachine(b, "192.0.2.1/24")
				m.apply(seg, true)
				for range b.N {
					m.change(nil, all[:hosts])
					b.StopTimer()
					m.change(all[:hosts], nil)
					b.StartTimer()
				}
			})
			b.Run(name("go"), func(b *testing.B) {
				m := newMachine(b, "192.0.2.1/24")
				m.apply(seg, true)
				for range b.N {
					b.StopTimer()
					m.change(nil, all[:hosts])
					b.StartTimer()
					m.change(all[:hosts], nil)
				}
			})
			b.Run(name("one-more"), func(b *testing.B) {
				m := newMachine(b, "192.0.2.1/24")
				m.apply(seg, true)
				m.change(nil, all[:hosts])
				b.ResetTimer()
				for range b.N {
					m.change(nil, all[hosts:])
					b.StopTimer()
					m.change(all[hosts:], nil)
					b.StartTimer()
				}
			})
			b.Run(name("look"), func(b *testing.B) {
				m := newMachine(b, "192.0.2.1/24", taken)
				full := seg
				full.Peers = all[:hosts]
				m.apply(full, true)
				b.ResetTimer()
				for range b.N {
					m.apply(full, false)
				}
			})
		}
	}
}

// BenchmarkPeersMemory tells what a host costs for as long as it is there: in
// kernel memory, of which others take and give back too, and in this process.
func BenchmarkPeersMemory(b *testing.B) {
	const hosts = 10000
	for version, v6 := range map[string]bool{"IPv4": false, "both": true} {
		b.Run(version, func(b *testing.B) {
			var kernel, heap uint64
			for range b.N {
				m := newMachine(b, "192.0.2.1/24")
				m.apply(crowded(v6), true)
				all := crowd(hosts, v6)
				settle(b)
				slab, own := kernelMemory(b), heapInUse()
				m.change(nil, all[:hosts])
				settle(b)
				kernel += max(kernelMemory(b), slab) - slab
				heap += max(heapInUse(), own) - own
				m.change(all[:hosts], nil)
				runtime.KeepAlive(all)
			}
			b.ReportMetric(float64(kernel)/float64(b.N)/hosts, "kernel-B/host")
			b.ReportMetric(float64(heap)/float64(b.N)/hosts, "go-B/host")
		})
	}
}

// settle lets the kernel free what waits for RCU.
func settle(b *testing.B) {
	b.Helper()
	<-time.After(300 * time.Millisecond)
}

func heapInUse() uint64 {
	runtime.GC()
	var s runtime.MemStats
	runtime.ReadMemStats(&s)
	return s.HeapAlloc
}

// kernelMemory is slab and per-CPU memory, in bytes.
func kernelMemory(b *testing.B) (sum uint64) {
	b.Helper()
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if fields[0] == "Slab:" || fields[0] == "Percpu:" {
			kb, err := strconv.ParseUint(fields[1], 10, 64)
			if err != nil {
				b.Fatal(err)
			}
			sum += kb << 10
		}
	}
	return sum
}
