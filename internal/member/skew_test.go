package member_test

import (
	"testing"
	"time"

	"github.com/particle-net/particle/fabric"
)

// The clocks that people see differ between hosts by years: nobody notices.
func TestClocksOfHostsDiffer(t *testing.T) {
	inWorld(t, 0, func(w *world, _ []*host) {
		var hosts []*host
		for i, skew := range []time.Duration{9000 * time.Hour, -9000 * time.Hour, -5000 * time.Hour} {
			h := w.host(i)
			h.skew = skew
			h.start()
			h.connect()
			hosts = append(hosts, h)
		}
		time.Sleep(time.Second)
		a, b, c := hosts[0], hosts[1], hosts[2]
		// Two users at once, on hosts that are years behind: what is new on each is
		// so by its own clock, and one replaces the other.
		atOnce(t, []*host{b, c}, jobs("10.128.0.0/20"), jobs("10.128.16.0/20"))
		time.Sleep(time.Minute)
		w.agree("jobs", "a minute later", hosts...)
		id := a.find("jobs").SharedNetwork.ID
		suspended := func(h *host) bool { h.mu.Lock(); defer h.mu.Unlock(); return h.suspended[id] == fabric.ErrUnverified }
		w.cluster.Wipe()
		w.settle()
		w.agree("jobs", "after a loss", hosts...)
		each := func(do func(h *host)) {
			for _, h := range hosts {
				do(h)
			}
			time.Sleep(time.Minute)
		}
		each((*host).kill)
		time.Sleep(11 * time.Hour) // by each one's own clock, which goes on while it is off
		each(func(h *host) {
			h.node.Boot, h.begun = "another", time.Now()
			h.start()
			h.member.Enter()
		})
		each(func(h *host) {
			if suspended(h) {
				t.Errorf("host %s is suspended after 11 hours", h.node.Name)
			}
		})
		time.Sleep(90 * time.Minute)
		each(func(h *host) {
			if !suspended(h) {
				t.Errorf("host %s is not suspended after more than 12 hours", h.node.Name)
			}
			h.connect()
		})
		each(func(h *host) {
			if suspended(h) {
				t.Errorf("host %s is suspended, and its claims are verified", h.node.Name)
			}
		})
		w.agree("jobs", "when all are back", hosts...)
	})
}
