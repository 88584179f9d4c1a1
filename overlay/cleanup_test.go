package overlay_test

import (
	"context"
	"errors"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/particle-net/particle/overlay"
)

func TestCleanupLeavesNothing(t *testing.T) {
	t.Parallel()
	m, _ := routed(t)
	dockerFirewall(m)
	inventory := func() string {
		return m.Run("ip", "-br", "link") + m.Run("ip", "route") +
			m.Run("iptables", "-S") + m.Run("ip6tables", "-S") +
			m.Run("ip", "-6", "route") + m.Run("ip", "-6", "neighbour", "show", "nud", "permanent") + m.Run("nft", "list", "tables")
	}
	before := inventory()
	dir := m.opts.NamespaceDir + "/made"
	m.opts.NamespaceDir = dir
	m.restart()
	m.tenantWithUplink(1)
	m.apply(segment(2, 7, "192.0.2.1", "10.9.0.0/24"), true)
	m.Run("ip", "link", "add", "pu0123456789ab", "type", "veth", "peer", "name", "stray") // of a network forgotten
	for _, name := range []string{string(network(3)), string(network(4)) + ".gateway"} {  // of a crash
		if err := os.WriteFile(dir+"/"+name, nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if before == inventory() {
		t.Fatal("the inventory shows nothing")
	}
	for range 2 {
		var err error
		m.Do(func() { err = overlay.Cleanup(context.WithoutCancel(t.Context()), m.opts) })
		if err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff(before, inventory()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory is still there: %v", err)
	}
	if err := os.Mkdir(dir, 0o755); err != nil { // for the checks at the end
		t.Fatal(err)
	}
}
