package etcd

import (
	"context"
	"encoding/json"
	"errors"
	"strings"

	"github.com/particle-net/particle/control"
	"github.com/particle-net/particle/topology"
)

// kind is how a watch reads what a part of the store has. Several keys may be of one value;
// what is left of it without any of them is the zero value.
type kind[T any] struct {
	of func(key string) string // names the value
	// set gives a value what a key holds. With an error, because that cannot be read, it is
	// what the key itself tells.
	set   func(v T, key, value string) (T, error)
	unset func(v T, key string) T  // takes that back
	keep  func(v, old T) T         // gives a value what the old one had of a key that cannot be read any more
	left  func(v T) bool           // whether anything is known
	told  func(v T) bool           // whether that is enough to tell others
	same  func(before, now T) bool // whether a value replaces the one before, or is another
}

// errUnnamed is what is wrong with a record that is none of ours, whatever wrote it.
var errUnnamed = errors.New("it does not say whose it is")

// record reads one that has its name in it; there is what the key tells of it.
func record[T any](there T, value string, named func(T) bool) (T, error) {
	var v T
	err := json.Unmarshal([]byte(value), &v)
	if err == nil && !named(v) {
		err = errUnnamed
	}
	if err != nil {
		return there, err
	}
	return v, nil
}

// single is the kind of what has one key, below prefix.
func single[T any](prefix string, set func(key, value string) (T, error), told func(T) bool, same func(before, now T) bool) kind[T] {
	return kind[T]{
		of:    func(key string) string { return strings.TrimPrefix(key, prefix) },
		set:   func(_ T, key, value string) (T, error) { return set(key, value) },
		unset: func(T, string) (none T) { return none },
		keep:  func(_, old T) T { return old },
		left:  told, told: told, same: same,
	}
}

func always[T any](T, T) bool { return true }

// WatchRoutes implements control.Distributor.
func (s *Store) WatchRoutes(ctx context.Context, n control.Network) <-chan control.Update[control.Route] {
	return watch(ctx, s, s.k.net(n.ID), s.routes(n.ID))
}

func (s *Store) routes(id topology.SharedID) kind[control.Route] {
	return single(s.k.net(id), func(key, value string) (none control.Route, err error) {
		if id, p, h, ok := s.k.parseVouched(key, value); ok {
			r := h.route(id, p)
			r.Vouched = true
			return r, nil
		}
		id, p, ok := s.k.parseClaim(key)
		if !ok {
			return none, nil
		}
		h, err := readHolding(value)
		if err != nil {
			return none, err // whose it is, no key tells
		}
		return h.route(id, p), nil
	}, func(r control.Route) bool { return r.Node != "" }, func(a, b control.Route) bool { return a.Node == b.Node })
}

// WatchNetworks implements control.Directory.
func (s *Store) WatchNetworks(ctx context.Context) <-chan control.Update[control.Network] {
	return watch(ctx, s, s.k.specs(), single(s.k.specs(), func(key, value string) (control.Network, error) {
		id := topology.SharedID(strings.TrimPrefix(key, s.k.specs()))
		return record(control.Network{ID: id}, value, func(n control.Network) bool { return n.ID == id })
	}, func(n control.Network) bool { return n.ID != "" }, always[control.Network]))
}

// WatchNodes implements control.Directory.
func (s *Store) WatchNodes(ctx context.Context) <-chan control.Update[control.NodeState] {
	return watch(ctx, s, s.k.nodes(), s.nodes())
}

// nodes is the kind of what has two keys: the record of a host, and that its lease lives.
func (s *Store) nodes() kind[control.NodeState] {
	parse := func(key string) (id, what string) {
		id, what, _ = strings.Cut(strings.TrimPrefix(key, s.k.nodes()), "/")
		return id, what
	}
	return kind[control.NodeState]{
		of: func(key string) string { id, _ := parse(key); return id },
		set: func(n control.NodeState, key, value string) (control.NodeState, error) {
			id, what := parse(key)
			var err error
			switch what {
			case "info":
				there := control.Node{ID: topology.NodeID(id)}
				n.Node, err = record(there, value, func(r control.Node) bool { return r.ID == there.ID })
			case "alive":
				n.Alive = true
			}
			return n, err
		},
		unset: func(n control.NodeState, key string) control.NodeState {
			switch _, what := parse(key); what {
			case "info":
				n.Node = control.Node{}
			case "alive":
				n.Alive = false
			}
			return n
		},
		keep: func(n, old control.NodeState) control.NodeState {
			n.Node = old.Node
			return n
		},
		left: func(n control.NodeState) bool { return n.ID != "" || n.Alive },
		told: func(n control.NodeState) bool { return n.ID != "" },
		same: always[control.NodeState],
	}
}
