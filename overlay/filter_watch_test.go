package overlay_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/particle-net/particle/internal/netnstest"
	"github.com/particle-net/particle/overlay"
	"github.com/particle-net/particle/topology"
)

// What takes rules from the filter is told at once, and repaired though the filter was
// seen in order just before. What others do with rules of their own is not.
func TestLostFilterIsTold(t *testing.T) {
	t.Parallel()
	netnstest.RequireTool(t, "nft")
	m := newMachine(t, "192.0.2.1/24", func(o *overlay.Options) { o.AcceptEvery = time.Hour })
	m.apply(part([]string{"10.9.1.0/24"}, []string{"10.9.0.0/16"}), true)
	m.members("192.0.2.2", "2001:db8::2")
	show := func() string { return m.Run("nft", "list", "ruleset") }
	want := show()

	ctx, stop := context.WithCancel(t.Context())
	told := make(chan string, 1000)
	var watching sync.WaitGroup
	watching.Go(func() {
		if err := m.WatchFilter(ctx, func() { told <- show() }); err != nil {
			t.Error(err)
		}
	})
	defer watching.Wait()
	defer stop()
	m.awaitWatch(told)
	for _, loss := range []string{"flush ruleset", "flush chain inet particle-vxlan members", "delete element inet particle-vxlan members4 { 192.0.2.2 }"} {
		m.Run("nft", loss)
		for range told {
			changed, err := m.RepairMembers(t.Context())
			if err != nil {
				t.Fatalf("after %q: %v", loss, err)
			}
			if changed { // else it is of what came before
				break
			}
		}
		if got := show(); got != want {
			t.Errorf("after %q:\n%s\nwant:\n%s", loss, got, want)
		}
	}
	const others = 50
	m.Run("sh", "-c", fmt.Sprintf("for i in $(seq %d); do nft 'add table inet other; add chain inet other mine; delete table inet other'; done", others))
	m.Run("nft", "delete table inet particle-vxlan")
	calls := 0
	for now := range told {
		if calls++; !strings.Contains(now, "particle-vxlan") {
			break
		}
	}
	if calls >= others {
		t.Errorf("%d calls: what others have removed was told", calls)
	}
}

// awaitWatch returns when WatchFilter listens, of which there is no telling: it does once
// it has told of something.
func (m *machine) awaitWatch(told <-chan string) {
	m.t.Helper()
	for heard := false; !heard; {
		m.Run("nft", "delete element inet particle-vxlan members4 { 192.0.2.2 }")
		select {
		case <-told:
			heard = true
		case <-time.After(50 * time.Millisecond):
		}
		m.Run("nft", "add element inet particle-vxlan members4 { 192.0.2.2 }")
	}
}

// A network that cannot be made is in the filter for as long as it is tried. That it is
// taken out again is no loss: who is told would try at once, for ever.
func TestOwnDoingIsNoLoss(t *testing.T) {
	t.Parallel()
	netnstest.RequireTool(t, "nft")
	m := newMachine(t, "192.0.2.1/24", func(o *overlay.Options) { o.AcceptEvery = time.Hour })
	m.members("192.0.2.2")
	m.Run("ip", "link", "add", "vxlan7", "type", "vxlan", "id", "42", "dstport", "4789")
	ctx, stop := context.WithCancel(t.Context())
	told := make(chan string, 1000)
	var watching sync.WaitGroup
	watching.Go(func() {
		if err := m.WatchFilter(ctx, func() { told <- "" }); err != nil {
			t.Error(err)
		}
	})
	defer watching.Wait()
	defer stop()
	m.awaitWatch(told)
	if _, err := m.RepairMembers(t.Context()); err != nil {
		t.Fatal(err)
	}
	changed, err := m.Apply(t.Context(), part([]string{"10.9.1.0/24"}, []string{"10.9.0.0/16"}))
	if !errors.Is(err, topology.ErrVNIInUse) || changed {
		t.Fatalf("changed %v, %v, want nothing changed and %v", changed, err, topology.ErrVNIInUse)
	}
	select {
	case <-told:
		t.Error("what Apply has taken back was told as lost")
	case <-time.After(500 * time.Millisecond):
	}
}
