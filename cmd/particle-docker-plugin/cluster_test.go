package main

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sirupsen/logrus"

	"github.com/particle-net/particle/control"
	"github.com/particle-net/particle/internal/member"
	"github.com/particle-net/particle/internal/membership"
	"github.com/particle-net/particle/internal/netnstest"
	"github.com/particle-net/particle/internal/store"
	"github.com/particle-net/particle/internal/wireguard"
	"github.com/particle-net/particle/overlay"
	"github.com/particle-net/particle/topology"
)

// begun is a host's part in a cluster, whole but for Docker and networks, after a start
// of the plugin with those files in its state.
func begun(t *testing.T, files map[string]string, external *membership.External) (*cluster, *netnstest.Namespace) {
	t.Helper()
	ns, dir, id := netnstest.New(t), t.TempDir(), topology.NodeID(fmt.Sprintf("%032x", 1))
	other := netnstest.New(t)
	netnstest.Connect(ns, "eth0", "192.0.2.1/24", other, "eth0", "192.0.2.2/24")
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	log := logrus.New()
	log.SetOutput(io.Discard)
	quietly := logrus.NewEntry(log)
	var plane *overlay.Host
	var err error
	ns.Do(func() { plane, err = overlay.Open(t.Context(), overlay.Options{NamespaceDir: netnstest.RunDir(t)}) })
	if err != nil {
		t.Fatal(err)
	}
	m, err := membership.Open(membership.Options{StateDir: dir, Name: "h", Port: 7790, External: external, Log: quietly})
	if err != nil {
		t.Fatal(err)
	}
	durable, err := store.Open(filepath.Join(t.TempDir(), "durable.db"), store.Durable)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, close := range []func() error{m.Close, plane.Close, durable.Close} {
			if err := close(); err != nil {
				t.Error(err)
			}
		}
	})
	known, err := store.NewTable[member.Known](durable, "cluster")
	if err != nil {
		t.Fatal(err)
	}
	hosts, err := store.NewTable[control.Node](durable, "hosts")
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{membership: m, link: &fabricLink{}, log: quietly, node: control.Node{ID: id, Name: "h"},
		under: &underlay{plane: plane, port: 4789, wire: 7793, node: id, log: quietly}}
	c.member, err = member.New(member.Options{Node: c.node, Fabric: c.link, Engine: quiet{}, Overlay: plane, Driver: "particle", Known: known, Hosts: hosts,
		Clock: sinceBoot, Log: quietly})
	if err != nil {
		t.Fatal(err)
	}
	c.begin(context.WithoutCancel(t.Context()))
	return c, ns
}

// What the cluster encrypts does not leave in plain because this host cannot take part
// in it. Its containers keep what they have.
func TestEncryptedClusterThatCannotBeTakenUp(t *testing.T) {
	secret, err := wireguard.NewSecret()
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		files     map[string]string
		encrypted bool
		keyless   bool
		external  *membership.External
	}{
		"no certificate":                                       {map[string]string{"cluster/cluster.json": `{"encryption":"wireguard"}`, "wireguard.key": secret.Reveal()}, true, false, nil},
		"nor a key that can be read":                           {map[string]string{"cluster/cluster.json": `{"encryption":"wireguard"}`, "wireguard.key": "?"}, true, true, nil},
		"a record that cannot be read":                         {map[string]string{"cluster/cluster.json": `{`, "wireguard.key": secret.Reveal()}, true, false, nil},
		"likewise of a cluster in plain":                       {map[string]string{"cluster/cluster.json": `{`}, false, false, nil},
		"no certificate of a plain cluster":                    {map[string]string{"cluster/cluster.json": `{}`}, false, false, nil},
		"no certificate, and an etcd for what is plain is set": {map[string]string{"cluster/cluster.json": `{"encryption":"wireguard"}`, "wireguard.key": secret.Reveal()}, true, false, &membership.External{}},
		"an etcd that cannot be used":                          {map[string]string{"wireguard.key": secret.Reveal()}, true, false, &membership.External{Encryption: topology.ByWireGuard, User: "particle"}},
	} {
		t.Run(name, func(t *testing.T) {
			host, ns := begun(t, c.files, c.external)
			if got := topology.WireGuardRange.Contains(host.reach.VTEP); got != c.encrypted || (host.reach.end != nil) != c.encrypted {
				t.Fatalf("other hosts are told of %s, %v; want a tunnel address of WireGuard's: %v", host.reach.VTEP, host.reach.end, c.encrypted)
			}
			if !c.encrypted {
				if want := netip.MustParseAddr("192.0.2.1"); host.reach.VTEP != want {
					t.Errorf("the tunnel address is %s, want %s", host.reach.VTEP, want)
				}
				return
			}
			if !c.keyless && host.reach.end.Key != secret.Public() {
				t.Error("the key is not the host's")
			}
			// ApplyWireGuard leaves its routes also where the kernel has no WireGuard.
			if touched := strings.Contains(ns.Run("ip", "-6", "route", "show", "type", "unreachable"), "fd91:9a00:bcf::/48"); touched == c.keyless {
				t.Errorf("WireGuard was set up: %v", touched)
			}
			if problem := host.under.Problem(); c.keyless && (problem == nil || !strings.Contains(problem.Error(), "wireguard.key")) {
				t.Errorf("the problem is %v", problem)
			}
		})
	}
}
