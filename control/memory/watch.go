package memory

import (
	"context"
	"maps"
	"reflect"
	"slices"

	"github.com/particle-net/particle/control"
	"github.com/particle-net/particle/topology"
)

// WatchRoutes implements control.Distributor.
func (s *Store) WatchRoutes(ctx context.Context, n control.Network) <-chan control.Update[control.Route] {
	type key struct {
		place
		node    topology.NodeID
		vouched bool
	}
	return watch(ctx, s, func(now state) []control.Route { return now.routes(n.ID) },
		func(r control.Route) key { return key{place{r.Network, r.Prefix}, r.Node, r.Vouched} })
}

// WatchNetworks implements control.Directory.
func (s *Store) WatchNetworks(ctx context.Context) <-chan control.Update[control.Network] {
	return watch(ctx, s, func(now state) []control.Network { return slices.Collect(maps.Values(now.networks)) },
		func(n control.Network) topology.SharedID { return n.ID })
}

// WatchNodes implements control.Directory.
func (s *Store) WatchNodes(ctx context.Context) <-chan control.Update[control.NodeState] {
	return watch(ctx, s, func(now state) []control.NodeState { return slices.Collect(maps.Values(now.nodes)) },
		func(n control.NodeState) topology.NodeID { return n.ID })
}

// seen is what a watch has looked at last.
type seen[K comparable, T any] struct {
	whole    bool // since it was last down, the whole list was delivered
	down     bool
	values   map[K]T
	instance string
}

// watch compares what there is with what it has delivered, whenever something
// has changed.
func watch[K comparable, T any](ctx context.Context, s *Store, list func(state) []T, key func(T) K) <-chan control.Update[T] {
	out := make(chan control.Update[T])
	go func() {
		defer close(out)
		var last seen[K, T]
		for {
			s.c.mu.Lock()
			now, changed, cut, hush := s.c.now.clone(), s.c.changed, s.cut, s.hush
			s.c.mu.Unlock()
			var u control.Update[T]
			news := false
			if cut || !hush {
				u, news = last.step(now, cut, list, key)
			}
			if news {
				select {
				case out <- u:
				case <-ctx.Done():
					return
				case <-s.closed:
					return
				}
				continue // more may have happened meanwhile
			}
			select {
			case <-changed:
			case <-ctx.Done():
				return
			case <-s.closed:
				return
			}
		}
	}()
	return out
}

// step is what to tell next, if anything.
func (w *seen[K, T]) step(now state, cut bool, list func(state) []T, key func(T) K) (u control.Update[T], news bool) {
	if cut {
		news, w.down, w.whole = !w.down, true, false
		return control.Update[T]{Down: control.ErrUnreachable}, news
	}
	values := map[K]T{}
	for _, v := range list(now) {
		values[key(v)] = v
	}
	before := w.values
	again := !w.whole || w.instance != now.instance
	*w = seen[K, T]{whole: true, values: values, instance: now.instance}
	u = control.Update[T]{Instance: now.instance, Revision: now.revision}
	if again {
		u.Whole, u.Put = true, slices.Collect(maps.Values(values))
		return u, true
	}
	for k, v := range values {
		if old, ok := before[k]; !ok || !reflect.DeepEqual(old, v) {
			u.Put = append(u.Put, v)
		}
	}
	for k, v := range before {
		if _, ok := values[k]; !ok {
			u.Deleted = append(u.Deleted, v)
		}
	}
	return u, len(u.Put)+len(u.Deleted) > 0
}
