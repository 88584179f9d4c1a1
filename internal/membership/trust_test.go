package membership_test

import (
	"testing"

	"github.com/particle-net/particle/control/controltest/etcdtest"
	"github.com/particle-net/particle/control/server"
)

// "Every host of a cluster can write all of its records, those by which hosts are let in
// among them": the store tells hosts from others, and not from each other.
func TestHostsTrustEachOther(t *testing.T) {
	port := etcdtest.FreePorts(t)
	h1, h2 := newHost(t, "h1", "127.0.0.1", port), newHost(t, "h2", "127.0.0.2", port)
	h2.join(h1.init(), false)
	c := h2.endpoints(1)
	client, err := server.Dial(server.Target{Endpoints: c.Endpoints, TLS: c.TLS})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	register := client.Register()
	own, err := register.Host(t.Context(), h2.Node())
	if err != nil {
		t.Fatal(err)
	}
	own.Server = true
	if _, err := register.Enter(t.Context(), own); err != nil {
		t.Errorf("the store refuses it by now, and docs/limits.md says otherwise: %v", err)
	}
}
