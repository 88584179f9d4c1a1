package overlay_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/particle-net/particle/internal/netnstest"
	"github.com/particle-net/particle/overlay"
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
	// There is no telling when it listens: it does once it has told of something.
	for heard := false; !heard; {
		m.Run("nft", "add element inet particle-vxlan members4 { 192.0.2.66 }; delete element inet particle-vxlan members4 { 192.0.2.66 }")
		select {
		case <-told:
			heard = true
		default:
		}
	}
	for _, loss := range []string{"flush ruleset", "flush chain inet particle-vxlan members", "delete element inet particle-vxlan members4 { 192.0.2.2 }"} {
		m.Run("nft", loss)
		for now := range told {
			if now != want { // else it is of what came before
				break
			}
		}
		if changed, err := m.RepairMembers(t.Context()); err != nil || !changed {
			t.Errorf("after %q: changed %v, %v", loss, changed, err)
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
