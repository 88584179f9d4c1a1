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
	// decode makes a value of a group of keys; group says which keys belong to one
	// value. It gives one value at most for a group.
	decode func(map[string]string) []T
	group  func(key string) string
	same   func(before, now T) bool // whether a value replaces the one before, or is another
	// check says what is wrong with what a key holds, and what the key itself tells of it.
	check func(key, value string) (there []T, err error)
}

// WatchRoutes implements control.Distributor.
func (s *Store) WatchRoutes(ctx context.Context, n control.Network) <-chan control.Update[control.Route] {
	return watch(ctx, s, s.k.net(n.ID), kind[control.Route]{
		decode: func(found map[string]string) []control.Route {
			var out []control.Route
			for key, value := range found {
				if id, p, h, ok := s.k.parseVouched(key, value); ok {
					r := h.route(id, p)
					r.Vouched = true
					out = append(out, r)
				}
				if id, p, ok := s.k.parseClaim(key); ok {
					var h holding
					_ = json.Unmarshal([]byte(value), &h) // check has read it
					out = append(out, h.route(id, p))
				}
			}
			return out
		},
		check: func(key, value string) ([]control.Route, error) {
			if _, _, ok := s.k.parseClaim(key); !ok {
				return nil, nil
			}
			var h holding
			err := json.Unmarshal([]byte(value), &h)
			if err == nil && h.Node == "" {
				err = errUnnamed
			}
			return nil, err // whose it is, no key tells
		},
		group: func(key string) string { return key },
		same:  func(a, b control.Route) bool { return a.Node == b.Node },
	})
}

// WatchNetworks implements control.Directory.
func (s *Store) WatchNetworks(ctx context.Context) <-chan control.Update[control.Network] {
	return watch(ctx, s, s.k.specs(), kind[control.Network]{
		decode: func(found map[string]string) []control.Network {
			var out []control.Network
			for _, value := range found {
				var n control.Network
				_ = json.Unmarshal([]byte(value), &n) // likewise
				out = append(out, n)
			}
			return out
		},
		check: func(key, value string) ([]control.Network, error) {
			id := topology.SharedID(strings.TrimPrefix(key, s.k.specs()))
			var n control.Network
			err := json.Unmarshal([]byte(value), &n)
			if err == nil && n.ID != id {
				err = errUnnamed
			}
			return []control.Network{{ID: id}}, err
		},
		group: func(key string) string { return key },
		same:  always[control.Network],
	})
}

// WatchNodes implements control.Directory.
func (s *Store) WatchNodes(ctx context.Context) <-chan control.Update[control.NodeState] {
	infoOf := func(key string) (topology.NodeID, bool) {
		id, ok := strings.CutSuffix(strings.TrimPrefix(key, s.k.nodes()), "/info")
		return topology.NodeID(id), ok
	}
	return watch(ctx, s, s.k.nodes(), kind[control.NodeState]{
		decode: func(found map[string]string) []control.NodeState {
			var out []control.NodeState
			for key, value := range found {
				if id, ok := infoOf(key); ok {
					n := control.NodeState{}
					_ = json.Unmarshal([]byte(value), &n.Node) // likewise
					_, n.Alive = found[s.k.alive(id)]
					out = append(out, n)
				}
			}
			return out
		},
		check: func(key, value string) ([]control.NodeState, error) {
			id, ok := infoOf(key)
			if !ok {
				return nil, nil
			}
			var n control.Node
			err := json.Unmarshal([]byte(value), &n)
			if err == nil && n.ID != id {
				err = errUnnamed
			}
			return []control.NodeState{{Node: control.Node{ID: id}}}, err
		},
		group: func(key string) string { return key[:strings.LastIndexByte(key, '/')+1] },
		same:  always[control.NodeState],
	})
}

func always[T any](T, T) bool { return true }

// errUnnamed is what is wrong with a record that is none of ours, whatever wrote it.
var errUnnamed = errors.New("it does not say whose it is")
