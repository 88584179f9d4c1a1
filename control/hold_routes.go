package control

import (
	"net/netip"
	"slices"
	"time"

	"github.com/particle-net/particle/topology"
)

// Routes is what one host believes of the routes of one network. It is a Hold
// that knows that two hosts cannot answer for one address.
type Routes struct {
	hold *Hold[Route]
	self topology.NodeID

	// Of a thousand hosts one comes, and to rank them all anew takes longer than to tell
	// the kernel: what was found last holds until more happens than that.
	ranked *ranking
	come   []Route // since ranked
	single bool    // there are no duplicates
}

// NewRoutes makes it for the host of the given id.
func NewRoutes(self topology.NodeID) *Routes {
	return &Routes{hold: NewHold(routeKey), self: self}
}

// same says whether two routes of one network have one key.
func (r Route) same(as Route) bool {
	return r.Prefix == as.Prefix && r.Node == as.Node && r.Vouched == as.Vouched
}

// routeKey tells routes of one network apart.
func routeKey(r Route) string {
	key := r.Prefix.String() + "/" + string(r.Node)
	if r.Vouched {
		key += "/vouched" // it ends as the owner's own begins
	}
	return key
}

// Remember enters what was known before a restart.
func (r *Routes) Remember(all []Route, origin Origin) {
	r.hold.Remember(all, origin)
	r.single = false
	r.forget()
}

// Update follows one message of the watch (see Hold).
func (r *Routes) Update(u Update[Route], now time.Duration) Verdict[Route] {
	known, double := r.contested(u)
	few := r.ranked != nil && len(u.Put) > 0 && !known
	v := r.hold.Update(u, now)
	replaced := r.hold.Waiting() && r.replace(u)
	r.single = r.single && !double
	switch {
	case !v.Changed && !replaced:
	case v.Grown && !replaced && few:
		r.come = append(r.come, u.Put...)
	default:
		r.forget()
	}
	return v
}

// forget has all routes ranked anew.
func (r *Routes) forget() { r.ranked, r.come = nil, nil }

// contested says whether a route that comes is to a prefix to which one that is kept is,
// or another that comes; double, if it may be that of another host. Of many it is not
// looked up.
func (r *Routes) contested(u Update[Route]) (known, double bool) {
	if u.Whole || len(u.Put) > fewRoutes {
		return true, true
	}
	list := u.Put
	for i, route := range list {
		for _, other := range list[:i] {
			known = known || other.Prefix == route.Prefix
			double = double || other.Prefix == route.Prefix && other.Node != route.Node
		}
	}
	if len(list) == 0 {
		return known, double
	}
	for _, kept := range r.hold.kept {
		for i := range list {
			if list[i].Prefix == kept.Prefix {
				known = true
				double = double || list[i].Node != kept.Node
			}
		}
	}
	return known, double
}

// replace lets go of held routes of which all addresses have another owner now
// (rule W). A longer prefix of a former owner would win over the new one's. What
// another host vouches for is in doubt no more, and takes nothing from anybody.
func (r *Routes) replace(u Update[Route]) (changed bool) {
	if u.Whole || len(u.Put)+len(u.Deleted) > fewRoutes {
		return r.replaceAll()
	}
	// A thousand hosts come or go one by one, and routes are held all the while. What has
	// been held before is replaced by what comes or not at all.
	return r.hold.drop(func(held Route, _ holding) bool {
		if slices.ContainsFunc(u.Put, held.replacedBy) {
			return true
		}
		return slices.ContainsFunc(u.Deleted, held.same) && r.hasReplacement(held)
	})
}

// hasReplacement says whether some current route replaces a held one.
func (r *Routes) hasReplacement(held Route) bool {
	for key, route := range r.hold.kept {
		if held.replacedBy(*route) && r.hold.held[key].standing == Current {
			return true
		}
	}
	return false
}

// replacedBy says whether a held route goes because there is another, which is current.
func (r Route) replacedBy(by Route) bool {
	if by.Vouched {
		return by.Node == r.Node && by.Prefix == r.Prefix
	}
	return by.Node != r.Node && by.Prefix.Bits() <= r.Prefix.Bits() && by.Prefix.Contains(r.Prefix.Addr())
}

// replaceAll is replace after a message of any length.
func (r *Routes) replaceAll() (changed bool) {
	owners := map[netip.Prefix][]topology.NodeID{}
	vouched := map[string]bool{}
	for _, route := range r.hold.All(Current) {
		if vouched[routeKey(route)] = route.Vouched; !route.Vouched {
			owners[route.Prefix] = append(owners[route.Prefix], route.Node)
		}
	}
	return r.hold.drop(func(held Route, _ holding) bool {
		again := held
		if again.Vouched = true; vouched[routeKey(again)] {
			return true
		}
		for bits := held.Prefix.Bits(); bits >= 0; bits-- {
			around, _ := held.Prefix.Addr().Prefix(bits) // no error: bits only shrink
			if slices.ContainsFunc(owners[around], func(n topology.NodeID) bool { return n != held.Node }) {
				return true
			}
		}
		return false
	})
}

// Tick lets time pass (see Hold).
func (r *Routes) Tick(now time.Duration) (changed bool) {
	if changed = r.hold.Tick(now); changed {
		r.forget()
	}
	return changed
}

// Waiting says whether time will change anything.
func (r *Routes) Waiting() bool { return r.hold.Waiting() }

// Healthy says whether the watch delivers.
func (r *Routes) Healthy() bool { return r.hold.Healthy() }

// Count is how many routes have a standing.
func (r *Routes) Count(s Standing) int { return r.hold.Count(s) }

// Known lists all routes that are kept, with what Remember needs beside them.
func (r *Routes) Known() ([]Route, Origin) {
	return r.hold.All(Current, Withdrawn, Doubted), r.Origin()
}

// Origin tells of which store they are, and how far that had come (see Hold).
func (r *Routes) Origin() Origin { return r.hold.Origin() }

// Own lists what the watch says that this host answers for.
func (r *Routes) Own() []netip.Prefix { return r.mine(false) }

// Vouched lists what others have vouched for in this host's name, and it has not
// claimed again.
func (r *Routes) Vouched() []netip.Prefix { return r.mine(true) }

func (r *Routes) mine(vouched bool) []netip.Prefix {
	var mine []netip.Prefix
	r.hold.Each(func(route Route) {
		if route.Node == r.self && route.Vouched == vouched {
			mine = append(mine, route.Prefix)
		}
	}, Current)
	slices.SortFunc(mine, netip.Prefix.Compare)
	return mine
}

// Told says whether the watch says that a host answers for a prefix, or that
// others vouch for it.
func (r *Routes) Told(route Route) bool {
	for _, vouched := range []bool{false, true} {
		route.Vouched = vouched
		if _, standing, ok := r.hold.Find(routeKey(route)); ok && standing == Current {
			return true
		}
	}
	return false
}

// Owner is another host that answers, or lately did, for any address of a
// prefix.
func (r *Routes) Owner(p netip.Prefix) (Route, bool) {
	for _, route := range r.hold.All(Current, Withdrawn, Doubted) {
		if route.Node != r.self && route.Prefix.Overlaps(p) {
			return route, true
		}
	}
	return Route{}, false
}

// Duplicate is a prefix that two hosts claim to answer for.
type Duplicate struct {
	Prefix        netip.Prefix
	Winner, Loser topology.NodeID
}

// Duplicates should be empty. The winner is the same on every host: who has the
// lower VTEP.
func (r *Routes) Duplicates() []Duplicate {
	if r.single = r.single || !r.doubled(); r.single {
		return nil // as always; to rank a thousand hosts takes longer
	}
	winners := map[netip.Prefix]Route{}
	var all []Duplicate
	for _, route := range r.order() {
		winner, taken := winners[route.Prefix]
		if route.Vouched {
			continue // it may be out of date, and its owner has not said so
		}
		if !taken {
			winners[route.Prefix] = route
		} else if route.Node != winner.Node {
			all = append(all, Duplicate{Prefix: route.Prefix, Winner: winner.Node, Loser: route.Node})
		}
	}
	return all
}

// doubled says whether there are duplicates.
func (r *Routes) doubled() bool {
	owners, double := make(map[netip.Prefix]topology.NodeID, len(r.hold.kept)), false
	r.hold.Each(func(route Route) {
		if owner, ok := owners[route.Prefix]; !route.Vouched {
			double = double || ok && owner != route.Node
			owners[route.Prefix] = route.Node
		}
	}, Current, Withdrawn, Doubted)
	return double
}
