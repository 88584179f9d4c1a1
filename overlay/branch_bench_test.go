package overlay_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/particle-net/particle/internal/netnstest"
	"github.com/particle-net/particle/overlay"
	"github.com/particle-net/particle/topology"
)

// A branch alone, in namespaces that are there.
func BenchmarkBranch(b *testing.B) {
	m := newMachine(b, "", func(o *overlay.Options) { o.AcceptEvery = time.Hour })
	m.apply(segment(1, 0, "", "10.9.0.0/16"), true)
	one := topology.Branch{Network: network(1), Endpoint: endpoint(1), Namespace: netnstest.New(b).Path(), Link: "eth%d", MTU: 1450,
		IPv4: prefixes("10.9.0.2/32")[0].Addr()}
	b.Run("apply", func(b *testing.B) {
		for b.Loop() {
			m.attach(one)
			b.StopTimer()
			m.detach(1, one.Endpoint)
			b.StartTimer()
		}
	})
	b.Run("again", func(b *testing.B) {
		m.attach(one)
		for b.Loop() {
			m.attach(one)
		}
		m.detach(1, one.Endpoint)
	})
	for _, there := range []int{100, 1000} {
		b.Run(fmt.Sprintf("apply-among-%d", there), func(b *testing.B) {
			all := make([]topology.EndpointID, there)
			each, a := one, one.IPv4
			each.Namespace = netnstest.New(b).Path()
			for i := range all {
				all[i], a = endpoint(i+2), a.Next()
				each.Endpoint, each.IPv4 = all[i], a
				m.attach(each)
			}
			for b.Loop() {
				m.attach(one)
				b.StopTimer()
				m.detach(1, one.Endpoint)
				b.StartTimer()
			}
			m.detach(1, all...)
		})
	}
	for _, together := range []int{1, 10, 100} {
		b.Run(fmt.Sprintf("remove-%d", together), func(b *testing.B) {
			all := make([]topology.EndpointID, together)
			for i := range all {
				all[i] = endpoint(i + 1)
			}
			for b.Loop() {
				b.StopTimer()
				a := one.IPv4
				for _, id := range all {
					each := one
					each.Endpoint, each.IPv4 = id, a
					a = a.Next()
					m.attach(each)
				}
				b.StartTimer()
				m.detach(1, all...)
			}
		})
	}
}
