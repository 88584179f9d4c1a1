package control

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/particle-net/particle/topology"
)

// What a short message replaces is all that a look at every route would.
func TestReplacedByOneOfMany(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := NewRoutes("0")
		some := func(t *rapid.T, most int) (list []Route) {
			for range rapid.IntRange(0, most).Draw(t, "routes") {
				node := rapid.IntRange(0, 4).Draw(t, "host")
				prefix := fmt.Sprintf(rapid.SampledFrom([]string{"10.0.%d.0/24", "10.0.%d.7/32", "10.0.%d.0/22"}).Draw(t, "kind"), 4*rapid.IntRange(0, 5).Draw(t, "prefix"))
				list = append(list, Route{
					Prefix: netip.MustParsePrefix(prefix), Node: topology.NodeID(fmt.Sprint(node)), VTEP: netip.AddrFrom4([4]byte{192, 0, 2, byte(node)}),
					Vouched: rapid.IntRange(0, 4).Draw(t, "vouched") == 0,
				})
			}
			return list
		}
		now := time.Duration(0)
		for range rapid.IntRange(1, 40).Draw(t, "messages") {
			u := Update[Route]{Put: some(t, 3), Deleted: some(t, 3), Instance: "a"}
			if rapid.IntRange(0, 9).Draw(t, "list") == 0 {
				u = Update[Route]{Whole: true, Put: some(t, 20), Instance: rapid.SampledFrom([]string{"a", "b"}).Draw(t, "store")}
			}
			now += time.Duration(rapid.IntRange(0, 4).Draw(t, "seconds")) * time.Second
			r.Update(u, now)
			if r.hold.Waiting() && r.replaceAll() {
				t.Fatal("a route was held that another replaces")
			}
			single := r.single
			if r.single = false; single && len(r.Duplicates()) > 0 {
				t.Fatalf("%v were overlooked", r.Duplicates())
			}
		}
	})
}

// Of a thousand hosts with four blocks each, one after the other goes or comes back while
// the routes of others are held. It is not the work of all of them each time: in a storm
// there are thousands of messages, and containers wait for who hears them.
func TestOneOfManyWhileOthersAreHeld(t *testing.T) {
	const hosts, blocks = 1000, 4
	var all []Route
	for i := range hosts * blocks {
		all = append(all, Route{
			Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24), Node: topology.NodeID(fmt.Sprintf("%032x", i/blocks)),
			VTEP: netip.AddrFrom4([4]byte{192, 168, byte(i / blocks >> 8), byte(i / blocks)}),
		})
	}
	r := NewRoutes("self")
	next, revision := 0, int64(1)
	say := func(u Update[Route]) {
		revision++
		u.Instance, u.Revision = "a", revision
		r.Update(u, time.Duration(revision)*time.Millisecond)
		if len(r.Duplicates()) > 0 {
			t.Fatal("there are no duplicates")
		}
	}
	one := func() []Route {
		next++
		return all[next : next+1]
	}
	say(Update[Route]{Whole: true, Put: all})
	most := func(what string, f func()) {
		if n := testing.AllocsPerRun(300, f); n > hosts/10 {
			t.Errorf("%s: %.0f allocations", what, n)
		}
	}
	most("one goes", func() { say(Update[Route]{Deleted: one()}) })
	next = 0
	most("one comes back", func() { say(Update[Route]{Put: one()}) })
	r.Update(Update[Route]{Whole: true, Instance: "b", Revision: 1}, time.Minute)
	if n := r.Count(Doubted); n != len(all) {
		t.Fatalf("%d routes are in doubt", n)
	}
	most("one claims again what was lost", func() { say(Update[Route]{Put: one()}) })
}
