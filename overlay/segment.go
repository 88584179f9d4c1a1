package overlay

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/topology"
)

// ErrNoNetwork is the cause when a network has no namespace on this host.
var ErrNoNetwork = errors.New("no such network on this host")

// Apply makes the kernel match seg and reports whether it had to change
// anything. A namespace that does not exist is created, and removed again if
// Apply fails. Networks already there are repaired in place, and what fails does
// not keep the rest from being done. Whose packets are heard is for SetMembers to say.
//
// Causes: topology.ErrUnreached, if all is done but for other hosts that cannot be
// reached; topology.ErrVNIInUse; syscall.EADDRINUSE is told as a port that is taken.
func (h *Host) Apply(ctx context.Context, seg topology.Segment) (changed bool, err error) {
	if err := check(seg); err != nil {
		return false, &fault.Error{Op: "apply network", On: seg.Network.Short(), Err: err, Fix: "create the network again"}
	}
	path, err := h.path(seg.Network)
	if err != nil {
		return false, err
	}
	release, err := h.write(ctx)
	if err != nil {
		return false, err
	}
	defer release()
	ns, err := openNamespace(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		h.unwatch(path)
		err := h.found(ctx, path, seg)
		return err == nil || errors.Is(err, topology.ErrUnreached), err
	case err != nil:
		return false, applyError(seg, err)
	}
	defer ns.close()
	w, err := h.watchOf(path, ns)
	if err != nil {
		return false, applyError(seg, err)
	}
	now := sight{w.hear(), sum(seg)} // before the look: what changes during it calls for another
	changed, err = h.repair(ctx, ns, seg, w.inOrder == now)
	if changed || err != nil {
		delete(h.trunks, seg.Network)
	}
	w.note(now, !changed && err == nil)
	return changed, applyError(seg, err)
}

// found makes a new namespace for the segment. The namespace appears under its
// path last, when it is complete.
func (h *Host) found(ctx context.Context, path string, seg topology.Segment) error {
	ns, err := h.takeNamespace()
	if err != nil {
		return applyError(seg, err)
	}
	defer ns.close()
	_, err = ns.ensurePools(seg.Pools)
	if err == nil {
		_, err = h.ensureTunnel(ctx, ns, seg)
	}
	if err == nil {
		err = ns.beginPeers(seg)
	}
	if err != nil && !errors.Is(err, topology.ErrUnreached) {
		return applyError(seg, errors.Join(err, h.undo(ns, seg)))
	}
	if err := bind(ns.source(), path); err != nil {
		return applyError(seg, errors.Join(err, h.undo(ns, seg)))
	}
	return applyError(seg, err)
}

// undo takes back what a namespace that is let go would leave.
func (h *Host) undo(ns *namespace, seg topology.Segment) error {
	_, err := ns.remove(vxlanName)
	_, failed := h.forgetReceiver(seg.Network)
	return errors.Join(err, failed)
}

// repair goes on after a failure: what can be mended is. Where all was in order and
// has been still since, what is left to look at is what changes without a word, and
// what is not in the namespace.
func (h *Host) repair(ctx context.Context, ns *namespace, seg topology.Segment, still bool) (changed bool, err error) {
	steps := []func() (bool, error){
		func() (changed bool, err error) {
			err = enter(ns.file, func() (err error) {
				changed, err = settle(tenantSysctls())
				return err
			})
			return changed, err
		},
	}
	if still {
		steps = append(steps, func() (bool, error) { return h.ensureReceiver(seg) })
	} else {
		steps = append(steps,
			ns.ensureBase,
			ns.repairTrunk,
			func() (bool, error) { return ns.ensurePools(seg.Pools) },
			func() (bool, error) { return h.ensureTunnel(ctx, ns, seg) },
			func() (bool, error) { return ns.ensurePeers(seg) },
		)
	}
	var errs []error
	var unreached error // is no failure, and told only if there is none
	for _, step := range steps {
		did, err := step()
		changed = changed || did
		if errors.Is(err, topology.ErrUnreached) {
			unreached, err = err, nil
		}
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return changed, err
	}
	return changed, unreached
}

// ensureTunnel makes the network's device, after what stands in front of it and
// behind it. The filter forgets a network once its device hears nobody any more.
func (h *Host) ensureTunnel(ctx context.Context, ns *namespace, seg topology.Segment) (changed bool, err error) {
	subnets := newSide(nil, nil, seg.Subnets).subnets
	rules := func() (bool, error) {
		if len(subnets) == 0 {
			return false, nil
		}
		return ns.ensureRules(tableName, tenantRules(subnets))
	}
	receiver := func() (bool, error) { return h.ensureReceiver(seg) }
	device := func() (bool, error) { return h.ensureVXLAN(ctx, ns, seg) }
	if !hears(seg) {
		return inTurn([]func() (bool, error){rules, device, receiver})
	}
	owned := func() (bool, error) { return h.ensureReceiverOwned(seg) }
	return inTurn([]func() (bool, error){rules, receiver, device, owned})
}

// applyError leaves an error that already tells its remedy as it is.
func applyError(seg topology.Segment, err error) error {
	var known *fault.Error
	if err == nil || errors.As(err, &known) {
		return err
	}
	if errors.Is(err, topology.ErrUnreached) {
		return peersError("apply network", seg.Network, err)
	}
	return &fault.Error{Op: "apply network", On: seg.Network.Short(), Err: err, Fix: "run `particle doctor` on this host"}
}

func check(seg topology.Segment) error {
	if seg.VTEP.IsValid() && (seg.VNI == 0 || seg.VNI > topology.MaxVNI) {
		return fmt.Errorf("VNI %d is not from 1 to %d", seg.VNI, topology.MaxVNI)
	}
	if seg.VTEP.IsValid() && seg.Port == 0 {
		return errors.New("no UDP port")
	}
	for _, pool := range seg.Pools {
		if !pool.IsValid() || pool.Addr().Is4In6() {
			return fmt.Errorf("pool %v is not an address range", pool)
		}
	}
	return nil
}

// Remove deletes the network's devices and its namespace's file; gone is
// success. The namespace itself ends with the last process in it. The VXLAN
// device is deleted by name first, see the package's invariants.
func (h *Host) Remove(ctx context.Context, id topology.NetworkID) error {
	path, err := h.path(id)
	if err != nil {
		return err
	}
	release, err := h.write(ctx)
	if err != nil {
		return err
	}
	defer release()
	var errs []error
	ns, err := openNamespace(path)
	delete(h.trunks, id)
	h.unwatch(path)
	if err == nil {
		_, err = ns.remove(vxlanName)
		err = errors.Join(err, ns.removeAllBranches())
		ns.close()
	}
	if !errors.Is(err, fs.ErrNotExist) {
		errs = append(errs, err)
	}
	_, failed := h.forgetReceiver(id)
	errs = append(errs, h.removeGateway(id), failed, unbind(path))
	if err := errors.Join(errs...); err != nil {
		return &fault.Error{Op: "remove network", On: id.Short(), Err: err, Fix: "run `particle doctor` on this host"}
	}
	return nil
}

// Networks lists the networks whose namespaces are bound on this host.
func (h *Host) Networks(context.Context) ([]topology.NetworkID, error) {
	entries, err := os.ReadDir(h.opts.NamespaceDir)
	if err != nil {
		return nil, &fault.Error{Op: "list networks", On: h.opts.NamespaceDir, Err: err, Fix: "restart the plugin"}
	}
	var ids []topology.NetworkID
	for _, entry := range entries {
		id, err := topology.ParseNetworkID(entry.Name())
		if err != nil {
			continue // not a name we give
		}
		path, err := h.path(id)
		if err != nil {
			return nil, err
		}
		bound, err := isBound(path)
		if err != nil {
			return nil, &fault.Error{Op: "list networks", On: id.Short(), Err: err, Fix: "restart the plugin"}
		}
		if bound {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

// Observe reads a network back from the kernel. VNI, VTEP, Port and MTU are
// zero when there is no VXLAN device. Cause: ErrNoNetwork.
func (h *Host) Observe(ctx context.Context, id topology.NetworkID) (topology.Segment, error) {
	release, err := h.write(ctx) // the kernel's picture must not change while it is read
	if err != nil {
		return topology.Segment{}, err
	}
	defer release()
	return h.observe(id)
}

func (h *Host) observe(id topology.NetworkID) (topology.Segment, error) {
	ns, err := h.tenant("observe network", id)
	if err != nil {
		return topology.Segment{}, err
	}
	defer ns.close()
	seg := topology.Segment{Network: id}
	var errs [2]error
	seg.Pools, errs[0] = ns.routes(netlink.FAMILY_ALL, unix.RTN_LOCAL)
	device, err := ns.vxlan()
	errs[1] = errors.Join(err, ns.observePeers(&seg, device))
	if device != nil {
		seg.VNI = topology.VNI(device.VxlanId)
		seg.VTEP = address(device.SrcAddr)
		seg.Port = uint16(device.Port)
		seg.MTU = device.MTU
	}
	return seg, applyError(seg, errors.Join(errs[:]...))
}

// tenant opens a network's namespace.
func (h *Host) tenant(op string, id topology.NetworkID) (*namespace, error) {
	path, err := h.path(id)
	if err != nil {
		return nil, err
	}
	ns, err := openNamespace(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &fault.Error{Op: op, On: id.Short(), Err: ErrNoNetwork,
			Fix: "create the network, or restart the plugin if Docker lists it"}
	}
	if err != nil {
		return nil, &fault.Error{Op: op, On: id.Short(), Err: err, Fix: "run `particle doctor` on this host"}
	}
	return ns, nil
}

// sameNamespace compares what two paths are bound to: a namespace is one inode
// of nsfs.
func sameNamespace(a, b string) (bool, error) {
	var one, other unix.Stat_t
	if err := unix.Stat(a, &one); err != nil {
		return false, &fs.PathError{Op: "stat", Path: a, Err: err}
	}
	if err := unix.Stat(b, &other); err != nil {
		return false, &fs.PathError{Op: "stat", Path: b, Err: err}
	}
	return one.Dev == other.Dev && one.Ino == other.Ino, nil
}
