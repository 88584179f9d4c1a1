package membership_test

import (
	"testing"

	"github.com/particle-net/particle/control/controltest/etcdtest"
)

// Hosts that are called otherwise than when they joined, as machines of one image are, are
// known by what they are called now, and removed by it.
func TestHostsAreCalledOtherwise(t *testing.T) {
	port := etcdtest.FreePorts(t)
	h1, h2 := newHost(t, "image", "127.0.0.1", port), newHost(t, "image", "127.0.0.2", port)
	h2.join(h1.init(), false)
	h1.opts.Name, h2.opts.Name = "h1", "h2"
	h1.restart()
	h1.endpoints(1)
	called := func(h *host) (name string) {
		for _, known := range h1.Status(t.Context()).Hosts {
			if known.ID == h.Node() {
				name = known.Name
			}
		}
		return name
	}
	eventually(t, "the server's name", func() bool { return called(h1) == "h1" })
	h2.restart()
	eventually(t, "the member's name", func() bool { return called(h2) == "h2" })
	if done, err := h1.Remove(t.Context(), "h2"); err != nil || done.Name != "h2" {
		t.Errorf("%+v, %v", done, err)
	}
}
