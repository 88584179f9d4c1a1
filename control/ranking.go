package control

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	"github.com/particle-net/particle/topology"
)

// ranking is what routes come to.
type ranking struct {
	own   netip.Addr
	peers []topology.Peer
}

// fewRoutes is how many may come at once to be added to a ranking.
const fewRoutes = 8

// order lists the routes, the one that wins before all others of its prefix.
func (r *Routes) order() []Route {
	rank := func(a, b Route) int {
		if a.Vouched != b.Vouched {
			if b.Vouched {
				return -1
			}
			return 1
		}
		if c := a.VTEP.Compare(b.VTEP); c != 0 {
			return c
		}
		return cmp.Or(strings.Compare(string(a.Node), string(b.Node)), a.Prefix.Compare(b.Prefix))
	}
	current, held := make([]Route, 0, len(r.hold.kept)), []Route(nil)
	r.hold.Each(func(route Route) { current = append(current, route) }, Current)
	r.hold.Each(func(route Route) { held = append(held, route) }, Withdrawn, Doubted)
	slices.SortFunc(current, rank)
	slices.SortFunc(held, rank)
	return append(current, held...)
}

// Peers are the other hosts, in order of their VTEPs, each with what it answers
// for. What has this host's own tunnel address is left out, whoever announced it:
// a host that was set up anew has another id than it had. The list is kept, and not
// to be changed.
func (r *Routes) Peers(own netip.Addr) []topology.Peer {
	if r.ranked != nil && r.ranked.own == own && r.ranked.grow(r.come, r.self) {
		r.come = nil
		return r.ranked.peers
	}
	routes := r.order()
	taken := make(map[netip.Prefix]bool, len(routes))
	at := make(map[netip.Addr]int, len(routes))
	peers := make([]topology.Peer, 0, len(routes))
	for _, route := range routes {
		if taken[route.Prefix] {
			continue
		}
		taken[route.Prefix] = true
		if !route.leads(r.self, own) {
			continue
		}
		i, known := at[route.VTEP]
		if !known {
			i = len(peers)
			at[route.VTEP] = i
			peers = append(peers, topology.Peer{VTEP: route.VTEP, MAC: route.MAC, Port: route.Port})
		}
		peers[i].Prefixes = append(peers[i].Prefixes, route.Prefix)
	}
	for i := range peers {
		slices.SortFunc(peers[i].Prefixes, netip.Prefix.Compare)
	}
	slices.SortFunc(peers, func(a, b topology.Peer) int { return a.VTEP.Compare(b.VTEP) })
	r.ranked, r.come = &ranking{own, slices.Clone(peers)}, nil // there may be many routes for each
	return r.ranked.peers
}

// leads says whether a route is one to another host.
func (r Route) leads(self topology.NodeID, own netip.Addr) bool {
	return r.Node != self && r.VTEP.IsValid() && r.VTEP != own
}

// grow adds routes to prefixes that no other is to, or says that all are to be ranked
// anew. Earlier lists stay as they are.
func (r *ranking) grow(come []Route, self topology.NodeID) bool {
	if len(come) == 0 {
		return true
	}
	if len(come) > max(len(r.peers)/8, fewRoutes) {
		return false // each moves half of the others
	}
	peers := append(make([]topology.Peer, 0, len(r.peers)+len(come)), r.peers...)
	for _, route := range come {
		if !route.leads(self, r.own) {
			continue
		}
		i, known := slices.BinarySearchFunc(peers, route.VTEP, func(p topology.Peer, vtep netip.Addr) int { return p.VTEP.Compare(vtep) })
		p := topology.Peer{VTEP: route.VTEP, MAC: route.MAC, Port: route.Port, Prefixes: []netip.Prefix{route.Prefix}}
		if !known {
			peers = slices.Insert(peers, i, p)
			continue
		}
		if !slices.Equal(p.MAC, peers[i].MAC) || p.Port != peers[i].Port {
			return false // the first in order tells
		}
		p.Prefixes = append(p.Prefixes, peers[i].Prefixes...)
		slices.SortFunc(p.Prefixes, netip.Prefix.Compare)
		peers[i] = p
	}
	r.peers = peers
	return true
}
