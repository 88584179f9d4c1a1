package memory_test

import (
	"testing"

	"github.com/particle-net/particle/control"
	"github.com/particle-net/particle/control/controltest"
	"github.com/particle-net/particle/control/memory"
	"github.com/particle-net/particle/topology"
)

func TestAllocation(t *testing.T) {
	controltest.Allocation(t, func(t *testing.T) controltest.Cluster {
		c := memory.New()
		var hosts []*memory.Store
		var saved memory.Snapshot
		cut := func(cut bool) {
			for _, h := range hosts {
				h.Cut(cut)
			}
		}
		return controltest.Cluster{
			Open: func(t *testing.T, n control.Node) controltest.Store {
				s := c.Host(n)
				hosts = append(hosts, s)
				return s
			},
			Stop: func() { cut(true) },
			Back: func() { cut(false) },
			Wipe: c.Wipe,
			Save: func() { saved = c.Save() },
			Load: func() { c.Load(saved) }, Settle: c.Settle,
			Expire: func(topology.NodeID) {}, // it has at once
		}
	})
}

func TestDistribution(t *testing.T) {
	controltest.Distribution(t, func(t *testing.T) controltest.Fabric {
		c := memory.New()
		var hosts []*memory.Store
		return controltest.Fabric{
			Open: func(t *testing.T, n control.Node) control.Distributor {
				s := c.Host(n)
				hosts = append(hosts, s)
				return s
			},
			Interrupt: func(t *testing.T) func() {
				for _, h := range hosts {
					h.Cut(true)
				}
				return func() {
					for _, h := range hosts {
						h.Cut(false)
					}
				}
			},
		}
	})
}
