package main

import (
	"context"
	"errors"
	"io"
	"net/netip"
	"testing"

	"github.com/sirupsen/logrus"

	"github.com/particle-net/particle/internal/wireguard"
	"github.com/particle-net/particle/topology"
)

// looks is a data plane that finds what it is told to, or fails to look.
type looks struct {
	found topology.Underlay
	err   error
	ends  []wireguard.End
}

// Underlay implements plane.
func (l *looks) Underlay(context.Context, netip.Addr) (topology.Underlay, error) {
	return l.found, l.err
}

// ApplyWireGuard implements plane.
func (l *looks) ApplyWireGuard(_ context.Context, end wireguard.End) (bool, error) {
	l.ends = append(l.ends, end)
	return false, nil
}

// RemoveWireGuard implements plane.
func (l *looks) RemoveWireGuard(context.Context) error { return nil }

// In an encrypted cluster, a look that fails is no news of the host's address.
func TestLookThatFailsChangesNothing(t *testing.T) {
	secret, err := wireguard.NewSecret()
	if err != nil {
		t.Fatal(err)
	}
	log := logrus.New()
	log.SetOutput(io.Discard)
	at := func(addr string, mtu int) topology.Underlay {
		return topology.Underlay{VTEP: netip.MustParseAddr(addr), MTU: mtu, Port: 4789}
	}
	plane := &looks{err: errors.New("the dump was interrupted")}
	u := &underlay{plane: plane, port: 4789, wire: 7793, node: "00000000000000000000000000000001", log: logrus.NewEntry(log)}
	u.encrypt(secret)
	for i, c := range []struct {
		found    topology.Underlay
		fails    bool
		endpoint string // empty if none is known
		mtu      int    // of the link
	}{
		{topology.Underlay{}, true, "", 1500},
		{at("192.0.2.1", 9000), false, "192.0.2.1:7793", 9000},
		{topology.Underlay{}, true, "192.0.2.1:7793", 9000},
		{at("192.0.2.2", 1400), false, "192.0.2.2:7793", 1400},
		{topology.Underlay{MTU: 1500, Port: 4789}, false, "", 1500}, // it has none any more
		{topology.Underlay{}, true, "", 1500},
	} {
		plane.found, plane.err = c.found, nil
		if c.fails {
			plane.found, plane.err = topology.Underlay{}, errors.New("the dump was interrupted")
		}
		got, err := u.look(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		want := topology.Underlay{MTU: c.mtu, Port: 4789}
		if c.endpoint != "" {
			want.VTEP = netip.MustParseAddrPort(c.endpoint).Addr()
		}
		if mtu := want.Encrypted(got.VTEP).MTU; got.MTU != mtu || got.end.Endpoint.IsValid() != (c.endpoint != "") || c.endpoint != "" && got.end.Endpoint.String() != c.endpoint {
			t.Errorf("look %d: MTU %d at %s, want %d at %q", i, got.MTU, got.end.Endpoint, mtu, c.endpoint)
		}
		if problem := u.Problem(); (problem != nil) != c.fails {
			t.Errorf("look %d: the problem is %v", i, problem)
		}
	}
}
