package addrguard

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"

	"github.com/particle-net/particle/topology"
)

// ProtectBranch does for the link that leads to a container with a namespace of
// its own what Protect does for all of a network's, whose protection it presumes:
// it looks at that link alone, so a thousand branches cost a thousand times one.
func (g *Guard) ProtectBranch(ctx context.Context, id topology.NetworkID, endpoint topology.EndpointID) error {
	if g.device == nil {
		return nil
	}
	unlock, err := g.lock(ctx)
	if err == nil {
		defer unlock()
		err = g.opts.Spaces.Within(id, func() error { return g.protectBranch(branchDevices + endpoint.Short()) })
	}
	if err != nil {
		return networkError("protect branch of network", id, err)
	}
	return nil
}

// protectBranch runs inside the namespace.
func (g *Guard) protectBranch(name string) error {
	netns, err := netnsCookie()
	if err != nil {
		return err
	}
	index, err := deviceIndex(name)
	if err != nil || index == 0 || g.branches[netns][name] == index {
		return err // a branch that is gone needs nothing
	}
	if err := g.equipDevice(netns, name, index); err != nil {
		return err
	}
	if g.branches[netns] == nil {
		g.branches[netns] = map[string]int{}
	}
	g.branches[netns][name] = index
	return nil
}

// equipBranches attaches the programs to the links that lead to containers with a
// namespace of their own, and forgets those that are gone. It runs inside the
// namespace; the pins' lock is held.
func (g *Guard) equipBranches(netns uint64) error {
	devices, err := net.Interfaces()
	if err != nil {
		return fmt.Errorf("list devices: %w", err)
	}
	known, here := g.branches[netns], map[string]int{}
	for _, d := range devices {
		if !strings.HasPrefix(d.Name, branchDevices) {
			continue
		}
		if known[d.Name] != d.Index { // asking the kernel about each would take long
			if err := g.equipDevice(netns, d.Name, d.Index); err != nil {
				return err
			}
		}
		here[d.Name] = d.Index
	}
	g.branches[netns] = here
	return g.sweepBranches(netns, here)
}

// sweepBranches removes the pins of branches that are gone.
func (g *Guard) sweepBranches(netns uint64, here map[string]int) error {
	names, err := g.pins()
	if err != nil {
		return err
	}
	prefix := fmt.Sprintf("device-%d-%s", netns, branchDevices)
	var errs []error
	for _, name := range names {
		if !strings.HasPrefix(name, prefix) {
			continue
		}
		if device := strings.Split(name, "-")[2]; here[device] == 0 {
			errs = append(errs, g.unpin(name))
		}
	}
	return errors.Join(errs...)
}
