package member_test

import (
	"context"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/particle-net/particle/internal/engine"
	"github.com/particle-net/particle/internal/member"
)

// The store goes away at any moment of a network's making and removal, and while it is
// away, silent or unreachable, one plugin is killed, one dockerd is, and all use up
// their blocks. When it is back, each host has another block within seconds, which all
// know.
func TestStoreIsBackAfterRestarts(t *testing.T) {
	for step := range 20 {
		removed, silent := step%2 == 0, step%4 < 2
		t.Run(fmt.Sprintf("step %d, removed %t, silent %t", step, removed, silent), func(t *testing.T) {
			three(t, func(w *world, a, b, c *host) {
				if err := a.create(engine.Spec{Name: "next", Subnets: jobs("10.8.0.0/16").Subnets}); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Duration(step) * 200 * time.Millisecond)
				if removed {
					a.remove("next")
				}
				time.Sleep(time.Duration(step%7) * 30 * time.Millisecond)
				all := []*host{a, b, c}
				for _, h := range all {
					h.store.Hush(silent)
					h.store.Cut(true)
				}
				b.kill()
				c.setDown(true)
				time.Sleep(time.Second)
				b.start()
				b.connect()
				b.store.Cut(true)
				time.Sleep(5 * time.Second)
				c.setDown(false)
				for _, h := range all {
					if err := h.another(); err == nil {
						t.Errorf("host %s has another block without a store", h.node.Name)
					}
				}
				time.Sleep(20 * time.Second)
				for _, h := range all {
					h.store.Hush(false)
					h.store.Cut(false)
				}
				time.Sleep(5 * time.Second)
				for _, h := range all {
					if err := h.another(); err != nil {
						t.Errorf("host %s, 5 s after the store is back: %v", h.node.Name, err)
					}
				}
				time.Sleep(time.Second)
				w.agree("jobs", "when the store is back", all...)
			})
		})
	}
}

// another asks for a block as somebody does who waits for it.
func (h *host) another() error {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	return h.member.Refill(ctx, h.find("jobs").SharedNetwork.ID, netip.MustParsePrefix("10.9.0.0/16"))
}

// What was removed while containers live on it is there again when the store is set back to
// before that, and nobody is told that it goes.
func TestRemovalThatTheStoreHasForgotten(t *testing.T) {
	three(t, func(w *world, a, b, c *host) {
		before := w.cluster.Save()
		c.edit("jobs", func(n *docker) { n.containers = 1 })
		b.edit("jobs", func(n *docker) { n.containers = 1 })
		a.remove("jobs")
		time.Sleep(soon)
		if got := c.phase("jobs"); got != member.Leaving {
			t.Errorf("removed, and it is %s on c", got)
		}
		w.cluster.Load(before)
		time.Sleep(time.Minute)
		for _, h := range []*host{b, c} {
			if got := h.phase("jobs"); got != member.Ready {
				t.Errorf("there again, and it is %s on %s", got, h.node.Name)
			}
		}
	})
}
