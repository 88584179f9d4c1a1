package fabric_test

import (
	"net/netip"
	"testing"
	"testing/synctest"

	"github.com/particle-net/particle/fabric"
)

// Docker has lost one of two networks of one subnet. Its pool goes at last, also if the
// plugin was started anew before.
func TestPoolOfLostNetworkGoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		f := w.open()
		w.create(f, netID("a"), "jobs", "10.77.0.0/24")
		p := w.create(f, netID("b"), "more", "10.77.0.0/24")
		w.networks = w.networks[1:] // as Docker lists them
		w.networks[0].Pools = []netip.Prefix{p.Subnet}
		past(t, f)
		f = w.reopen()
		if err := f.DeleteNetwork(ctx, netID("b")); err != nil {
			t.Fatal(err)
		}
		if err := f.ReleasePool(ctx, p.ID); err != nil {
			t.Fatal(err)
		}
		w.networks = nil
		past(t, f)
		w.crash()
		left, err := table[fabric.Pool](w, w.store("durable.db"), "pools").All()
		if err != nil || len(left) != 0 {
			t.Errorf("%v; on disk: %+v", err, left)
		}
	})
}
