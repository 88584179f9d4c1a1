package membership_test

import (
	"testing"

	"github.com/particle-net/particle/internal/membership"
)

func TestInitJoinLeave(t *testing.T) {
	port := freePorts(t)
	h1, h2 := newHost(t, "h1", "127.0.0.1", port), newHost(t, "h2", "127.0.0.2", port)
	for _, h := range []*host{h1, h2} {
		if c := h.connection(); c != nil {
			t.Fatalf("a connection without a cluster: %+v", c)
		}
	}
	made := h1.init()
	if err := works(t, h1.connection()); err != nil {
		t.Fatal(err)
	}
	if again := h1.init(); !again.Already || again.Token != made.Token {
		t.Errorf("the second init: %+v", again)
	}
	if joined := h2.join(made, false); joined.Already {
		t.Error("it was a member before it joined")
	}
	c := h2.connection()
	if err := works(t, c); err != nil {
		t.Fatal(err)
	}
	if joined := h2.join(made, false); !joined.Already {
		t.Error("the second join")
	}
	if _, err := h2.Leave(t.Context(), membership.LeaveOptions{}); err != nil {
		t.Fatal(err)
	}
	if h2.connection() != nil {
		t.Error("a connection after leave")
	}
	if err := works(t, c); err == nil {
		t.Error("the store takes a certificate of a host that has left")
	}
}
