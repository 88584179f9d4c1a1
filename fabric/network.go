package fabric

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/topology"
)

// Causes that callers may ask for.
var (
	ErrNoNetwork = errors.New("this host has no such particle network")
	ErrVNITaken  = errors.New("the VNI is taken")
)

// firstVNI is where free VNIs are looked for. Docker Swarm numbers its own from
// 4096 upwards, and a VNI exists once per UDP port and host (EEXIST else), so we
// keep far from it.
const firstVNI topology.VNI = 1 << 20

// minMTU is the least an IPv6 link may have (RFC 8200 section 5).
const minMTU = 1280

// NetworkSpec is what a user asks for with `docker network create`.
type NetworkSpec struct {
	ID       topology.NetworkID
	VNI      topology.VNI // 0 chooses a free one
	MTU      int          // bytes; 0 takes the underlay's less the overhead
	Internal bool
	Guard    GuardMode // empty leaves it to the host
	Subnets  []Subnet
	Scope    Scope
	Blocks   BlockSizes
	Shared   topology.SharedID // of the network that other hosts have; empty if it is new
}

// CreateNetwork records the network and builds its tenant namespace; on a host in
// a cluster the cluster has it before. On failure nothing is left.
func (f *Fabric) CreateNetwork(ctx context.Context, spec NetworkSpec) error {
	n, repeated, err := f.admit(spec)
	if err != nil {
		return &fault.Error{Op: "create network", On: spec.ID.Short(), Err: err}
	}
	n.work.Lock()
	defer n.work.Unlock()
	if repeated {
		if err := f.stays(n); err != nil { // the first attempt has failed by now
			return err
		}
		_, err := f.apply(ctx, n)
		return errors.Join(err, f.complete(n))
	}
	if n.shareable {
		if err := f.share(ctx, n, spec); err != nil {
			return errors.Join(err, f.forget(n))
		}
	}
	f.mu.Lock()
	record := n.Network
	f.mu.Unlock()
	if err = f.o.Networks.Put(string(n.ID), record); err == nil {
		err = f.establish(ctx, n, spec.VNI == 0 && n.Shared == "")
	}
	if err == nil {
		err = f.complete(n)
	}
	if err != nil {
		return errors.Join(err, f.retract(n), f.demolish(ctx, n))
	}
	return nil
}

// complete gives a network that the kernel has its pools. The caller holds
// n.work.
func (f *Fabric) complete(n *network) error {
	f.mu.Lock()
	n.creating = false
	bound, err := f.bindPools(n)
	f.mu.Unlock()
	if err != nil {
		return err
	}
	for _, p := range bound {
		if err := f.o.Pools.Put(string(p.ID), p); err != nil {
			return err
		}
	}
	return f.publish()
}

// establish makes a new network in the kernel. A VNI that was chosen for it may
// be a foreign device's: then the next is tried, until one is free or the
// caller's time is over. The caller holds n.work.
func (f *Fabric) establish(ctx context.Context, n *network, chosen bool) error {
	for {
		_, err := f.apply(ctx, n)
		if err == nil || !chosen || ctx.Err() != nil || !errors.Is(err, topology.ErrVNIInUse) {
			return err
		}
		f.mu.Lock()
		vni, full := f.freeVNI(n.VNI + 1)
		if full == nil {
			n.VNI = vni
		}
		record := n.Network
		f.mu.Unlock()
		if full != nil {
			return errors.Join(full, err)
		}
		if err := f.o.Networks.Put(string(n.ID), record); err != nil {
			return err
		}
	}
}

// admit checks the wish and enters the network into the maps.
func (f *Fabric) admit(spec NetworkSpec) (n *network, repeated bool, err error) {
	mtu, err := f.mtu(spec.MTU)
	if err != nil {
		return nil, false, err
	}
	if err := checkSubnets(spec.Subnets); err != nil {
		return nil, false, err
	}
	shared, errShare := f.toShare(spec)
	f.mu.Lock()
	defer f.mu.Unlock()
	if known := f.networks[spec.ID]; known != nil {
		if !slices.EqualFunc(known.Subnets, spec.Subnets, func(a, b Subnet) bool { return a.Subnet == b.Subnet }) {
			return nil, false, fault.New("compare", spec.ID.Short(), "the network exists with other subnets",
				"remove it with `docker network rm` first")
		}
		return known, true, nil
	}
	if errShare != nil {
		return nil, false, errShare
	}
	vni, err := f.chooseVNI(spec.VNI)
	if err != nil {
		return nil, false, err
	}
	n = newNetwork(Network{
		ID: spec.ID, VNI: vni, MTU: mtu, Internal: spec.Internal, Guard: spec.Guard,
		Subnets: slices.Clone(spec.Subnets), Uplink: NoUplink, Created: time.Now(),
	})
	n.creating, n.shareable = true, shared
	f.networks[n.ID] = n
	return n, false, nil
}

func (f *Fabric) mtu(want int) (int, error) {
	f.mu.Lock()
	underlay := f.o.Underlay
	f.mu.Unlock()
	most := underlay.MTU - underlay.Overhead()
	switch {
	case want == 0:
		return most, nil
	case want < minMTU || want > most:
		return 0, fault.New("use mtu", fmt.Sprint(want), fmt.Sprintf("it is not from %d to %d, which is what the underlay's MTU of %d leaves",
			minMTU, most, underlay.MTU), "pass -o mtu=N in that range or omit it")
	}
	return want, nil
}

// unusable are ranges that no network can have, and why. Those of 127.0.0.0/8 are the
// containers' own loopback, too.
var unusable = []struct {
	prefix netip.Prefix
	why    string
}{
	{topology.UplinkRange, "which carries the networks' uplinks"},
	{topology.UplinkRange6, "which carries the networks' uplinks"},
	{netip.MustParsePrefix("127.0.0.0/8"), notOneContainers("loopback")},
	{netip.MustParsePrefix("224.0.0.0/4"), notOneContainers("multicast")},
	{netip.MustParsePrefix("::/127"), notOneContainers("loopback")},
	{netip.MustParsePrefix("fe80::/10"), notOneContainers("link-local")},
	{netip.MustParsePrefix("ff00::/8"), notOneContainers("multicast")},
}

func notOneContainers(kind string) string {
	return "where " + kind + " addresses are, by which containers cannot reach each other"
}

func checkSubnets(subnets []Subnet) error {
	if len(subnets) == 0 {
		return fault.New("read", "subnets", "the network has no address range",
			"omit --ipam-driver null, and --ipv4=false unless --ipv6 is there")
	}
	for i, s := range subnets {
		for _, u := range unusable {
			if s.Subnet.Overlaps(u.prefix) {
				return fault.New("use subnet", s.Subnet.String(), "it overlaps "+u.prefix.String()+", "+u.why, "choose another --subnet")
			}
		}
		for _, other := range subnets[:i] {
			if s.Subnet.Overlaps(other.Subnet) {
				return fault.New("use subnet", s.Subnet.String(), "it overlaps "+other.Subnet.String()+" of the same network",
					"choose subnets that do not overlap")
			}
		}
	}
	return nil
}

// chooseVNI is called with mu held.
func (f *Fabric) chooseVNI(want topology.VNI) (topology.VNI, error) {
	if want == 0 {
		return f.freeVNI(firstVNI)
	}
	for _, n := range f.networks {
		if n.VNI == want {
			return 0, &fault.Error{Op: "use VNI", On: fmt.Sprint(want),
				Err: fmt.Errorf("%w by network %s", ErrVNITaken, n.label()),
				Fix: "pass another -o particle.vni=N, omit it, or remove that network"}
		}
	}
	return want, nil
}

// freeVNI is the first from least that no network on record has. It is called
// with mu held.
func (f *Fabric) freeVNI(least topology.VNI) (topology.VNI, error) {
	taken := map[topology.VNI]bool{}
	for _, n := range f.networks {
		taken[n.VNI] = true
	}
	for v := least; v <= topology.MaxVNI; v++ {
		if !taken[v] {
			return v, nil
		}
	}
	return 0, fault.New("choose VNI", "", fmt.Sprintf("all from %d are taken", firstVNI), "remove networks")
}

// label names the network for people.
func (n *network) label() string {
	if n.Name != "" {
		return n.Name
	}
	return n.ID.Short()
}

// DeleteNetwork removes the network; one that is not there is success. A network
// that a cluster shares is removed everywhere: the cluster is told first, since
// nothing is left here to tell it by afterwards. While
// processes live in it the namespace stays, and Reconcile removes it later:
// Docker ignores a refusal and forgets the network all the same.
func (f *Fabric) DeleteNetwork(ctx context.Context, id topology.NetworkID) error {
	n := f.network(id)
	if n == nil {
		return nil
	}
	n.work.Lock()
	defer n.work.Unlock()
	err := f.unshare(n)
	if f.inhabited(n) {
		f.mu.Lock()
		n.Doomed = true
		record := n.Network
		f.mu.Unlock()
		return errors.Join(err, f.o.Networks.Put(string(id), record))
	}
	return errors.Join(err, f.demolish(ctx, n))
}

// inhabited says whether a process that we placed still lives in the network.
func (f *Fabric) inhabited(n *network) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, e := range n.endpoints {
		if f.alive(e) {
			return true
		}
	}
	return false
}

// demolish takes the network away, kernel first: a record without a namespace
// is repaired at the next start, a namespace without a record would be a leak.
// The caller holds n.work.
func (f *Fabric) demolish(ctx context.Context, n *network) error {
	f.o.Resolvers.Stop(n.ID)
	f.mu.Lock()
	record := n.Network // its name may be learnt meanwhile
	f.mu.Unlock()
	// A sandbox key holds the namespace as well as a process would.
	if err := errors.Join(f.kernelGuard(record).Unprotect(ctx, n.ID), f.concealKeys(n), f.o.Segments.Remove(ctx, n.ID)); err != nil {
		f.mu.Lock()
		defer f.mu.Unlock()
		n.Doomed, n.creating, n.problem = true, false, err.Error()
		return err
	}
	if err := errors.Join(f.o.Peers.Delete(string(n.ID)), f.o.Networks.Delete(string(n.ID)), f.o.Kept.Delete(string(n.ID))); err != nil {
		f.mu.Lock()
		defer f.mu.Unlock()
		n.Doomed, n.creating, n.problem = true, false, err.Error()
		return err
	}
	return errors.Join(f.forget(n), f.publish())
}

// concealKeys undoes what Join did and Leave has not undone.
func (f *Fabric) concealKeys(n *network) error {
	f.mu.Lock()
	var keys []string
	for _, e := range n.endpoints {
		if e.Exposed {
			keys = append(keys, e.SandboxKey)
		}
	}
	f.mu.Unlock()
	var errs []error
	for _, key := range keys {
		errs = append(errs, f.o.Sandboxes.Conceal(key))
	}
	return errors.Join(errs...)
}

// forget drops the network from the maps, with its endpoints.
func (f *Fabric) forget(n *network) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.networks, n.ID)
	var errs []error
	for _, e := range n.endpoints {
		errs = append(errs, f.dropEndpoint(n, e))
	}
	for _, p := range f.pools {
		if p.Network == n.ID {
			p.Network, p.spent = "", true
		}
	}
	return errors.Join(errs...)
}

func (f *Fabric) network(id topology.NetworkID) *network {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.networks[id]
}

// subnetOf finds the range of the network that holds an address.
func (n *network) subnetOf(a netip.Addr) (Subnet, bool) {
	for _, s := range n.Subnets {
		if s.Subnet.Contains(a) {
			return s, true
		}
	}
	return Subnet{}, false
}

// ensureUplink gives the network its way out, once. The caller must not hold
// n.work.
func (f *Fabric) ensureUplink(ctx context.Context, n *network) error {
	f.mu.Lock()
	ready := n.Internal || n.uplinkUp
	f.mu.Unlock()
	if ready {
		return nil
	}
	n.work.Lock()
	defer n.work.Unlock()
	if err := f.stays(n); err != nil {
		return err
	}
	f.mu.Lock()
	ready = n.uplinkUp
	if !ready && n.Uplink == NoUplink {
		n.Uplink = f.freeUplink()
	}
	record, label := n.Network, n.label()
	f.mu.Unlock()
	if ready {
		return nil
	}
	if record.Uplink == NoUplink {
		return fault.New("make uplink of network", label, fmt.Sprintf("all %d uplinks of this host are taken", topology.MaxUplinks),
			"remove networks or create this one with --internal")
	}
	if err := f.o.Networks.Put(string(n.ID), record); err != nil {
		return err
	}
	if _, err := f.applyUplink(ctx, record); err != nil {
		return err
	}
	if err := f.kernelGuard(record).Protect(ctx, n.ID, record.hasIPv6()); err != nil { // the uplink is a new link
		return err
	}
	f.mu.Lock()
	n.uplinkUp = true
	f.mu.Unlock()
	return nil
}

// freeUplink is called with mu held.
func (f *Fabric) freeUplink() int {
	taken := map[int]bool{}
	for _, n := range f.networks {
		taken[n.Uplink] = true
	}
	for i := range topology.MaxUplinks {
		if !taken[i] {
			return i
		}
	}
	return NoUplink
}
