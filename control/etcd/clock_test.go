//go:build clock

package etcd_test

import (
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/control"
	"github.com/particle-net/particle/control/controltest"
	"github.com/particle-net/particle/control/controltest/etcdtest"
	"github.com/particle-net/particle/control/etcd"
	"github.com/particle-net/particle/topology"
)

// jump sets the wall clock. It is the whole machine's, so this file is built for
// virtual machines alone (make test-kernels).
func jump(t *testing.T, by time.Duration) {
	t.Helper()
	now, err := unix.TimeToTimespec(time.Now().Add(by))
	if err == nil {
		err = unix.ClockSettime(unix.CLOCK_REALTIME, &now)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// The clock of the store and of all hosts jumps to and fro, by more than any lease
// lasts: no host is suspected, and claims go on.
func TestClockJumps(t *testing.T) {
	const day = 24 * time.Hour
	releases(t, func(t *testing.T, release string) {
		srv := etcdtest.Start(t, release)
		steady := etcd.Opened(t, etcd.Options{Endpoints: []string{srv.Endpoint()}, Node: controltest.Node(900), LeaseTTL: time.Minute})
		n := controltest.Network(2)
		if _, err := steady.ClaimNetwork(t.Context(), n); err != nil {
			t.Fatal(err)
		}
		hosts := controltest.Follow(t, steady.WatchNodes(t.Context()), func(n control.NodeState) topology.NodeID { return n.ID })
		alive := func(i int) func() bool { return func() bool { return hosts.Have[controltest.Node(i).ID].Alive } }
		hosts.Until("the host", alive(900))
		l := begin(t, slices.Repeat([][]string{{srv.Endpoint()}}, 4))
		for _, by := range []time.Duration{time.Hour, -2 * time.Hour, 400 * day, -400*day + time.Hour} {
			jump(t, by)
			l.pass(40)
			if _, err := steady.ClaimBlock(t.Context(), n.ID, n.Subnets[0].Prefix); err != nil {
				t.Errorf("after a jump by %s: %v", by, err)
			}
		}
		l.stop()
		open(t, srv.Endpoint(), controltest.Node(901))
		hosts.Until("the last host", func() bool {
			if !alive(900)() {
				t.Error("a host was suspected because the clock had jumped")
			}
			return alive(901)()
		})
	})
}
