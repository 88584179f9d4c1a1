package membership_test

import (
	"testing"
	"time"

	"github.com/particle-net/particle/control/controltest/etcdtest"
	"github.com/particle-net/particle/internal/membership"
)

// Who removes a host hears what it may still know that lets it in: a token that is good,
// or the authority's key.
func TestWhatARemovedHostKnows(t *testing.T) {
	port := etcdtest.FreePorts(t)
	h1, h2 := newHost(t, "h1", "127.0.0.1", port), newHost(t, "h2", "127.0.0.2", port)
	made := h1.init()
	remove := func(want membership.Removed) {
		t.Helper()
		want.Name = "h2"
		if got, err := h1.Remove(t.Context(), "h2"); err != nil || got != want {
			t.Errorf("%+v, %v, want %+v", got, err, want)
		}
	}
	rejoin := func(made membership.Made, serve bool) error {
		t.Helper()
		if _, err := h2.Leave(t.Context(), membership.LeaveOptions{Force: true}); err != nil {
			t.Fatal(err)
		}
		_, err := h2.Join(t.Context(), membership.JoinOptions{Server: made.Address, Token: made.Token, Serve: serve})
		return err
	}
	h2.join(made, false)
	remove(membership.Removed{Readmits: true})
	if err := rejoin(made, false); err != nil {
		t.Errorf("the token lets it in again, as was said: %v", err)
	}
	remove(membership.Removed{Readmits: true})
	rotated, err := h1.Token(t.Context(), membership.TokenOptions{Rotate: true})
	if err != nil {
		t.Fatal(err)
	}
	refused(t, rejoin(made, false), "the token is wrong")
	if err := rejoin(rotated, true); err != nil {
		t.Fatal(err)
	}
	h2.endpoints(2)
	if _, err := h1.Token(t.Context(), membership.TokenOptions{Rotate: true, Life: time.Nanosecond}); err != nil {
		t.Fatal(err)
	}
	remove(membership.Removed{Authority: true})
}
