package etcd_test

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/particle-net/particle/control"
	"github.com/particle-net/particle/control/controltest"
	"github.com/particle-net/particle/control/controltest/etcdtest"
	"github.com/particle-net/particle/control/etcd"
)

// crowd is many hosts on one network, each with a connection and a watch of its
// own, as on as many machines. They share this one's processors with etcd.
type crowd struct {
	b     *testing.B
	hosts []*etcd.Store
	n     control.Network
	// heard counts the routes that hosts were told of.
	heard, want atomic.Int64
	all         chan struct{} // gets one when heard is what want says
}

func gather(b *testing.B, hosts int) *crowd {
	b.Helper()
	srv := etcdtest.Start(b, etcdtest.Current)
	c := &crowd{b: b, n: controltest.Network(1), all: make(chan struct{}, 1)}
	c.n.Subnets = []control.Subnet{{Prefix: netip.MustParsePrefix("10.0.0.0/8"), Block: 24}}
	for i := range hosts {
		s, err := etcd.Open(b.Context(), etcd.Options{Endpoints: []string{srv.Endpoint()}, Node: controltest.Node(i + 1)})
		if err != nil {
			b.Fatal(err)
		}
		c.hosts = append(c.hosts, s)
	}
	b.Cleanup(func() {
		var closing sync.WaitGroup
		for _, s := range c.hosts {
			closing.Go(func() { s.Close() })
		}
		closing.Wait()
	})
	if _, err := c.hosts[0].ClaimNetwork(b.Context(), c.n); err != nil {
		b.Fatal(err)
	}
	var listed sync.WaitGroup
	for _, s := range c.hosts {
		listed.Add(1)
		go c.listen(s, sync.OnceFunc(listed.Done))
	}
	listed.Wait()
	// Until each watch has delivered something, some are still being made.
	c.measure(0)
	return c
}

func (c *crowd) listen(s *etcd.Store, listed func()) {
	for u := range s.WatchRoutes(c.b.Context(), c.n) {
		if u.Whole {
			listed()
		}
		if told := int64(len(u.Put)); told > 0 && c.heard.Add(told) == c.want.Load() {
			c.all <- struct{}{}
		}
	}
}

func (c *crowd) claim(i int) {
	if _, err := c.hosts[i].ClaimBlock(c.b.Context(), c.n.ID, c.n.Subnets[0].Prefix); err != nil {
		c.b.Error(err)
	}
}

// measure claims once, and tells how long that took and when the last host knew.
func (c *crowd) measure(i int) (claimed, told time.Duration) {
	c.heard.Store(0)
	c.want.Store(int64(len(c.hosts)))
	begun := time.Now()
	c.claim(i)
	claimed = time.Since(begun)
	<-c.all
	return claimed, time.Since(begun)
}

func percentile(d []time.Duration, p int) float64 {
	slices.Sort(d)
	return float64(d[(len(d)-1)*p/100]) / float64(time.Millisecond)
}

// One host claims a block of a network that all of them watch.
func BenchmarkClaim(b *testing.B) {
	for _, hosts := range []int{1, 100, 1000} {
		b.Run(fmt.Sprintf("hosts=%d", hosts), func(b *testing.B) {
			c := gather(b, hosts)
			var claimed, told []time.Duration
			for i := 0; b.Loop(); i++ {
				x, y := c.measure(i % hosts)
				claimed, told = append(claimed, x), append(told, y)
			}
			b.ReportMetric(percentile(claimed, 50), "ms-claim-p50")
			b.ReportMetric(percentile(claimed, 99), "ms-claim-p99")
			b.ReportMetric(percentile(told, 50), "ms-last-p50")
			b.ReportMetric(percentile(told, 99), "ms-last-p99")
		})
	}
}

// All hosts claim a block of one network at once.
func BenchmarkStorm(b *testing.B) {
	for _, hosts := range []int{100, 1000} {
		b.Run(fmt.Sprintf("hosts=%d", hosts), func(b *testing.B) {
			c := gather(b, hosts)
			var granted, told []time.Duration
			for b.Loop() {
				c.heard.Store(0)
				c.want.Store(int64(hosts) * int64(hosts))
				begun := time.Now()
				var claims sync.WaitGroup
				for i := range hosts {
					claims.Go(func() { c.claim(i) })
				}
				claims.Wait()
				granted = append(granted, time.Since(begun))
				<-c.all
				told = append(told, time.Since(begun))
			}
			b.ReportMetric(percentile(granted, 50), "ms-granted")
			b.ReportMetric(percentile(told, 50), "ms-all-told")
		})
	}
}
