package addrguard

import (
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/cilium/ebpf"

	"github.com/particle-net/particle/topology"
)

// steering is who has which IPv6 address: containers may share one (docker run
// --network container:X), and it leads somewhere until the last has gone.
type steering struct {
	sync.Mutex
	holders map[guardSteerKey]map[topology.CgroupID]bool
}

// steerKeys are the container's IPv6 addresses, whose packets go to its IPv4
// address where only a socket for both families listens.
func steerKeys(c *guardContainer) []guardSteerKey {
	if c.Face.Flags&flagExempt != 0 {
		return nil
	}
	keys := []guardSteerKey{{Netns: c.Netns, Ip6: c.Face.Lo6}, {Netns: c.Netns, Ip6: c.Face.Ip6}}
	return slices.Compact(keys)
}

// hold notes that a container has its addresses. The caller holds the lock.
func (s *steering) hold(id topology.CgroupID, c *guardContainer) {
	for _, key := range steerKeys(c) {
		if s.holders[key] == nil {
			s.holders[key] = map[topology.CgroupID]bool{}
		}
		s.holders[key][id] = true
	}
}

// enterSteers makes a container's addresses lead to it. The caller holds the lock.
func (g *Guard) enterSteers(id topology.CgroupID, c *guardContainer) error {
	g.steering.hold(id, c)
	for _, key := range steerKeys(c) {
		if err := g.steers.Put(key, c.Face.Ip4); err != nil {
			return fmt.Errorf("steer IPv6: %w", err)
		}
	}
	return nil
}

// forgetSteers has a container's addresses lead nowhere, unless another has them
// too. The caller holds the lock.
func (g *Guard) forgetSteers(id topology.CgroupID, c *guardContainer) error {
	for _, key := range steerKeys(c) {
		delete(g.steering.holders[key], id)
		if len(g.steering.holders[key]) > 0 {
			continue
		}
		if err := g.steers.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("stop steering IPv6: %w", err)
		}
		delete(g.steering.holders, key)
	}
	return nil
}
