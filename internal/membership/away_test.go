package membership_test

import (
	"testing"

	"github.com/particle-net/particle/control/controltest/etcdtest"
	"github.com/particle-net/particle/internal/membership"
)

// All servers that a member knows are replaced while it is off. It is the member that it
// was as soon as it is told where another is, and leaves nothing for that.
func TestServersReplacedWhileMemberIsOff(t *testing.T) {
	port := etcdtest.FreePorts(t)
	h1, h2, m := newHost(t, "h1", "127.0.0.1", port), newHost(t, "h2", "127.0.0.2", port), newHost(t, "m", "127.0.0.3", port)
	made := h1.init()
	m.join(made, false)
	m.endpoints(1)
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	h2.join(made, true)
	h2.endpoints(2)
	h1.restart() // it would look once a minute
	h1.endpoints(2)
	if _, err := h1.Leave(t.Context(), membership.LeaveOptions{}); err != nil {
		t.Fatal(err)
	}
	m.start()
	if c := m.endpoints(1); works(t, c) == nil {
		t.Fatal("the former server answers")
	}
	made, err := h2.Token(t.Context(), membership.TokenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "an answer of the one that is left", func() bool {
		joined, err := m.Join(t.Context(), membership.JoinOptions{Server: made.Address, Token: made.Token})
		if err == nil && (!joined.Already || len(joined.Servers) != 1 || joined.Servers[0].Name != "h2") {
			t.Fatalf("it is told %+v", joined)
		}
		return err == nil
	})
	if err := works(t, m.endpoints(1)); err != nil {
		t.Error(err)
	}
}
