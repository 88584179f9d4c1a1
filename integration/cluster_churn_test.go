package integration

import (
	"context"
	"fmt"
	"net/netip"
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

func (h *addressHistory) record(a netip.Addr, client int, in hold, from, to time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ops[a] = append(h.ops[a], porcupine.Operation{
		ClientId: client, Input: in, Call: int64(from.Sub(h.began)), Return: int64(to.Sub(h.began)),
	})
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

// check fails unless the history of each address fits one holder at a time.
func (h *addressHistory) check(t *testing.T) {
	t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	for a, ops := range h.ops {
		if !porcupine.CheckOperations(oneHolder, ops) {
			t.Errorf("%s was held by two containers at once: %+v", a, ops)
		}
	}
}

// churnEvery is how often a host of a churn starts a container, at most.
const churnEvery = 300 * time.Millisecond

// churn starts and stops containers on one host until told to end, and records
// when each address was held.
type churn struct {
	bed     *bed
	client  int
	history *addressHistory
	cycles  int
	refused []refusal
}

// refusal is a container that did not start.
type refusal struct {
	from, to time.Time
	err      error
}

// run goes on until ctx ends. The commands themselves are let through.
func (c *churn) run(ctx context.Context, network string) {
	done := context.WithoutCancel(ctx)
	tick := time.NewTicker(churnEvery)
	defer tick.Stop()
	for ; ctx.Err() == nil; c.cycles++ {
		name := fmt.Sprintf("churn-%s-%d", c.bed.host.Name(), c.cycles)
		from := time.Now()
		a, err := c.bed.holds(done, name, "--network", network, lab.TestImage, "probe", "sleep")
		if err != nil {
			c.refused = append(c.refused, refusal{from, time.Now(), err})
		} else {
			c.history.record(a, c.client, hold{true, name}, from, time.Now())
		}
		from = time.Now()
		// It may have come to be although the answer was an error.
		if gone := until(done, func() error { return c.bed.gone(done, name) }); gone != nil {
			c.refused = append(c.refused, refusal{from, time.Now(), gone})
		} else if err == nil {
			c.history.record(a, c.client, hold{false, name}, from, time.Now())
		}
		<-tick.C
	}
}

// holds starts a container that stays, and tells its address.
func (b *bed) holds(ctx context.Context, name string, args ...string) (netip.Addr, error) {
	if _, err := b.docker(ctx, append([]string{"run", "-d", "--name", name}, args...)...); err != nil {
		return netip.Addr{}, err
	}
	v4, _, err := b.addresses(ctx, name)
	if err != nil {
		return netip.Addr{}, err
	}
	return netip.ParseAddr(v4)
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
