package addrguard

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/cilium/ebpf"

	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/topology"
)

// Admit says who the processes of a cgroup are, and of the cgroups below it. When
// it returns, the programs know; processes must not run in the network's namespace
// before. The cgroup is named by its path in the version 2 hierarchy, as the line
// "0::" of /proc/PID/cgroup has it for a reader in the host's cgroup namespace.
//
// Admitting again replaces the identity for sockets made from then on. The first
// container below an anchor takes about half a millisecond, others some microseconds.
//
// Causes: fs.ErrNotExist when there is no such cgroup.
func (g *Guard) Admit(ctx context.Context, cgroup string, id Identity) (topology.CgroupID, error) {
	if err := id.check(); err != nil {
		return 0, &fault.Error{Op: "admit container", On: cgroup, Err: err, Fix: "report this as a bug"}
	}
	netns, err := g.cookieOf(id.Network)
	if err != nil {
		return 0, err
	}
	cg, err := g.admit(ctx, cgroup, id.container(netns))
	if err != nil {
		return 0, admitError(cgroup, err)
	}
	return cg, nil
}

func admitError(cgroup string, err error) error {
	var known *fault.Error
	switch {
	case errors.As(err, &known):
		return err
	case errors.Is(err, fs.ErrNotExist):
		return &fault.Error{Op: "admit container", On: cgroup, Err: err, Fix: "start the container again"}
	}
	return &fault.Error{Op: "admit container", On: cgroup, Err: err, Fix: "run `particle doctor` on this host"}
}

func (g *Guard) admit(ctx context.Context, cgroup string, want guardContainer) (topology.CgroupID, error) {
	if cgroup == "" || filepath.Clean(cgroup) == "/" {
		return 0, fault.New("admit container", "", "it has no cgroup of its own in the version 2 hierarchy",
			"mount cgroup v2 beside version 1 at /sys/fs/cgroup/unified, or use it alone; give containers a cgroup parent other than the root")
	}
	if want.Face.Flags&flagExempt == 0 { // where no programs run, all are exempt
		if err := g.anchor(ctx, cgroup); err != nil {
			return 0, err
		}
	}
	id, err := cgroupID(filepath.Join(g.opts.Cgroups, cgroup))
	if err != nil {
		return 0, err
	}
	g.steering.Lock()
	defer g.steering.Unlock()
	var have guardContainer
	err = g.containers.Lookup(id, &have)
	switch {
	case err == nil && have.Netns == want.Netns && have.Face == want.Face:
		return id, nil
	case err == nil:
		if err := g.forgetSteers(id, &have); err != nil {
			return 0, err
		}
	case !errors.Is(err, ebpf.ErrKeyNotExist):
		return 0, fmt.Errorf("look up cgroup: %w", err)
	}
	if err := g.enterSteers(id, &want); err != nil {
		return 0, err
	}
	if err := g.enterSender(id, &want); err != nil {
		return 0, err
	}
	if err := g.containers.Put(id, want); err != nil {
		return 0, fmt.Errorf("enter cgroup: %w", err)
	}
	return id, nil
}

// mark is what the sockets of a cgroup's processes carry.
func mark(id topology.CgroupID) uint32 { return uint32(id) }

// enterSender makes known whose packets with the cgroup's mark are.
func (g *Guard) enterSender(id topology.CgroupID, c *guardContainer) error {
	if c.Face.Flags&flagExempt != 0 {
		return nil
	}
	if err := g.senders.Put(mark(id), guardSender{Cgroup: uint64(id), Face: c.Face}); err != nil {
		return fmt.Errorf("enter mark of cgroup: %w", err)
	}
	return nil
}

// takeStock follows what an earlier process has admitted: its version may not have
// known marks.
func (g *Guard) takeStock() error {
	g.steering.Lock()
	defer g.steering.Unlock()
	var id topology.CgroupID
	var c guardContainer
	list := g.containers.Iterate()
	for list.Next(&id, &c) {
		g.steering.hold(id, &c)
		if err := g.enterSender(id, &c); err != nil {
			return err
		}
	}
	if err := list.Err(); err != nil {
		return fmt.Errorf("list containers: %w", err)
	}
	return nil
}

func (g *Guard) forgetSender(id topology.CgroupID) error {
	if err := g.senders.Delete(mark(id)); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("forget mark of cgroup: %w", err)
	}
	return nil
}

// Expel makes strangers of a cgroup's processes: they get no more sockets. Those
// they have keep their identity, but from Linux 6.6 on send no more datagrams to
// addresses of the network. Gone already is success.
func (g *Guard) Expel(id topology.CgroupID) error {
	g.steering.Lock()
	defer g.steering.Unlock()
	var have guardContainer
	err := g.containers.LookupAndDelete(id, &have)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil
	}
	if err == nil {
		err = errors.Join(g.forgetSteers(id, &have), g.forgetSender(id), g.leave(id))
	}
	if err != nil {
		return &fault.Error{Op: "expel container", On: fmt.Sprint(id), Err: err, Fix: "run `particle doctor` on this host"}
	}
	return nil
}

// Admitted is everyone who was admitted and not expelled, by any process. The
// Network of one whose namespace is not protected any more is empty.
func (g *Guard) Admitted() (map[topology.CgroupID]Identity, error) {
	names := map[uint64]topology.NetworkID{}
	g.mu.RLock()
	for id, netns := range g.cookies {
		names[netns] = id
	}
	g.mu.RUnlock()
	all := map[topology.CgroupID]Identity{}
	var id topology.CgroupID
	var c guardContainer
	list := g.containers.Iterate()
	for list.Next(&id, &c) {
		all[id] = identity(&c, names[c.Netns])
	}
	if err := list.Err(); err != nil {
		return nil, &fault.Error{Op: "list containers", Err: err, Fix: "try again"}
	}
	return all, nil
}
