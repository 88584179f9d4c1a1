package addrguard_test

import (
	"fmt"
	"slices"
	"testing"

	"github.com/particle-net/particle/addrguard"
)

// BenchmarkOutside tells what processes outside the anchors pay for the guard of
// others ("All other processes of the host pay what the kernel takes"): as ratios, once the programs are attached somewhere and again when they
// are gone, to the same calls before. The kernel skips hooks by patching its own
// text as long as nothing hangs on them anywhere, so other guards on the machine
// would hide the difference.
func BenchmarkOutside(b *testing.B) {
	h := newHost(b)
	h.cgroup(h.top + "-outside")
	place := []*box{h.start(h.top+"-outside", tenant(b, v4))}
	network := h.network(1, v4)
	h.spaces[network].Run("sysctl", "-q", "-w", "net.ipv4.tcp_max_tw_buckets=0")
	for _, kind := range []string{"socket", "socket-tcp", "bind-udp", "bind-tcp", "connect-udp", "getsockname", "pair-udp", "tcp"} {
		b.Run(kind, func(b *testing.B) {
			var before, during, after []float64
			for n := range b.N {
				for round := range 10 {
					before = append(before, batchesAt(place[0], kind)...)
					cgroup := fmt.Sprintf("%s/%s-%d-%d", h.top, kind, n, round)
					h.cgroup(cgroup)
					if _, err := h.Admit(b.Context(), cgroup, identityOf(network, 1, v4)); err != nil {
						b.Fatal(err)
					}
					during = append(during, batchesAt(place[0], kind)...)
					h.end()
					after = append(after, batchesAt(place[0], kind)...)
					h.open()
					if err := h.Protect(b.Context(), network, false); err != nil {
						b.Fatal(err)
					}
				}
			}
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(slices.Min(before), "ns/before")
			b.ReportMetric(slices.Min(during)/slices.Min(before), "during/before")
			b.ReportMetric(medianRatio(during, before), "during/before-p50")
			b.ReportMetric(medianRatio(after, before), "after/before-p50")
		})
	}
}

// end takes the guard off the host.
func (h *host) end() {
	h.t.Helper()
	if err := h.Close(); err != nil {
		h.t.Fatal(err)
	}
	if err := addrguard.Cleanup(h.t.Context(), h.opts); err != nil {
		h.t.Fatal(err)
	}
}

// batchesAt is what a call took in each of some batches, ns.
func batchesAt(place *box, kind string) (spent []float64) {
	const batch = 100
	for range 30 {
		a := place.must(Call{Name: "bench", Text: kind, Addr: "10.77.0.1:0", Value: batch})
		spent = append(spent, float64(a.N)/batch)
	}
	return spent
}
