package membership_test

import (
	"context"
	"crypto/x509"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/particle-net/particle/control/controltest/etcdtest"
	"github.com/particle-net/particle/control/server"
)

// The cluster does not end with a file of its only server's that can be made anew. What
// was revoked stays revoked: the store has it.
func TestOnlyServerWithDamagedFiles(t *testing.T) {
	port := etcdtest.FreePorts(t)
	h1, h2 := newHost(t, "h1", "127.0.0.1", port), newHost(t, "h2", "127.0.0.2", port)
	h2.join(h1.init(), false)
	removed := h2.endpoints(1)
	if _, err := h1.Remove(t.Context(), "h2"); err != nil {
		t.Fatal(err)
	}
	certificates := 1
	for _, name := range []string{"crl.der", "node.pem", "node.key"} {
		file := filepath.Join(h1.opts.StateDir, "cluster", name)
		if err := errors.Join(h1.Close(), os.WriteFile(file, []byte("damaged"), 0o600)); err != nil {
			t.Fatal(err)
		}
		h1.start()
		c := h1.endpoints(1)
		if name != "crl.der" {
			certificates++
		}
		eventually(t, "the store again, without "+name, func() bool {
			client, err := server.Dial(server.Target{Endpoints: c.Endpoints, TLS: c.TLS})
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			h, err := client.Register().Host(ctx, h1.Node())
			return err == nil && len(h.Certificates) == certificates
		})
		eventually(t, "what was revoked, without "+name, func() bool {
			raw, err := os.ReadFile(filepath.Join(h1.opts.StateDir, "cluster", "crl.der"))
			if err != nil {
				t.Fatal(err)
			}
			list, err := x509.ParseRevocationList(raw)
			return err == nil && len(list.RevokedCertificateEntries) > 0
		})
		eventually(t, "the store to the host, without "+name, func() bool { return works(t, c) == nil })
		if works(t, removed) == nil {
			t.Errorf("the removed host is heard, without %s", name)
		}
	}
}
