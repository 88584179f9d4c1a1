package membership_test

import (
	"net/netip"
	"testing"

	"github.com/particle-net/particle/control/controltest/etcdtest"
	"github.com/particle-net/particle/internal/membership"
)

// An address at which no other host finds this one is refused, and nothing is made of it.
// One of IPv4 is the same however it is written.
func TestAddressThatNobodyReaches(t *testing.T) {
	port := etcdtest.FreePorts(t)
	h1, h2 := newHost(t, "h1", "127.0.0.1", port), newHost(t, "h2", "127.0.0.2", port)
	none := []string{"0.0.0.0", "::", "::ffff:0.0.0.0", "224.0.0.1", "ff02::1", "fe80::1%lo", "255.255.255.255"}
	for _, text := range none {
		_, err := h1.Init(t.Context(), membership.InitOptions{Address: netip.MustParseAddr(text)})
		refused(t, err, "use address", text, "--address")
		if s := h1.Status(t.Context()); s.Role != membership.RoleNone {
			t.Fatalf("after an init with %s: %s", text, s.Role)
		}
	}
	made, err := h1.Init(t.Context(), membership.InitOptions{Address: netip.MustParseAddr("::ffff:127.0.0.1")})
	if err != nil || made.Address != netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port) {
		t.Fatalf("%+v, %v", made, err)
	}
	join := func(text string, serve bool) error {
		_, err := h2.Join(t.Context(), membership.JoinOptions{Server: made.Address, Token: made.Token, Address: netip.MustParseAddr(text), Serve: serve})
		return err
	}
	for _, text := range none {
		refused(t, join(text, false), "use address", text, "--address")
	}
	refused(t, join("::ffff:127.0.0.1", true), "at the same address")
	if err := join("::ffff:127.0.0.2", false); err != nil {
		t.Fatal(err)
	}
	refused(t, join("0.0.0.0", false), "use address", "--address") // a member that is to have another
	for _, h := range h1.Status(t.Context()).Hosts {
		if !h.Address.Is4() || h.Address.IsUnspecified() {
			t.Errorf("host %s is known at %s", h.Name, h.Address)
		}
	}
}
