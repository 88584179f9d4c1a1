package fabric

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/topology"
)

// A network that a cluster shares has the same name, subnets and VNI on each of
// its hosts. A host owns blocks of the subnets, hands out addresses of these
// alone and makes nothing else local; for the rest it has routes to its peers.
// Which blocks and which peers is told by SetClaims and SetPeers, and kept on
// disk: a host that boots while the cluster's store is dead goes on with both.
//
// An address that is asked for by name (docker run --ip) and is in no block of
// this host is claimed for itself, and given back when its lease ends.

// Causes that callers may ask for.
var (
	ErrAlone      = errors.New("this host is in no cluster")
	ErrUnverified = errors.New("this host could not verify its blocks with the cluster for too long: another may have them by now")
	ErrLeaving    = errors.New("this host is leaving its cluster, and others may have its blocks by now")
	ErrLeft       = errors.New("this host has left the network's cluster, and others may have its blocks by now")
)

// storeLimit bounds each call that waits for the cluster's store.
const storeLimit = 3 * time.Second

// Scope says on which hosts a network is to be.
type Scope string

// The scopes; the default is ScopeCluster on a host that is in a cluster.
const (
	ScopeDefault Scope = ""
	ScopeLocal   Scope = "local"
	ScopeCluster Scope = "cluster"
)

// BlockSizes are the prefix lengths of the blocks that hosts claim, as asked for; 0 leaves
// one to Of.
type BlockSizes struct{ IPv4, IPv6 int }

// of is the one of an address's family.
func (b *BlockSizes) of(a netip.Addr) *int {
	if a.Is4() {
		return &b.IPv4
	}
	return &b.IPv6
}

// String names them as the options do by which they were asked for.
func (b BlockSizes) String() string {
	var options []string
	for _, family := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
		if bits, option := b.asked(family); bits != 0 {
			options = append(options, fmt.Sprintf("-o %s=%d", option, bits))
		}
	}
	return strings.Join(options, " ")
}

// asked is what was asked for of an address's family, and by which option.
func (b BlockSizes) asked(a netip.Addr) (bits int, option string) {
	if option = "particle.block"; a.Is6() {
		option = "particle.block6"
	}
	return *b.of(a), option
}

// Of is the prefix length of the blocks of a subnet or, if it has one, its range: what
// was asked for, else such that there are 64 blocks, but of no less than 16 and no more
// than 256 addresses (IPv6: 65,536). It is never shorter than the prefix that is cut.
func (b BlockSizes) Of(cut netip.Prefix) int {
	bits := *b.of(cut.Addr())
	if bits == 0 {
		least, most := 24, 28
		if cut.Addr().Is6() {
			least, most = 112, 124
		}
		bits = min(max(cut.Bits()+6, least), most)
	}
	return max(bits, cut.Bits())
}

// toShare says whether a network is to be the cluster's, or why it cannot be.
func (f *Fabric) toShare(spec NetworkSpec) (bool, error) {
	joined := f.o.Cluster.Joined()
	switch {
	case spec.Scope == ScopeLocal && spec.Shared != "":
		return false, fault.New("use scope", string(ScopeLocal), "particle.network says that other hosts have the network", "omit one of the two options")
	case !joined && (spec.Scope == ScopeCluster || spec.Shared != ""):
		return false, &fault.Error{Op: "share", On: "the network", Err: ErrAlone, Fix: "run `particle cluster init` or `particle cluster join` first, or omit the option"}
	case spec.Blocks != BlockSizes{} && (!joined || spec.Scope == ScopeLocal):
		return false, fault.New("use", spec.Blocks.String(), "only a network that a cluster shares has blocks", "omit -o particle.block and -o particle.block6")
	case !joined || spec.Scope == ScopeLocal:
		return false, nil
	}
	unused := spec.Blocks
	for _, s := range spec.Subnets {
		*unused.of(s.Subnet.Addr()) = 0
		if !s.Managed {
			return false, fault.New("share subnet", s.Subnet.String(), "Docker's own IPAM would give its addresses out on each host as if it were alone",
				"pass --ipam-driver particle, or -o particle.scope=local to keep the network on this host")
		}
		longest := s.Subnet.Addr().BitLen() - 2
		if s.Subnet.Bits() > longest {
			return false, fault.New("share subnet", s.Subnet.String(), "it has too few addresses for several hosts", "choose a larger --subnet, or pass -o particle.scope=local")
		}
		if block, option := spec.Blocks.asked(s.Subnet.Addr()); block != 0 && (block < s.Subnet.Bits() || block > longest) {
			return false, fault.New("use block", fmt.Sprint(block), fmt.Sprintf("it is not from %d to %d, as blocks of %s are", s.Subnet.Bits(), longest, s.Subnet),
				"pass -o "+option+"=N in that range or omit it")
		}
	}
	if unused != (BlockSizes{}) && spec.Shared == "" { // others have it as it is
		family := "IPv6"
		if unused.IPv4 != 0 {
			family = "IPv4"
		}
		return false, fault.New("use", unused.String(), "the network has no "+family+" subnet", "omit the option, or pass a --subnet")
	}
	return true, nil
}

// share makes a new network the cluster's and enters what the cluster has made
// of it into the record. On failure the cluster does not have it. The caller
// holds n.work.
func (f *Fabric) share(ctx context.Context, n *network, spec NetworkSpec) error {
	ask := SharedSpec{
		ID: spec.Shared, Network: n.ID, VNI: spec.VNI, MTU: n.MTU, Internal: n.Internal,
		Blocks: spec.Blocks, Subnets: n.Subnets,
	}
	f.mu.Lock()
	err := f.claimPools(n, spec.Shared)
	for _, s := range n.Subnets {
		ask.Ranges = append(ask.Ranges, s.Range)
		if err == nil && spec.Shared == "" {
			err = checkRange(s.Range, spec.Blocks)
		}
	}
	if n.sharing = spec.Shared; n.sharing == "" {
		n.sharing = topology.SharedID(n.ID)
	}
	f.mu.Unlock()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, storeLimit)
	defer cancel()
	got, ok, err := f.o.Cluster.Share(ctx, ask)
	if err == nil && !ok {
		err = ErrAlone // it has left meanwhile
	}
	if err == nil {
		err = f.accept(n, got, spec.Blocks)
	}
	if err != nil {
		err = errors.Join(fixed("share network", n.ID.Short(), err, "repeat it when `particle cluster status` shows the store, or pass -o particle.scope=local"), f.retract(n))
	}
	return err
}

// checkRange says what is wrong with a range that blocks are to be cut from: one that has
// room for a single block would be the first host's alone. Only the network's creator is
// asked: who made one before this was refused has it, and so do the other hosts.
func checkRange(r netip.Prefix, blocks BlockSizes) error {
	if !r.IsValid() {
		return nil
	}
	longest := r.Addr().BitLen() - 2
	if r.Bits() > longest {
		return fault.New("share range", r.String(), "it has too few addresses for several hosts", "choose a larger --ip-range, or pass -o particle.scope=local")
	}
	if block, option := blocks.asked(r.Addr()); block != 0 && block < r.Bits() {
		return fault.New("use block", fmt.Sprint(block), fmt.Sprintf("it is not from %d to %d, as blocks of the range %s are", r.Bits(), longest, r),
			"pass -o "+option+"=N in that range or omit it, or choose a larger --ip-range")
	}
	return nil
}

// fixed gives an error that tells no remedy one.
func fixed(op, on string, err error, fix string) error {
	var known *fault.Error
	if errors.As(err, &known) {
		return err
	}
	return &fault.Error{Op: op, On: on, Err: err, Fix: fix}
}

// accept enters the cluster's answer into the record and lets the network's pools
// hand out its blocks.
func (f *Fabric) accept(n *network, got Shared, blocks BlockSizes) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, other := range f.networks {
		if other != n && other.VNI == got.VNI {
			return &fault.Error{Op: "use VNI", On: fmt.Sprint(got.VNI), Err: fmt.Errorf("%w by network %s of this host", ErrVNITaken, other.label()),
				Fix: "remove that network, or create this one with another -o particle.vni=N"}
		}
	}
	if most := f.o.Underlay.MTU - f.o.Underlay.Overhead(); got.MTU > most {
		return fault.New("use mtu", fmt.Sprint(got.MTU), fmt.Sprintf("this host's underlay leaves %d", most),
			"raise the underlay's MTU here, or create the network with a smaller -o mtu=N")
	}
	n.Shared, n.VNI, n.Block, n.Block6 = got.ID, got.VNI, blocks.IPv4, blocks.IPv6
	if got.MTU != 0 {
		n.MTU = got.MTU
	}
	n.Claims = blocksOf(got.Claims)
	var errs []error
	for _, p := range f.pools {
		if p.Network == n.ID {
			errs = append(errs, p.divide(n.Claims))
		}
	}
	return errors.Join(errs...)
}

// retract takes a network that this host has brought into the cluster out of it
// again; one that others have stays theirs.
func (f *Fabric) retract(n *network) error {
	f.mu.Lock()
	id := n.sharing
	f.mu.Unlock()
	if id != topology.SharedID(n.ID) {
		return nil
	}
	return f.o.Cluster.Unshare(id)
}

// unshare tells the cluster that a user has removed the network here. What Docker
// takes back before it has listed it, of a network that others have, no user has
// removed: our own plugin has failed to make it.
func (f *Fabric) unshare(n *network) error {
	f.mu.Lock()
	id, stillborn := n.Shared, n.Name == "" && n.Shared != topology.SharedID(n.ID)
	f.mu.Unlock()
	if id == "" || stillborn {
		return nil
	}
	return f.o.Cluster.Unshare(id)
}

// blocksOf leaves out the single addresses, which follow their leases.
func blocksOf(claims []netip.Prefix) []netip.Prefix {
	blocks := slices.DeleteFunc(slices.Clone(claims), netip.Prefix.IsSingleIP)
	slices.SortFunc(blocks, netip.Prefix.Compare)
	return slices.Compact(blocks)
}

// SharedNetwork is a network of this host that a cluster shares.
type SharedNetwork struct {
	ID       topology.SharedID
	Network  topology.NetworkID
	Name     string
	VNI      topology.VNI
	MTU      int // bytes
	Internal bool
	Blocks   BlockSizes
	Subnets  []Subnet
	Ranges   []netip.Prefix  // of the subnet of the same index; invalid: all of it
	Claims   []netip.Prefix  // blocks and single addresses of this host
	Leaving  []netip.Prefix  // blocks that it has lost, and that containers have addresses of
	Peers    []topology.Peer // as SetPeers told last, before a restart of the plugin too; not to be changed
	Live     bool            // a container lives on it
	Doomed   bool            // removed here, but for those
}

// Shared lists the networks that a cluster shares. One that Share is deciding
// about is among them, without claims.
func (f *Fabric) Shared() []SharedNetwork {
	f.mu.Lock()
	defer f.mu.Unlock()
	var all []SharedNetwork
	for _, n := range f.networks {
		if n.sharedAs() == "" {
			continue
		}
		s := n.sharedNetwork()
		s.Peers = n.peers // nobody changes the list, and containers wait while mu is held
		for _, e := range n.endpoints {
			if s.Live = f.alive(e); s.Live {
				break
			}
		}
		all = append(all, s)
	}
	slices.SortFunc(all, func(a, b SharedNetwork) int { return cmp.Compare(a.ID, b.ID) })
	return all
}

// FindShared is Shared of one network, but for Peers and Live: of a thousand networks
// that are each looked up not all are to be asked for each time.
func (f *Fabric) FindShared(id topology.SharedID) (s SharedNetwork, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, n := range f.networks {
		if n.sharedAs() == id && id != "" {
			return n.sharedNetwork(), true
		}
	}
	return SharedNetwork{}, false
}

// sharedAs is the network's id in the cluster, which Share may be deciding about,
// empty if it has none. The caller holds mu.
func (n *network) sharedAs() topology.SharedID { return cmp.Or(n.Shared, n.sharing) }

// sharedNetwork is all but Peers and Live. The caller holds mu.
func (n *network) sharedNetwork() SharedNetwork {
	s := SharedNetwork{
		ID: n.sharedAs(), Network: n.ID, Name: n.Name, VNI: n.VNI, MTU: n.MTU, Internal: n.Internal, Blocks: BlockSizes{IPv4: n.Block, IPv6: n.Block6},
		Subnets: slices.Clone(n.Subnets), Claims: slices.Clone(n.Claims), Leaving: slices.Clone(n.Leaving), Doomed: n.Doomed,
	}
	for _, subnet := range n.Subnets {
		s.Ranges = append(s.Ranges, subnet.Range)
	}
	for a := range n.singles {
		s.Claims = append(s.Claims, netip.PrefixFrom(a, a.BitLen()))
	}
	slices.SortFunc(s.Claims, netip.Prefix.Compare)
	return s
}

// shared finds a network that a cluster shares.
func (f *Fabric) shared(op string, id topology.SharedID) (*network, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, n := range f.networks {
		if n.Shared == id && id != "" {
			return n, nil
		}
	}
	return nil, &fault.Error{Op: op, On: id.Short(), Err: ErrNoNetwork, Fix: "it is tried again by itself"}
}
