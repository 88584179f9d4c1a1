package etcd

import (
	"context"
	"encoding/json"
	"errors"
	"strings"

	"github.com/particle-net/particle/control"
	"github.com/particle-net/particle/topology"
)

// kind is how a watch reads what a part of the store has.
type kind[T any] struct {
	// read makes a value of what a key holds: none, if it is there and no more. With an
	// error, because it cannot be read, it is what the key itself tells.
	read func(key, value string) ([]T, error)
	// group says which keys belong to one value, and join makes that of them: one at most.
	group func(key string) string
	join  func(found map[string][]T) []T
	same  func(before, now T) bool // whether a value replaces the one before, or is another
}

// errUnnamed is what is wrong with a record that is none of ours, whatever wrote it.
var errUnnamed = errors.New("it does not say whose it is")

// record reads one that has its name in it; there is what the key tells of it.
func record[T any](there T, value string, named func(T) bool) ([]T, error) {
	var v T
	err := json.Unmarshal([]byte(value), &v)
	if err == nil && !named(v) {
		err = errUnnamed
	}
	if err != nil {
		v = there
	}
	return []T{v}, err
}

// each key is a group of its own.
func each(key string) string { return key }

func alone[T any](found map[string][]T) []T {
	for _, values := range found {
		return values
	}
	return nil
}

func always[T any](T, T) bool { return true }

// WatchRoutes implements control.Distributor.
func (s *Store) WatchRoutes(ctx context.Context, n control.Network) <-chan control.Update[control.Route] {
	return watch(ctx, s, s.k.net(n.ID), kind[control.Route]{
		read: func(key, value string) ([]control.Route, error) {
			if id, p, h, ok := s.k.parseVouched(key, value); ok {
				r := h.route(id, p)
				r.Vouched = true
				return []control.Route{r}, nil
			}
			id, p, ok := s.k.parseClaim(key)
			if !ok {
				return nil, nil
			}
			h, err := readHolding(value)
			if err != nil {
				return nil, err // whose it is, no key tells
			}
			return []control.Route{h.route(id, p)}, nil
		},
		group: each, join: alone[control.Route],
		same: func(a, b control.Route) bool { return a.Node == b.Node },
	})
}

// WatchNetworks implements control.Directory.
func (s *Store) WatchNetworks(ctx context.Context) <-chan control.Update[control.Network] {
	return watch(ctx, s, s.k.specs(), kind[control.Network]{
		read: func(key, value string) ([]control.Network, error) {
			id := topology.SharedID(strings.TrimPrefix(key, s.k.specs()))
			return record(control.Network{ID: id}, value, func(n control.Network) bool { return n.ID == id })
		},
		group: each, join: alone[control.Network], same: always[control.Network],
	})
}

// WatchNodes implements control.Directory.
func (s *Store) WatchNodes(ctx context.Context) <-chan control.Update[control.NodeState] {
	return watch(ctx, s, s.k.nodes(), kind[control.NodeState]{
		read: func(key, value string) ([]control.NodeState, error) {
			id, ok := strings.CutSuffix(strings.TrimPrefix(key, s.k.nodes()), "/info")
			if !ok {
				return nil, nil
			}
			there := control.Node{ID: topology.NodeID(id)}
			node, err := record(there, value, func(n control.Node) bool { return n.ID == there.ID })
			return []control.NodeState{{Node: node[0]}}, err
		},
		group: func(key string) string { return key[:strings.LastIndexByte(key, '/')+1] },
		join: func(found map[string][]control.NodeState) []control.NodeState {
			for _, values := range found {
				for _, n := range values {
					_, n.Alive = found[s.k.alive(n.ID)]
					return []control.NodeState{n}
				}
			}
			return nil
		},
		same: always[control.NodeState],
	})
}
