package integration

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"regexp"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/particle-net/particle/internal/lab"
)

// addressHistory is what all hosts saw of all addresses.
type addressHistory struct {
	began time.Time
	mu    sync.Mutex
	ops   map[netip.Addr][]porcupine.Operation
}

// hold is an operation on one address: a container took it, or gave it back.
type hold struct {
	take bool
	by   string
}

func newHistory() *addressHistory {
	return &addressHistory{began: time.Now(), ops: map[netip.Addr][]porcupine.Operation{}}
}

// take records that a container has got addresses, which it was asked for at from.
func (h *addressHistory) take(all []netip.Addr, client int, by string, from time.Time) {
	h.record(all, client, hold{true, by}, from, time.Now())
}

// give records that it has given them back.
func (h *addressHistory) give(all []netip.Addr, client int, by string, from time.Time) {
	h.record(all, client, hold{false, by}, from, time.Now())
}

func (h *addressHistory) record(all []netip.Addr, client int, in hold, from, to time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, a := range all {
		h.ops[a] = append(h.ops[a], porcupine.Operation{
			ClientId: client, Input: in, Call: int64(from.Sub(h.began)), Return: int64(to.Sub(h.began)),
		})
	}
}

// oneHolder is an address that at most one container holds at any time.
var oneHolder = porcupine.Model{
	Init: func() any { return "" },
	Step: func(state, input, _ any) (bool, any) {
		holder, in := state.(string), input.(hold)
		if in.take {
			return holder == "", in.by
		}
		return holder == in.by, ""
	},
	DescribeOperation: func(input, _ any) string { return fmt.Sprintf("%+v", input) },
}

// used says whether a container had got an address of the prefix by then.
func (h *addressHistory) used(p netip.Prefix, by time.Time) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	for a, ops := range h.ops {
		if p.Contains(a) && slices.ContainsFunc(ops, func(o porcupine.Operation) bool {
			return o.Input.(hold).take && o.Return <= int64(by.Sub(h.began))
		}) {
			return true
		}
	}
	return false
}

// check fails unless the history of each address fits one holder at a time.
func (h *addressHistory) check(t *testing.T) {
	t.Helper()
	for a, ops := range h.twice() {
		t.Errorf("%s was held by two containers at once: %+v", a, ops)
	}
}

// twice are the histories of addresses that had two holders at once.
func (h *addressHistory) twice() map[netip.Addr][]porcupine.Operation {
	h.mu.Lock()
	defer h.mu.Unlock()
	bad := map[netip.Addr][]porcupine.Operation{}
	for a, ops := range h.ops {
		if !porcupine.CheckOperations(oneHolder, ops) {
			bad[a] = ops
		}
	}
	return bad
}

// A history in which one container took what another had is told from one in which
// it took what another was just giving back.
func TestAddressHistory(t *testing.T) {
	one := []netip.Addr{netip.MustParseAddr("10.77.0.1")}
	for name, c := range map[string]struct {
		again bool // after it was given back
		bad   int
	}{"while it is held": {false, 1}, "afterwards": {true, 0}} {
		t.Run(name, func(t *testing.T) {
			h := newHistory()
			record := func(client int, take bool, by string, from, to time.Duration) {
				h.record(one, client, hold{take, by}, h.began.Add(from), h.began.Add(to))
			}
			record(0, true, "a", 1, 2)
			if c.again {
				record(0, false, "a", 3, 6)
			}
			record(1, true, "b", 4, 5)
			record(1, false, "b", 7, 8)
			if bad := h.twice(); len(bad) != c.bad {
				t.Errorf("%d addresses held twice, want %d: %v", len(bad), c.bad, bad)
			}
		})
	}
}

// A container of a churn lives for churnFor, but for several times as long as its start
// took, within churnMost: the hosts of several tests would keep a slow machine busy by
// that alone, and be slow to mend what broke.
const (
	churnFor   = 3 * time.Second
	churnMost  = 12 * time.Second
	churnShare = 5
)

// churn starts and stops containers on one host until told to end, and records
// when each address was held. Every other one wishes for an address that other hosts
// ask for at the same time.
type churn struct {
	bed     *bed
	client  int
	history *addressHistory
	gate    *sync.RWMutex // held for writing, no container comes or goes
	cycles  int
	got     int // wishes that came true
	taken   int // and those that another host's container stood in the way of
	refused []refusal
}

// refusal is a container that did not start.
type refusal struct {
	from, to time.Time
	err      error
}

// contended are the addresses that hosts wish for, of both families; none is of a host's
// own block.
var contended = []netip.Prefix{netip.MustParsePrefix("10.77.201.0/31"), netip.MustParsePrefix("fd00:77::c0:10/127")}

// wish is a container's wish for a contended address, or for two.
func wish() []string {
	var args []string
	for i, option := range []string{"--ip", "--ip6"} {
		if len(args) == 0 && i > 0 || rand.N(2) == 0 {
			a := contended[i].Addr()
			if rand.N(2) == 0 {
				a = a.Next()
			}
			args = append(args, option, a.String())
		}
	}
	return args
}

// denied is what a wish may be answered: somebody has the address, or whether somebody
// has it cannot be told now, as when the store has just lost the network, too. No such
// answer is a host's fault.
var denied = regexp.MustCompile(`taken|in use|does not answer|claiming again|has no such network; repeat|has no claim of this host to it any more; repeat`)

// run goes on until ctx ends. The commands themselves are let through.
func (c *churn) run(ctx context.Context, network string) {
	done := context.WithoutCancel(ctx)
	for ; ctx.Err() == nil; c.cycles++ {
		c.gate.RLock()
		c.cycle(done, network)
		c.gate.RUnlock()
	}
}

// cycle is the life of one container.
func (c *churn) cycle(ctx context.Context, network string) {
	name := fmt.Sprintf("churn-%s-%d", c.bed.host.Name(), c.cycles)
	args := []string{"--network", network}
	wishes := c.cycles%2 == 1
	if wishes {
		args = append(args, wish()...)
	}
	from := time.Now()
	all, err := c.bed.holds(ctx, name, append(args, lab.TestImage, "probe", "sleep")...)
	switch {
	case err == nil:
		c.history.take(all, c.client, name, from)
		if wishes {
			c.got++
		}
	case wishes && denied.MatchString(err.Error()):
		c.taken++
	default:
		c.refused = append(c.refused, refusal{from, time.Now(), err})
	}
	lives := time.NewTimer(min(max(churnFor, churnShare*time.Since(from)), churnMost))
	<-lives.C
	from = time.Now()
	// It may have come to be although the answer was an error.
	if gone := until(ctx, func() error { return c.bed.gone(ctx, name) }); gone != nil {
		c.refused = append(c.refused, refusal{from, time.Now(), gone})
	} else {
		c.history.give(all, c.client, name, from)
	}
}

// holds starts a container that stays, and tells its addresses.
func (b *bed) holds(ctx context.Context, name string, args ...string) ([]netip.Addr, error) {
	if _, err := b.docker(ctx, append([]string{"run", "-d", "--name", name}, args...)...); err != nil {
		return nil, err
	}
	v4, v6, err := b.addresses(ctx, name)
	if err != nil {
		return nil, err
	}
	var all []netip.Addr
	for _, text := range []string{v4, v6} {
		a, err := netip.ParseAddr(text)
		if err != nil {
			return nil, fmt.Errorf("%s has the address %q: %w", name, text, err)
		}
		all = append(all, a)
	}
	return all, nil
}

// gone removes a container; not there is success.
func (b *bed) gone(ctx context.Context, name string) error {
	if _, err := b.docker(ctx, "rm", "-f", name); err != nil {
		if all, lists := b.docker(ctx, "ps", "-aq", "--filter", "name=^"+name+"$"); lists != nil || all != "" {
			return err
		}
	}
	return nil
}
