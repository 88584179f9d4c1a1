package controltest

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/particle-net/particle/control"
	"github.com/particle-net/particle/topology"
)

// patience ends a wait for something that does not come.
const patience = time.Minute

// Node is the record of a host by its number, from 1 to 65000.
func Node(i int) control.Node {
	a, b := byte(i>>8), byte(i)
	return control.Node{
		ID: topology.NodeID(fmt.Sprintf("%032x", i)), Name: fmt.Sprintf("h%d", i),
		VTEP: netip.AddrFrom4([4]byte{192, 168, a, b}), MAC: net.HardwareAddr{2, 0, 0, 0, a, b},
		Version: "test", Boot: "1",
	}
}

// Network is an unregistered network by its number, with 256 blocks of 256
// IPv4 addresses, and blocks of IPv6.
func Network(i int) control.Network {
	return control.Network{
		ID: topology.SharedID(fmt.Sprintf("%064x", 1<<40+i)), Name: fmt.Sprintf("net%d", i), MTU: 1450, Creator: Node(1).ID,
		Subnets: []control.Subnet{
			{Prefix: netip.MustParsePrefix("10.77.0.0/16"), Gateway: netip.MustParseAddr("10.77.255.254"), Aux: map[string]netip.Addr{"printer": netip.MustParseAddr("10.77.200.5")}, Block: 24},
			{Prefix: netip.MustParsePrefix("fd77::/64"), Block: 80},
		},
	}
}

// Table follows a watch and knows what it has delivered.
type Table[K comparable, T any] struct {
	t       testing.TB
	updates <-chan control.Update[T]
	key     func(T) K

	Have     map[K]T
	Down     error  // the last update's
	Wholes   int    // whole lists so far
	Instance string // of the last one
	Revision int64
}

// Follow begins to read a watch.
func Follow[K comparable, T any](t testing.TB, updates <-chan control.Update[T], key func(T) K) *Table[K, T] {
	return &Table[K, T]{t: t, updates: updates, key: key, Have: map[K]T{}}
}

// RouteKey is what tells routes apart.
type RouteKey struct {
	Prefix  string
	Node    topology.NodeID
	Vouched bool
}

// Key of a route within its network.
func Key(r control.Route) RouteKey { return RouteKey{r.Prefix.String(), r.Node, r.Vouched} }

// Next takes one update in; false if the channel is closed.
func (w *Table[K, T]) Next() bool {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), patience)
	defer cancel()
	select {
	case u, open := <-w.updates:
		if open {
			w.take(u)
		}
		return open
	case <-ctx.Done():
		w.t.Fatalf("nothing more came; have %v, down: %v", slices.Collect(maps.Values(w.Have)), w.Down)
		return false
	}
}

func (w *Table[K, T]) take(u control.Update[T]) {
	w.t.Helper()
	w.Down = u.Down
	switch {
	case u.Down != nil:
		if u.Whole || len(u.Put)+len(u.Deleted) > 0 {
			w.t.Errorf("an update that tells of a break carries more: %+v", u)
		}
		return
	case u.Whole && len(u.Deleted) > 0:
		w.t.Errorf("a whole list with deletions: %+v", u)
	case !u.Whole && w.Wholes == 0:
		w.t.Errorf("the first update is no whole list: %+v", u)
	}
	if u.Whole {
		w.Wholes++
		w.Instance, w.Revision = u.Instance, u.Revision
		clear(w.Have)
	}
	for _, v := range u.Put {
		w.Have[w.key(v)] = v
	}
	for _, v := range u.Deleted {
		delete(w.Have, w.key(v))
	}
}

// Until reads on until the condition holds; it may hold already.
func (w *Table[K, T]) Until(what string, done func() bool) {
	w.t.Helper()
	for !done() {
		if !w.Next() {
			w.t.Fatalf("the watch has ended; %s has not come", what)
		}
	}
}

// UntilHave reads on until exactly so many values are there and it is healthy.
func (w *Table[K, T]) UntilHave(n int) {
	w.t.Helper()
	w.Until(fmt.Sprintf("%d values", n), func() bool { return w.Wholes > 0 && w.Down == nil && len(w.Have) == n })
}

// UntilEnd reads the rest; the channel must be closed.
func (w *Table[K, T]) UntilEnd() {
	w.t.Helper()
	for w.Next() {
	}
}
