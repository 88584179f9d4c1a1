package controltest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/particle-net/particle/control"
	"github.com/particle-net/particle/topology"
)

// History records what hosts asked a store for and what it answered. It is safe
// for concurrent use.
type History struct {
	begun    time.Time
	networks map[topology.SharedID]control.Network

	mu  sync.Mutex
	ops []operation
}

// NewHistory begins a history of claims on the networks, none of which has
// claims yet.
func NewHistory(of ...control.Network) *History {
	h := &History{begun: time.Now(), networks: map[topology.SharedID]control.Network{}}
	for _, n := range of {
		h.networks[n.ID] = n
	}
	return h
}

// action is what was asked for.
type action int

const (
	claimBlock action = iota
	claimAddress
	release
	claimNetwork
	nameNetwork
)

func (a action) String() string {
	return [...]string{"claim block", "claim address", "release", "register network", "name network"}[a]
}

// operation is one call and its answer.
type operation struct {
	action     action
	node       topology.NodeID
	network    topology.SharedID
	subnet     netip.Prefix // of a block asked for
	prefix     netip.Prefix // claimed or released; invalid if none was told
	name       string
	vni        topology.VNI // asked for, or granted
	chosen     bool         // the VNI was asked for
	err        error
	call, back int64 // ns since the history began
}

// unknown says that the operation may or may not have happened, and may still.
func (o operation) unknown() bool { return errors.Is(o.err, control.ErrUnreachable) }

func (o operation) String() string {
	what := o.name
	if o.prefix.IsValid() {
		what = o.prefix.String()
	}
	if o.vni != 0 {
		what += fmt.Sprintf(" VNI %d", o.vni)
	}
	outcome := "done"
	if o.err != nil {
		outcome = o.err.Error()
	}
	return fmt.Sprintf("%9.3f-%9.3f ms host %s: %s %s %s: %s", float64(o.call)/1e6, float64(o.back)/1e6, strings.TrimLeft(string(o.node), "0"), o.action, o.network[50:], what, outcome)
}

// add records one operation that began at call.
func (h *History) add(o operation, call time.Time) {
	o.call, o.back = int64(call.Sub(h.begun)), int64(time.Since(h.begun))
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ops = append(h.ops, o)
}

// Len is the number of operations so far, and of those whose outcome is unknown.
func (h *History) Len() (all, unknown int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, o := range h.ops {
		if o.unknown() {
			unknown++
		}
	}
	return len(h.ops), unknown
}

// Recorded is an Allocator whose calls a history records.
type Recorded struct {
	control.Allocator
	h    *History
	node topology.NodeID
}

// Record has the history record all that a host asks its store for.
func (h *History) Record(a control.Allocator, node topology.NodeID) Recorded {
	return Recorded{Allocator: a, h: h, node: node}
}

// ClaimBlock implements control.Allocator.
func (r Recorded) ClaimBlock(ctx context.Context, id topology.SharedID, subnet netip.Prefix) (control.Claim, error) {
	call := time.Now()
	c, err := r.Allocator.ClaimBlock(ctx, id, subnet)
	r.h.add(operation{action: claimBlock, node: r.node, network: id, subnet: subnet, prefix: c.Prefix, err: err}, call)
	return c, err
}

// ClaimAddress implements control.Allocator.
func (r Recorded) ClaimAddress(ctx context.Context, id topology.SharedID, addr netip.Addr, holder string) (control.Claim, error) {
	call := time.Now()
	c, err := r.Allocator.ClaimAddress(ctx, id, addr, holder)
	r.h.add(operation{action: claimAddress, node: r.node, network: id, prefix: netip.PrefixFrom(addr, addr.BitLen()), err: err}, call)
	return c, err
}

// Release implements control.Allocator.
func (r Recorded) Release(ctx context.Context, c control.Claim) error {
	call := time.Now()
	err := r.Allocator.Release(ctx, c)
	r.h.add(operation{action: release, node: r.node, network: c.Network, prefix: c.Prefix, err: err}, call)
	return err
}

// ClaimNetwork implements control.Allocator.
func (r Recorded) ClaimNetwork(ctx context.Context, n control.Network) (topology.VNI, error) {
	call := time.Now()
	vni, err := r.Allocator.ClaimNetwork(ctx, n)
	o := operation{action: claimNetwork, node: r.node, network: n.ID, vni: vni, chosen: n.VNI != 0, err: err}
	if o.chosen {
		o.vni = n.VNI
	}
	r.h.add(o, call)
	return vni, err
}

// NameNetwork implements control.Allocator.
func (r Recorded) NameNetwork(ctx context.Context, n control.Network) error {
	call := time.Now()
	err := r.Allocator.NameNetwork(ctx, n)
	r.h.add(operation{action: nameNetwork, node: r.node, network: n.ID, name: n.Name, err: err}, call)
	return err
}

// Check fails the test unless some order of the operations, each between its
// call and its answer, explains all answers: a claim that was granted met no
// other, and one that was refused met one. Releases, and operations of unknown
// outcome, may have happened at any time after their call, or never.
func Check(t testing.TB, h *History) {
	t.Helper()
	if err := h.check(); err != nil {
		t.Error(err)
	}
}

// errOrder is the cause of a history without such an order.
var errOrder = errors.New("no order of the operations explains their answers")

// check looks at each thing that can be owned by itself, which misses no double
// owner: if there is an order of all operations, there is one for each thing.
func (h *History) check() error {
	h.mu.Lock()
	ops := slices.Clone(h.ops)
	h.mu.Unlock()
	var faults []error
	parts := h.split(ops)
	for _, name := range slices.Sorted(maps.Keys(parts)) {
		faults = append(faults, parts[name].check(name))
	}
	return errors.Join(faults...)
}

func list(ops []operation) string {
	slices.SortFunc(ops, func(a, b operation) int { return int(a.call - b.call) })
	var b strings.Builder
	for _, o := range ops {
		fmt.Fprintln(&b, " ", o)
	}
	return b.String()
}
