package member_test

import (
	"slices"
	"testing"
	"testing/synctest"

	"github.com/particle-net/particle/topology"
)

// Who comes is let in, and encrypted for, when the store tells, and not with the next
// look at everything.
func TestHostThatComesIsKnownAtOnce(t *testing.T) {
	for name, encrypted := range map[string]bool{"plain": false, "encrypted": true} {
		t.Run(name, func(t *testing.T) {
			in := inWorld
			if encrypted {
				in = inEncryptedWorld
			}
			in(t, 1, func(w *world, hosts []*host) {
				a, b := hosts[0], w.host(1)
				if encrypted {
					b.encrypting()
				}
				b.start()
				b.connect()
				synctest.Wait()
				a.mu.Lock()
				defer a.mu.Unlock()
				if !slices.Contains(a.members, b.node.VTEP) {
					t.Errorf("lets in %v", a.members)
				}
				if encrypted && !slices.Equal(a.ends, []topology.WireGuardPeer{b.peer()}) {
					t.Errorf("encrypts for %v", a.ends)
				}
			})
		})
	}
}
