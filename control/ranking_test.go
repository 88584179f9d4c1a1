package control_test

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/particle-net/particle/control"
	"github.com/particle-net/particle/topology"
)

// What is found by adding to what was found before is what is found from nothing, and
// lists that were given out stay as they were.
func TestRankingGrows(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		own := netip.MustParseAddr("192.0.2.0")
		now, kept := time.Duration(0), control.NewRoutes("0")
		var said []func(*control.Routes)
		var given []topology.Peer
		copied := fmt.Sprint(given)
		do := func(f func(*control.Routes)) {
			said = append(said, f)
			f(kept)
		}
		some := func(t *rapid.T, most int) (list []control.Route) {
			for range rapid.IntRange(0, most).Draw(t, "routes") {
				r := route(rapid.IntRange(0, 9).Draw(t, "host"), fmt.Sprintf(rapid.SampledFrom([]string{"10.0.%d.0/24", "10.0.%d.7/32"}).Draw(t, "kind"), rapid.IntRange(0, 40).Draw(t, "prefix")))
				r.Port = uint16(rapid.SampledFrom([]int{0, 0, 0, 0, 0, 0, 0, 8472}).Draw(t, "port"))
				if rapid.IntRange(0, 9).Draw(t, "MAC") == 9 {
					r.MAC = net.HardwareAddr{2, 0, 0, 0, 0, byte(r.Port)}
				}
				r.Vouched = rapid.IntRange(0, 19).Draw(t, "vouched") == 0
				if rapid.IntRange(0, 19).Draw(t, "moved") == 0 {
					r.VTEP = own
				}
				list = append(list, r)
			}
			return list
		}
		put := func(t *rapid.T) {
			u := update{Put: some(t, 12)}
			at := now
			do(func(r *control.Routes) { r.Update(u, at) })
		}
		t.Repeat(map[string]func(*rapid.T){
			"put": put, "put again": put, "and again": put,
			"delete": func(t *rapid.T) {
				u := update{Deleted: some(t, 3)}
				at := now
				do(func(r *control.Routes) { r.Update(u, at) })
			},
			"list": func(t *rapid.T) {
				u := update{Whole: true, Instance: "a", Put: some(t, 20)}
				at := now
				do(func(r *control.Routes) { r.Update(u, at) })
			},
			"time": func(t *rapid.T) {
				now += 4 * time.Second
				at := now
				do(func(r *control.Routes) { r.Tick(at) })
			},
			"move": func(t *rapid.T) { own = netip.AddrFrom4([4]byte{192, 0, 2, byte(rapid.IntRange(0, 3).Draw(t, "own"))}) },
			"": func(t *rapid.T) {
				last := given
				given = kept.Peers(own)
				if got := fmt.Sprint(last); got != copied {
					t.Fatalf("a list became %s, was %s", got, copied)
				}
				copied = fmt.Sprint(given)
				fresh := control.NewRoutes("0")
				for _, f := range said {
					f(fresh)
				}
				if want := fresh.Peers(own); !slices.EqualFunc(given, want, topology.Peer.Equal) {
					t.Fatalf("peers\n%v, from nothing\n%v", given, want)
				}
				if got, want := fmt.Sprint(kept.Duplicates()), fmt.Sprint(fresh.Duplicates()); got != want {
					t.Fatalf("duplicates %s, from nothing %s", got, want)
				}
			},
		})
	})
}
