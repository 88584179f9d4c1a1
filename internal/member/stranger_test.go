package member_test

import (
	"context"
	"net/netip"
	"slices"
	"testing"
	"time"
)

// A record that says where nothing can be sent to keeps no other host out, nor one in that
// has left.
func TestAddressThatIsNone(t *testing.T) {
	for _, text := range []string{"::ffff:192.0.2.9", "fe80::9%eth0", "0.0.0.0", "ff02::9", "224.0.0.9"} {
		t.Run(text, func(t *testing.T) {
			inWorld(t, 2, func(w *world, hosts []*host) {
				a, b := hosts[0], hosts[1]
				if err := a.create(jobs("10.9.0.0/16")); err != nil {
					t.Fatal(err)
				}
				broken := w.host(2)
				broken.node.VTEP = netip.MustParseAddr(text)
				broken.start()
				broken.connect()
				time.Sleep(time.Minute)
				late := w.host(3)
				late.start()
				late.connect()
				time.Sleep(time.Minute)
				if err := b.member.Leave(context.Background()); err != nil {
					t.Fatal(err)
				}
				b.member.Disconnect()
				time.Sleep(2 * time.Minute)
				a.mu.Lock()
				defer a.mu.Unlock()
				if want := []netip.Addr{a.node.VTEP, late.node.VTEP}; !slices.Equal(a.members, want) {
					t.Errorf("a lets in %v, want %v", a.members, want)
				}
			})
		})
	}
}
