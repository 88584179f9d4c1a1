package addrguard_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Another branch in a network that has many. They are veth pairs, as package
// overlay makes them, with both ends in the tenant namespace.
func BenchmarkBranch(b *testing.B) {
	for _, many := range []int{1, 100, 1000} {
		b.Run(fmt.Sprint(many), func(b *testing.B) {
			h := newHost(b)
			id := h.network(1, v4)
			ns := h.spaces[id]
			var links strings.Builder
			for n := range many {
				fmt.Fprintln(&links, branchLink(n))
			}
			batch := filepath.Join(b.TempDir(), "links")
			if err := os.WriteFile(batch, []byte(links.String()), 0o600); err != nil {
				b.Fatal(err)
			}
			ns.Run("ip", "-batch", batch)
			if err := h.Protect(b.Context(), id, false); err != nil {
				b.Fatal(err)
			}
			for n := many; b.Loop(); n++ {
				b.StopTimer()
				ns.Run("sh", "-c", "ip "+branchLink(n))
				b.StartTimer()
				if err := h.ProtectBranch(b.Context(), id, endpointID(n)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// branchLink are arguments of ip that make one.
func branchLink(n int) string {
	return fmt.Sprintf("link add pb%s type veth peer name q%s", endpointID(n).Short(), endpointID(n).Short())
}
