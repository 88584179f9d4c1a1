package member_test

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/particle-net/particle/control"
)

// waits is how long f took, and what came of it.
func waits(f func(context.Context) error) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	began := time.Now()
	err := f(ctx)
	return time.Since(began), err
}

// One waits for a store that has fallen silent. Nobody does after that, or when the
// watch has said so, until it answers again.
func TestNobodyWaitsForASilentStore(t *testing.T) {
	three(t, func(w *world, a, _, _ *host) {
		id, subnet := a.find("jobs").SharedNetwork.ID, netip.MustParsePrefix("10.9.0.0/16")
		calls := map[string]func(context.Context) error{
			"address": func(ctx context.Context) error {
				return a.member.ClaimAddress(ctx, id, netip.MustParseAddr("10.9.200.7"), "web")
			},
			"block": func(ctx context.Context) error { return a.member.Refill(ctx, id, subnet) },
		}
		for first := range calls {
			a.store.Hush(true)
			took, late := waits(calls[first])
			if took != 3*time.Second || !errors.Is(late, control.ErrUnreachable) {
				t.Errorf("the first %s: after %s: %v", first, took, late)
			}
			for name, call := range calls {
				took, err := waits(call)
				if took != 0 || !errors.Is(err, control.ErrUnreachable) || name == first && err.Error() != late.Error() {
					t.Errorf("after a silent %s, %s: after %s: %v; the first was told %v", first, name, took, err, late)
				}
			}
			time.Sleep(time.Hour) // and all this time
			if took, err := waits(calls[first]); took != 0 || err == nil {
				t.Errorf("an hour later: after %s: %v", took, err)
			}
			a.store.Hush(false)
			time.Sleep(time.Minute)
			for name, call := range calls {
				if _, err := waits(call); err != nil {
					t.Errorf("the store answers again, %s: %v", name, err)
				}
			}
		}
		// What the watch has said counts before anybody has waited.
		a.store.Hush(true)
		a.store.Cut(true)
		time.Sleep(time.Second)
		for name, call := range calls {
			if took, err := waits(call); took != 0 || !errors.Is(err, control.ErrUnreachable) {
				t.Errorf("cut off, %s: after %s: %v", name, took, err)
			}
		}
		a.store.Hush(false)
		a.store.Cut(false)
		time.Sleep(soon)
		for name, call := range calls {
			if _, err := waits(call); err != nil {
				t.Errorf("reached again, %s: %v", name, err)
			}
		}
	})
}

// Who waits for a block when the watch says that the store is gone waits no longer.
func TestWaitForABlockEndsWithTheStore(t *testing.T) {
	three(t, func(w *world, a, _, _ *host) {
		a.store.Hush(true)
		time.AfterFunc(time.Second, func() { a.store.Cut(true) })
		took, err := waits(func(ctx context.Context) error {
			return a.member.Refill(ctx, a.find("jobs").SharedNetwork.ID, netip.MustParsePrefix("10.9.0.0/16"))
		})
		if took != time.Second || !errors.Is(err, control.ErrUnreachable) {
			t.Errorf("after %s: %v", took, err)
		}
		a.store.Hush(false)
		a.store.Cut(false)
	})
}

// A store that has lost all answers, and must not be asked for more until hosts have
// claimed again what they had. Who asks is told so at once, and what to do; the store is
// not taken for one that is silent.
func TestNobodyWaitsForAStoreThatHasLostAll(t *testing.T) {
	three(t, func(w *world, a, _, _ *host) {
		id, subnet := a.find("jobs").SharedNetwork.ID, netip.MustParsePrefix("10.9.0.0/16")
		w.cluster.Wipe()
		time.Sleep(time.Second)
		for range 2 {
			took, err := waits(func(ctx context.Context) error { return a.member.Refill(ctx, id, subnet) })
			if took != 0 || !errors.Is(err, control.ErrSettling) || !strings.Contains(err.Error(), "; repeat in ten minutes") {
				t.Errorf("a block: after %s: %v", took, err)
			}
			took, err = waits(func(ctx context.Context) error {
				return a.member.ClaimAddress(ctx, id, netip.MustParseAddr("10.9.200.7"), "web")
			})
			if took != 0 || !errors.Is(err, control.ErrSettling) {
				t.Errorf("an address: after %s: %v", took, err)
			}
		}
		w.settle()
		if _, err := waits(func(ctx context.Context) error { return a.member.Refill(ctx, id, subnet) }); err != nil {
			t.Errorf("when all is over: %v", err)
		}
	})
}
