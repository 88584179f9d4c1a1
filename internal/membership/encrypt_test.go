package membership_test

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/particle-net/particle/control/controltest/etcdtest"
	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/internal/membership"
	"github.com/particle-net/particle/topology"
)

// cannotEncrypt makes the host one whose kernel cannot.
func (h *host) cannotEncrypt() {
	h.t.Helper()
	h.opts.CanEncrypt = func() error {
		return &fault.Error{Op: "encrypt between hosts", Err: errors.New("the kernel has no WireGuard"), Fix: "load the module"}
	}
	h.restart()
}

func (h *host) files() []string {
	h.t.Helper()
	all, err := filepath.Glob(filepath.Join(h.opts.StateDir, "*"))
	if err != nil {
		h.t.Fatal(err)
	}
	return all
}

func (h *host) initEncrypted() membership.Made {
	h.t.Helper()
	made, err := h.Init(h.t.Context(), membership.InitOptions{Encrypt: true})
	if err != nil || made.Encryption != topology.ByWireGuard {
		h.t.Fatalf("%+v, %v", made, err)
	}
	return made
}

func TestEncryptedCluster(t *testing.T) {
	port := etcdtest.FreePorts(t)
	h1, h2 := newHost(t, "h1", "127.0.0.1", port), newHost(t, "h2", "127.0.0.2", port)
	made := h1.initEncrypted()
	first := h1.endpoints(1)
	h2.join(made, false)
	second := h2.endpoints(1)
	for _, c := range []*membership.Connection{first, second} {
		if c.Encryption != topology.ByWireGuard || !c.Secret.Valid() {
			t.Errorf("connection: %+v", c)
		}
	}
	if first.Secret.Public() == second.Secret.Public() {
		t.Error("two hosts have one key")
	}
	if info, err := os.Stat(filepath.Join(h2.opts.StateDir, "wireguard.key")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the key's file: %v, %v", info, err)
	}
	h2.restart()
	if c := h2.endpoints(1); c.Encryption != topology.ByWireGuard || c.Secret.Public() != second.Secret.Public() {
		t.Errorf("after a restart: %+v", c)
	}
	if s := h2.Status(t.Context()); s.Encryption != topology.ByWireGuard {
		t.Errorf("status: %+v", s)
	}
	h2.join(made, true)
	if c := h2.endpoints(2); c.Encryption != topology.ByWireGuard || c.Secret.Public() != second.Secret.Public() {
		t.Errorf("with two servers: %+v", c)
	}
	if _, err := h2.Leave(t.Context(), membership.LeaveOptions{}); err != nil {
		t.Fatal(err)
	}
	if left := h2.files(); len(left) != 1 { // its id
		t.Errorf("left behind: %v", left)
	}
	h2.join(made, false)
	if c := h2.endpoints(1); c.Secret.Public() == second.Secret.Public() {
		t.Error("another membership has the same key")
	}
}

func TestEncryptionIsRefused(t *testing.T) {
	port := etcdtest.FreePorts(t)
	h1, h2 := newHost(t, "h1", "127.0.0.1", port), newHost(t, "h2", "127.0.0.2", port)
	h1.cannotEncrypt()
	_, err := h1.Init(t.Context(), membership.InitOptions{Encrypt: true})
	refused(t, err, "the kernel has no WireGuard", "load the module")
	if left := h1.files(); len(left) != 1 || h1.Status(t.Context()).Role != membership.RoleNone {
		t.Errorf("left behind: %v", left)
	}
	plain := h1.init()
	// "A cluster encrypts from its" start or never does.
	_, err = h1.Init(t.Context(), membership.InitOptions{Encrypt: true})
	refused(t, err, "serves a cluster that is not encrypted", "make another")
	h2.join(plain, false) // which can, and need not
	if c := h2.endpoints(1); c.Encryption != topology.Plain || c.Secret.Valid() || len(h2.files()) != 2 {
		t.Errorf("in a cluster that is not encrypted: %+v, %v", c, h2.files())
	}

	able, unable := newHost(t, "able", "127.0.0.3", port), newHost(t, "unable", "127.0.0.4", port)
	unable.cannotEncrypt()
	made := able.initEncrypted()
	join := membership.JoinOptions{Server: netip.AddrPortFrom(made.Address.Addr(), 0), Token: made.Token}
	_, err = unable.Join(t.Context(), join)
	refused(t, err, "join the cluster", "is encrypted", "the kernel has no WireGuard", "load the module")
	if left := unable.files(); len(left) != 1 || unable.Status(t.Context()).Role != membership.RoleNone {
		t.Errorf("left behind: %v", left)
	}
	if hosts := able.Status(t.Context()).Hosts; len(hosts) != 1 {
		t.Errorf("the cluster knows the host that it has not let in: %+v", hosts)
	}
}

func TestExternalEncryption(t *testing.T) {
	h := newHost(t, "h1", "127.0.0.1", etcdtest.FreePorts(t))
	h.opts.External = &membership.External{Endpoints: []string{"http://127.0.0.1:2379"}, Encryption: topology.ByWireGuard}
	h.restart()
	c := h.connection()
	if c == nil || c.Encryption != topology.ByWireGuard || !c.Secret.Valid() {
		t.Fatalf("connection: %+v", c)
	}
	if err := os.WriteFile(filepath.Join(h.opts.StateDir, "wireguard.key"), []byte("damaged"), 0o600); err != nil {
		t.Fatal(err)
	}
	h.restart()
	refused(t, h.Status(t.Context()).Problem, "wireguard.key", "remove the file and restart the plugin")
}
