package control_test

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/particle-net/particle/control"
	"github.com/particle-net/particle/topology"
)

type update = control.Update[control.Route]

var errDown = errors.New("no leader")

// clock is time as the rules are told it.
type clock struct{ now time.Duration }

// pass lets time go by in steps as short as a caller's ticks.
func (c *clock) pass(r *control.Routes, d time.Duration) {
	for ; d > 0; d -= time.Second {
		c.now += min(d, time.Second)
		r.Tick(c.now)
	}
}

// route is host n's, which has 192.0.2.n as its tunnel address.
func route(n int, prefix string) control.Route {
	return control.Route{
		Prefix: netip.MustParsePrefix(prefix), Node: topology.NodeID(fmt.Sprint(n)),
		VTEP: netip.AddrFrom4([4]byte{192, 0, 2, byte(n)}),
	}
}

// peers renders what host 0 has: "1:10.0.0.0/24 2:10.0.1.0/24".
func peers(r *control.Routes) string {
	var parts []string
	for _, p := range r.Peers(netip.MustParseAddr("192.0.2.0")) {
		for _, prefix := range p.Prefixes {
			parts = append(parts, fmt.Sprintf("%d:%s", p.VTEP.As4()[3], prefix))
		}
	}
	return strings.Join(parts, " ")
}

func want(t *testing.T, r *control.Routes, when, text string) {
	t.Helper()
	if got := peers(r); got != text {
		t.Errorf("%s: peers are %q, want %q", when, got, text)
	}
}

var (
	own  = route(0, "10.0.0.0/24")
	one  = route(1, "10.0.1.0/24")
	two  = route(2, "10.0.2.0/24")
	tree = route(3, "10.0.3.0/24")
)

// listed is host 0 after a first list of four hosts' routes.
func listed(c *clock) *control.Routes {
	r := control.NewRoutes("0")
	r.Update(update{Whole: true, Put: []control.Route{own, one, two, tree}, Instance: "a", Revision: 7}, c.now)
	return r
}

const all = "1:10.0.1.0/24 2:10.0.2.0/24 3:10.0.3.0/24"

func TestOwnRoutesAreNoPeers(t *testing.T) {
	r := listed(&clock{})
	want(t, r, "at first", all)
	if got := r.Own(); !slices.Equal(got, []netip.Prefix{own.Prefix}) {
		t.Errorf("own %v", got)
	}
	// The same host under an id it had before.
	before := own
	before.Node, before.Prefix = "old", netip.MustParsePrefix("10.0.9.0/24")
	r.Update(update{Put: []control.Route{before}}, 0)
	want(t, r, "with an announcement of an earlier self", all)
}

func TestWithdrawnRoutesAreHeld(t *testing.T) {
	for name, u := range map[string]update{
		"told":        {Deleted: []control.Route{two}},
		"left out":    {Whole: true, Put: []control.Route{own, one, tree}, Instance: "a", Revision: 9},
		"two of four": {Whole: true, Put: []control.Route{own, one}, Instance: "a", Revision: 7},
	} {
		t.Run(name, func(t *testing.T) {
			var c clock
			r := listed(&c)
			if v := r.Update(u, c.now); v.Loss != "" {
				t.Fatalf("taken for a loss: %s", v.Loss)
			}
			c.pass(r, 29*time.Second)
			want(t, r, "after 29 s", all)
			c.pass(r, time.Second)
			if strings.Contains(peers(r), "2:") || r.Waiting() {
				t.Errorf("after 30 s: peers are %q", peers(r))
			}
		})
	}
}

func TestNewAnnouncementCancelsWithdrawal(t *testing.T) {
	var c clock
	r := listed(&c)
	r.Update(update{Deleted: []control.Route{two}}, c.now)
	c.pass(r, 20*time.Second)
	r.Update(update{Put: []control.Route{two}}, c.now)
	c.pass(r, time.Hour)
	want(t, r, "an hour later", all)
}

func TestNewOwnerReplacesAtOnce(t *testing.T) {
	moved, within, around := route(3, "10.0.2.0/24"), route(2, "10.0.2.7/32"), route(3, "10.0.2.0/25")
	for name, c := range map[string]struct {
		first, then []update
		want        string
	}{
		"withdrawn first": {
			then: []update{{Deleted: []control.Route{two}}, {Put: []control.Route{moved}}},
			want: "1:10.0.1.0/24 3:10.0.2.0/24 3:10.0.3.0/24"},
		"announced first": {
			then: []update{{Put: []control.Route{moved}}, {Deleted: []control.Route{two}}},
			want: "1:10.0.1.0/24 3:10.0.2.0/24 3:10.0.3.0/24"},
		"in one message": {
			then: []update{{Put: []control.Route{moved}, Deleted: []control.Route{two}}},
			want: "1:10.0.1.0/24 3:10.0.2.0/24 3:10.0.3.0/24"},
		"in a list that lacks too much": {
			then: []update{{Whole: true, Put: []control.Route{moved}, Instance: "b"}},
			want: "1:10.0.1.0/24 3:10.0.2.0/24 3:10.0.3.0/24"},
		"a block around an address": {
			then: []update{{Put: []control.Route{within}}, {Deleted: []control.Route{two, within}}, {Put: []control.Route{around}}},
			want: "1:10.0.1.0/24 2:10.0.2.0/24 3:10.0.2.0/25 3:10.0.3.0/24"},
	} {
		t.Run(name, func(t *testing.T) {
			r := listed(&clock{})
			for _, u := range c.then {
				r.Update(u, 0)
			}
			want(t, r, "after all", c.want)
		})
	}
}

func TestTimeStandsStillWhileDown(t *testing.T) {
	var c clock
	r := listed(&c)
	r.Update(update{Deleted: []control.Route{two}}, c.now)
	c.pass(r, 10*time.Second)
	r.Update(update{Down: errDown}, c.now)
	c.pass(r, time.Hour)
	want(t, r, "after an hour without a watch", all)
	r.Update(update{}, c.now)
	c.pass(r, 19*time.Second)
	want(t, r, "after 29 s of healthy time", all)
	c.pass(r, time.Second)
	want(t, r, "after 30 s of healthy time", "1:10.0.1.0/24 3:10.0.3.0/24")
}

// A process that was stopped wakes to a clock far ahead, and to messages that it
// has not read yet.
func TestLongPauseIsNotHealthy(t *testing.T) {
	var c clock
	r := listed(&c)
	r.Update(update{Deleted: []control.Route{two}}, c.now)
	c.now += time.Hour
	r.Tick(c.now)
	want(t, r, "after a pause", all)
	c.now -= 30 * time.Minute // and a clock that is worse than promised
	r.Tick(c.now)
	c.pass(r, 24*time.Second)
	want(t, r, "24 s later", all)
	c.pass(r, time.Second)
	want(t, r, "25 s later", "1:10.0.1.0/24 3:10.0.3.0/24")
}

func TestMassLossIsNotBelieved(t *testing.T) {
	for name, u := range map[string]update{
		"is empty":         {Whole: true, Instance: "a", Revision: 8},
		"another instance": {Whole: true, Put: []control.Route{own, one, tree}, Instance: "b", Revision: 8},
		"is older":         {Whole: true, Put: []control.Route{own, one, tree}, Instance: "a", Revision: 6},
		"more than half":   {Whole: true, Put: []control.Route{one}, Instance: "a", Revision: 8},
	} {
		t.Run(name, func(t *testing.T) {
			var c clock
			r := listed(&c)
			if v := r.Update(u, c.now); !strings.Contains(v.Loss, name) {
				t.Errorf("taken for %q", v.Loss)
			}
			c.pass(r, 5*time.Minute)
			r.Update(update{Put: []control.Route{one, tree}}, c.now)
			// A watch that breaks off and comes back does not begin the time anew.
			r.Update(update{Down: errDown}, c.now)
			c.pass(r, time.Hour)
			r.Update(update{Whole: true, Put: []control.Route{one, tree}, Instance: u.Instance, Revision: 20}, c.now)
			c.pass(r, 5*time.Minute-time.Second)
			want(t, r, "before ten minutes", all)
			c.pass(r, time.Second)
			want(t, r, "after ten minutes", "1:10.0.1.0/24 3:10.0.3.0/24")
		})
	}
}

// What was withdrawn a moment before the store was lost has ended, unless a store that
// was set back, and that nobody has told from the one before yet, may have said so.
func TestWithdrawalBeforeALoss(t *testing.T) {
	const gone = "1:10.0.1.0/24 3:10.0.3.0/24"
	for name, c := range map[string]struct {
		told  int64 // the revision of the withdrawal
		list  update
		after string // 30 s
	}{
		"wiped":                         {8, update{Whole: true, Instance: "b", Revision: 2}, gone},
		"set back":                      {9, update{Whole: true, Put: []control.Route{own, one, tree}, Instance: "a", Revision: 8}, gone},
		"set back, and the route there": {9, update{Whole: true, Put: []control.Route{own, one, two, tree}, Instance: "a", Revision: 8}, all},
		"set back, and written to":      {8, update{Whole: true, Put: []control.Route{own, one, tree}, Instance: "b", Revision: 8}, all},
		"without revisions":             {0, update{Whole: true, Instance: "b"}, all},
	} {
		t.Run(name, func(t *testing.T) {
			var at clock
			r := listed(&at)
			r.Update(update{Deleted: []control.Route{two}, Revision: c.told}, at.now)
			at.pass(r, 20*time.Second)
			if v := r.Update(c.list, at.now); v.Loss == "" {
				t.Fatal("the loss was not noticed")
			}
			at.pass(r, 9*time.Second)
			want(t, r, "after 29 s", all)
			at.pass(r, time.Second)
			want(t, r, "after 30 s", c.after)
			at.pass(r, 9*time.Minute)
			want(t, r, "after nine minutes", c.after) // what was lost is still there
		})
	}
}

func TestRememberedRoutesAreGuarded(t *testing.T) {
	before := listed(&clock{})
	known, origin := before.Known()
	after := control.NewRoutes("0")
	after.Remember(known, origin)
	want(t, after, "before the first list", all)
	if v := after.Update(update{Whole: true, Instance: "b"}, 0); v.Loss == "" {
		t.Error("a wiped store was believed after a restart")
	}
	want(t, after, "after a list of a wiped store", all)
	if fresh := control.NewRoutes("0"); fresh.Update(update{Whole: true, Instance: "a"}, 0).Loss != "" {
		t.Error("the first list of all was taken for a loss")
	}
}

func TestDuplicatesHaveOneWinner(t *testing.T) {
	low, high := route(1, "10.0.8.0/24"), route(2, "10.0.8.0/24")
	for _, order := range [][]control.Route{{low, high}, {high, low}} {
		r := listed(&clock{})
		for _, d := range order {
			r.Update(update{Put: []control.Route{d}}, 0)
		}
		want(t, r, "with a duplicate", "1:10.0.1.0/24 1:10.0.8.0/24 2:10.0.2.0/24 3:10.0.3.0/24")
		if d := r.Duplicates(); !slices.Equal(d, []control.Duplicate{{Prefix: low.Prefix, Winner: "1", Loser: "2"}}) {
			t.Errorf("duplicates %v", d)
		}
	}
}

// Whatever the watch delivers, in whatever order and at whatever times: what it
// says now is there, what it said within 30 s of healthy time is there unless it
// has another owner, and what nobody has said for longer than rules W and M
// together allow is not.
func TestRulesHoldForAnyWatch(t *testing.T) {
	const withdrawn, doubted = 30 * time.Second, 10 * time.Minute
	rapid.Check(t, func(t *rapid.T) {
		prefixes := []string{"10.0.0.0/24", "10.0.0.7/32", "10.0.1.0/24", "10.0.2.0/24", "2001:db8::/64"}
		var pool []control.Route
		for _, p := range prefixes {
			pool = append(pool, route(1, p), route(2, p), route(3, p))
		}
		var c clock
		r := control.NewRoutes("0")
		said := map[int]bool{}          // by the watch, now
		last := map[int]time.Duration{} // when it was last said, in healthy time
		taken := map[int]bool{}         // by another host since it was last said
		healthy, elapsed := false, time.Duration(0)
		step := map[string]func(*rapid.T){
			"time": func(t *rapid.T) {
				d := time.Duration(rapid.IntRange(1, 400).Draw(t, "seconds")) * time.Second
				c.pass(r, d)
				if healthy {
					elapsed += d
				}
			},
			"down": func(*rapid.T) { r.Update(update{Down: errDown}, c.now); healthy = false },
			"put": func(t *rapid.T) {
				i := rapid.IntRange(0, len(pool)-1).Draw(t, "route")
				r.Update(update{Put: []control.Route{pool[i]}}, c.now)
				said[i], healthy = true, true
			},
			"delete": func(t *rapid.T) {
				i := rapid.IntRange(0, len(pool)-1).Draw(t, "route")
				r.Update(update{Deleted: []control.Route{pool[i]}}, c.now)
				delete(said, i)
				healthy = true
			},
			"list": func(t *rapid.T) {
				u := update{Whole: true, Instance: rapid.SampledFrom([]string{"a", "a", "a", "b"}).Draw(t, "instance")}
				clear(said)
				for _, i := range rapid.SliceOfDistinct(rapid.IntRange(0, len(pool)-1), rapid.ID[int]).Draw(t, "routes") {
					u.Put = append(u.Put, pool[i])
					said[i] = true
				}
				r.Update(u, c.now)
				healthy = true
			},
			"": func(t *rapid.T) {
				known, _ := r.Known()
				for i, route := range pool {
					if said[i] {
						last[i], taken[i] = elapsed, false
					}
					has := slices.ContainsFunc(known, func(k control.Route) bool { return k.Prefix == route.Prefix && k.Node == route.Node })
					owned := false
					for j, other := range pool {
						owned = owned || said[j] && other.Node != route.Node && other.Prefix.Bits() <= route.Prefix.Bits() && other.Prefix.Contains(route.Prefix.Addr())
					}
					taken[i] = taken[i] || owned
					when, ever := last[i]
					switch age := elapsed - when; {
					case said[i] && !has:
						t.Fatalf("%v is announced and not known", route)
					case has && !ever:
						t.Fatalf("%v was never announced", route)
					case has && !said[i] && owned:
						t.Fatalf("%v is kept although another has it", route)
					case !has && ever && !taken[i] && age < withdrawn:
						t.Fatalf("%v is gone after %v", route, age)
					case has && age > doubted+withdrawn:
						t.Fatalf("%v is kept for %v", route, age)
					}
				}
			},
		}
		t.Repeat(step)
	})
}

// What a store has lost is told apart from what has ended in it.
func TestForgotten(t *testing.T) {
	var c clock
	for name, u := range map[string]update{
		"another": {Whole: true, Put: []control.Route{own}, Instance: "b", Revision: 9},
		"older":   {Whole: true, Put: []control.Route{own}, Instance: "a", Revision: 6},
		"same":    {Whole: true, Put: []control.Route{own}, Instance: "a", Revision: 9},
	} {
		r := listed(&c)
		r.Update(update{Deleted: []control.Route{tree}}, c.now)
		var got []string
		for _, f := range r.Update(u, c.now).Forgotten {
			got = append(got, string(f.Node))
		}
		slices.Sort(got)
		want := []string{"1", "2"} // three has given it up before
		if name == "same" {
			want = nil
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: forgotten %v, want %v", name, got, want)
		}
	}
}

// What others vouch for is a route, but of less weight than any host's own word.
func TestVouchedRoutes(t *testing.T) {
	var c clock
	r := listed(&c)
	vouched, mine, stale := two, own, route(1, "10.0.3.0/24")
	vouched.Vouched, mine.Vouched, stale.Vouched = true, true, true
	mine.Prefix = netip.MustParsePrefix("10.0.9.0/24")
	r.Update(update{Whole: true, Put: []control.Route{own, one, tree, vouched, mine, stale}, Instance: "b"}, c.now)
	want(t, r, "vouched for", all)
	if len(r.Duplicates()) != 0 || r.Waiting() || !r.Told(two) || !slices.Equal(r.Own(), []netip.Prefix{own.Prefix}) || !slices.Equal(r.Vouched(), []netip.Prefix{mine.Prefix}) {
		t.Errorf("duplicates %v, waiting %t, own %v, vouched %v", r.Duplicates(), r.Waiting(), r.Own(), r.Vouched())
	}
	r.Update(update{Put: []control.Route{two}, Deleted: []control.Route{vouched}}, c.now)
	c.pass(r, time.Hour)
	want(t, r, "an hour after the owner has come", all)
}
