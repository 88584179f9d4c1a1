package controltest

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"testing"

	"github.com/particle-net/particle/control"
)

// Fabric is a Distributor under test, with as many hosts as a case wants.
type Fabric struct {
	// Open is a host's Distributor; it ends with the test.
	Open func(t *testing.T, n control.Node) control.Distributor
	// Join makes a network known where that is needed. May be nil.
	Join func(t *testing.T, d control.Distributor, n control.Network)
	// Own is what has to happen before a host may announce a prefix, Disown what
	// has to follow its withdrawal. May be nil.
	Own, Disown func(t *testing.T, d control.Distributor, n control.Network, p netip.Prefix)
	// Exclusive says that a prefix can be of one host alone.
	Exclusive bool
	// Interrupt parts all hosts from each other, or from the store, until heal.
	Interrupt func(t *testing.T) (heal func())
}

// distribution is one case's fabric, with two hosts on one network.
type distribution struct {
	Fabric
	t    *testing.T
	n    control.Network
	a, b control.Distributor
}

// Distribution is the suite that every Distributor passes. It asks for a new
// fabric for each case.
func Distribution(t *testing.T, fresh func(t *testing.T) Fabric) {
	for _, c := range []struct {
		name string
		run  func(*distribution)
	}{
		{"the first update is a whole list", (*distribution).wholeFirst},
		{"an announcement reaches all hosts", (*distribution).announce},
		{"an announcement and a withdrawal may be repeated", (*distribution).repeat},
		{"IPv6 and single addresses", (*distribution).kinds},
		{"a new tunnel address replaces the old one", (*distribution).move},
		{"two hosts, one prefix", (*distribution).same},
		{"a late withdrawal leaves the new owner's route", (*distribution).late},
		{"networks are apart", (*distribution).apart},
		{"a break is told, and a whole list follows", (*distribution).interrupt},
		{"many routes", (*distribution).many},
		{"a reader that is slow misses nothing", (*distribution).slow},
		{"a watch ends with its context", (*distribution).end},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := &distribution{Fabric: fresh(t), t: t, n: Network(1)}
			d.n.VNI = 4711
			d.a, d.b = d.Open(t, Node(1)), d.Open(t, Node(2))
			d.join(d.a, d.n)
			d.join(d.b, d.n)
			c.run(d)
		})
	}
}

func (d *distribution) join(x control.Distributor, n control.Network) {
	d.t.Helper()
	if d.Join != nil {
		d.Join(d.t, x, n)
	}
}

// route is what a host announces.
func (d *distribution) route(i int, prefix string) control.Route {
	return Node(i).Route(d.n.ID, netip.MustParsePrefix(prefix))
}

func (d *distribution) put(x control.Distributor, r control.Route) {
	d.t.Helper()
	if d.Own != nil {
		d.Own(d.t, x, d.n, r.Prefix)
	}
	if err := x.Announce(d.t.Context(), r); err != nil {
		d.t.Fatal(err)
	}
}

func (d *distribution) remove(x control.Distributor, r control.Route) {
	d.t.Helper()
	if err := x.Withdraw(d.t.Context(), r); err != nil {
		d.t.Fatal(err)
	}
	if d.Disown != nil {
		d.Disown(d.t, x, d.n, r.Prefix)
	}
}

func (d *distribution) follow(x control.Distributor) *Table[RouteKey, control.Route] {
	return Follow(d.t, x.WatchRoutes(d.t.Context(), d.n), Key)
}

func (d *distribution) wholeFirst() {
	w := d.follow(d.b)
	w.UntilHave(0)
	d.put(d.a, d.route(1, "10.77.0.0/24"))
	late := d.follow(d.b)
	late.UntilHave(1)
	w.UntilHave(1)
}

func (d *distribution) announce() {
	own, other := d.follow(d.a), d.follow(d.b)
	own.UntilHave(0)
	other.UntilHave(0)
	r := d.route(1, "10.77.3.0/24")
	d.put(d.a, r)
	for _, w := range []*Table[RouteKey, control.Route]{own, other} {
		w.UntilHave(1)
		if got := w.Have[Key(r)]; !sameRoute(got, r) {
			d.t.Errorf("got %+v, want %+v", got, r)
		}
	}
	d.remove(d.a, r)
	own.UntilHave(0)
	other.UntilHave(0)
}

// sameRoute allows for a MAC that is told though it was left to be derived.
func sameRoute(got, want control.Route) bool {
	return got.Network == want.Network && got.Prefix == want.Prefix && got.Node == want.Node && got.VTEP == want.VTEP && got.MAC.String() == want.MAC.String() && got.Port == want.Port
}

func (d *distribution) repeat() {
	w := d.follow(d.b)
	first, second := d.route(1, "10.77.3.0/24"), d.route(1, "10.77.4.0/24")
	d.put(d.a, first)
	for range 3 {
		if err := d.a.Announce(d.t.Context(), first); err != nil {
			d.t.Fatal(err)
		}
	}
	d.put(d.a, second)
	w.UntilHave(2)
	d.remove(d.a, first)
	for range 3 {
		d.remove(d.a, first)
	}
	w.UntilHave(1)
	if _, ok := w.Have[Key(second)]; !ok {
		d.t.Errorf("the wrong route has gone; left: %v", w.Have)
	}
}

func (d *distribution) kinds() {
	w := d.follow(d.b)
	for i, p := range []string{"fd77:0:0:0:1::/80", "10.77.9.9/32", "fd77::2:0:0:9/128"} {
		r := d.route(1, p)
		d.put(d.a, r)
		w.UntilHave(i + 1)
		if got := w.Have[Key(r)]; !sameRoute(got, r) {
			d.t.Errorf("got %+v, want %+v", got, r)
		}
	}
}

func (d *distribution) move() {
	w := d.follow(d.b)
	r := d.route(1, "10.77.3.0/24")
	d.put(d.a, r)
	w.UntilHave(1)
	r.VTEP, r.MAC, r.Port = netip.MustParseAddr("192.168.9.9"), net.HardwareAddr{2, 0, 0, 9, 9, 9}, 8472
	if err := d.a.Announce(d.t.Context(), r); err != nil {
		d.t.Fatal(err)
	}
	w.Until("the new address", func() bool { return sameRoute(w.Have[Key(r)], r) })
	w.UntilHave(1)
}

func (d *distribution) same() {
	w := d.follow(d.b)
	mine, theirs := d.route(1, "10.77.3.0/24"), d.route(2, "10.77.3.0/24")
	d.put(d.a, mine)
	if d.Exclusive {
		if err := d.b.Announce(d.t.Context(), theirs); !errors.Is(err, control.ErrTaken) {
			d.t.Errorf("a second host announces the same prefix: %v, want %v", err, control.ErrTaken)
		}
		w.UntilHave(1)
		return
	}
	d.put(d.b, theirs)
	w.UntilHave(2)
	d.remove(d.a, mine)
	w.UntilHave(1)
	if _, ok := w.Have[Key(theirs)]; !ok {
		d.t.Errorf("the wrong route has gone; left: %v", w.Have)
	}
}

func (d *distribution) late() {
	w := d.follow(d.b)
	old, now, mark := d.route(1, "10.77.3.0/24"), d.route(2, "10.77.3.0/24"), d.route(1, "10.77.9.0/24")
	d.put(d.a, old)
	w.UntilHave(1)
	d.remove(d.a, old)
	d.put(d.b, now)
	d.remove(d.a, old)
	d.put(d.a, mark) // what comes before it has been seen when it has
	w.Until("the mark", func() bool { _, ok := w.Have[Key(mark)]; return ok })
	if got := w.Have[Key(now)]; len(w.Have) != 2 || !sameRoute(got, now) {
		d.t.Errorf("routes %v, want that of the new owner and the mark", w.Have)
	}
}

func (d *distribution) apart() {
	other := *d
	other.n = Network(2)
	other.n.VNI = 4712
	d.join(d.a, other.n)
	d.join(d.b, other.n)
	w, wOther := d.follow(d.b), other.follow(d.b)
	r := other.route(1, "10.77.3.0/24")
	other.put(d.a, r)
	wOther.UntilHave(1)
	d.put(d.a, d.route(1, "10.77.4.0/24"))
	w.UntilHave(1)
	if _, leaked := w.Have[Key(r)]; leaked {
		d.t.Error("a route of another network was delivered")
	}
}

func (d *distribution) interrupt() {
	w := d.follow(d.b)
	r := d.route(1, "10.77.3.0/24")
	d.put(d.a, r)
	w.UntilHave(1)
	wholes := w.Wholes
	heal := d.Interrupt(d.t)
	w.Until("the break", func() bool { return w.Down != nil })
	if len(w.Have) != 1 {
		d.t.Errorf("the break has changed the routes: %v", w.Have)
	}
	heal()
	w.Until("a whole list", func() bool { return w.Down == nil && w.Wholes > wholes })
	d.put(d.a, d.route(1, "10.77.4.0/24"))
	w.UntilHave(2)
	d.remove(d.a, r)
	w.UntilHave(1)
}

func (d *distribution) many() {
	const n = 500
	early := d.follow(d.b)
	var all []control.Route
	for i := range n {
		addr := netip.AddrFrom4([4]byte{10, 77, byte(i >> 6), byte(1 + i&63)})
		all = append(all, d.route(1, netip.PrefixFrom(addr, 32).String()))
		d.put(d.a, all[i])
	}
	early.UntilHave(n)
	late := d.follow(d.b)
	late.UntilHave(n)
	for _, r := range all {
		d.remove(d.a, r)
	}
	early.UntilHave(0)
	late.UntilHave(0)
}

func (d *distribution) slow() {
	w := d.follow(d.b)
	w.UntilHave(0)
	for i := range 50 {
		r := d.route(1, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 77, byte(i), 0}), 24).String())
		d.put(d.a, r)
		if i%2 == 0 {
			d.remove(d.a, r)
		}
	}
	w.UntilHave(25)
}

func (d *distribution) end() {
	ctx, cancel := context.WithCancel(d.t.Context())
	idle := Follow(d.t, d.b.WatchRoutes(ctx, d.n), Key)
	idle.UntilHave(0)
	unread := Follow(d.t, d.b.WatchRoutes(ctx, d.n), Key)
	d.put(d.a, d.route(1, "10.77.3.0/24"))
	cancel()
	idle.UntilEnd()
	unread.UntilEnd()
	// Others go on.
	d.follow(d.b).UntilHave(1)
}
