package addrguard

import (
	"errors"
	"fmt"
	"net"
	"strings"
)

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
