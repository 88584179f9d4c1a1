package overlay_test

import (
	"fmt"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/overlay"
	"github.com/particle-net/particle/topology"
)

// BenchmarkPass looks once at all that a host has for its networks, each with a
// way out, as the plugin does all the time: how long, and how much of a processor.
func BenchmarkPass(b *testing.B) {
	for _, c := range []struct{ networks, peers int }{{1, 3}, {1, 1000}, {100, 10}, {100, 1000}} {
		b.Run(fmt.Sprintf("networks=%d/peers=%d", c.networks, c.peers), func(b *testing.B) {
			const every = 20 * time.Millisecond // one look at what networks share in a pass, however fast those follow
			m := newMachine(b, "192.0.2.1/24", func(o *overlay.Options) { o.AcceptEvery = every })
			segments := make([]topology.Segment, c.networks)
			for i := range segments {
				seg := crowded(false)
				seg.Network, seg.VNI, seg.Peers = network(i+1), topology.VNI(100+i), crowd(c.peers, false)[:c.peers]
				segments[i] = seg
				m.apply(seg, true)
				if _, err := m.ApplyUplink(b.Context(), uplink(b, i+1)); err != nil {
					b.Fatal(err)
				}
			}
			pass := func() {
				for i, seg := range segments {
					m.apply(seg, false)
					if changed, err := m.ApplyUplink(b.Context(), uplink(b, i+1)); err != nil || changed {
						b.Fatal(changed, err)
					}
				}
			}
			pass() // the first finds all in order, and those after it nothing that has changed since
			<-time.After(every)
			before := processor(b)
			b.ResetTimer()
			for range b.N {
				pass()
			}
			b.ReportMetric(float64((processor(b)-before).Microseconds())/1000/float64(b.N), "cpu-ms/op")
		})
	}
}

// processor is how much time this process and its children have had.
func processor(b *testing.B) (sum time.Duration) {
	b.Helper()
	for _, who := range []int{unix.RUSAGE_SELF, unix.RUSAGE_CHILDREN} {
		var u unix.Rusage
		if err := unix.Getrusage(who, &u); err != nil {
			b.Fatal(err)
		}
		sum += time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	return sum
}
