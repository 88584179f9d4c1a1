package main

import (
	"context"
	"net/netip"
	"sync"

	"github.com/sirupsen/logrus"

	"github.com/particle-net/particle/control"
	"github.com/particle-net/particle/internal/wireguard"
	"github.com/particle-net/particle/overlay"
	"github.com/particle-net/particle/topology"
)

// underlay is what VXLAN travels over: the host's network, or WireGuard on top of it.
type underlay struct {
	plane *overlay.Host
	vtep  netip.Addr // as set; invalid to find one
	port  uint16     // UDP, of VXLAN
	wire  uint16     // UDP, of WireGuard
	node  topology.NodeID
	log   *logrus.Entry

	// looking lets one at a time change WireGuard. Rank: before mu.
	looking sync.Mutex
	made    bool // WireGuard was what it should be

	mu      sync.Mutex // guards what follows
	secret  wireguard.Secret
	problem error
}

// reach is how other hosts reach this one.
type reach struct {
	topology.Underlay
	end      *control.WireGuard // nil without encryption
	repaired bool               // WireGuard was not as it had been left
}

// encrypt has all VXLAN go by WireGuard from now on; with no key, in plain.
func (u *underlay) encrypt(secret wireguard.Secret) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.secret = secret
}

// Problem is why other hosts are not reached: what is to be encrypted waits.
func (u *underlay) Problem() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.problem
}

// look finds the host's address and, in an encrypted cluster, makes its end of
// WireGuard. With encryption it never fails: the tunnel address is the host's in
// any case, so that nothing has another way.
func (u *underlay) look(ctx context.Context) (reach, error) {
	u.looking.Lock()
	defer u.looking.Unlock()
	u.mu.Lock()
	secret := u.secret
	u.mu.Unlock()
	plain, err := u.plane.Underlay(ctx, u.vtep)
	if !secret.Valid() {
		u.made = false
		u.note(nil)
		return reach{Underlay: plain}, err
	}
	if err != nil {
		plain = topology.Underlay{MTU: defaultMTU, Port: u.port}
	}
	address, failed := topology.WireGuardAddress(u.node)
	if failed != nil {
		return reach{}, failed
	}
	r := reach{Underlay: plain.Encrypted(address), end: &control.WireGuard{Key: secret.Public()}}
	if plain.VTEP.IsValid() {
		r.end.Endpoint = netip.AddrPortFrom(plain.VTEP, u.wire)
	}
	changed, failed := u.plane.ApplyWireGuard(ctx, wireguard.End{Address: address, Secret: secret, Port: u.wire, MTU: r.MTU})
	r.repaired = changed && u.made
	u.made = failed == nil
	if failed != nil {
		err = failed
	}
	u.note(err)
	return r, nil
}

// note keeps a problem for those who ask, and tells the log when it is news.
func (u *underlay) note(err error) {
	u.mu.Lock()
	before := u.problem
	u.problem = err
	u.mu.Unlock()
	switch {
	case err != nil && (before == nil || before.Error() != err.Error()):
		u.log.WithError(err).Error("other hosts are not reached: nothing leaves this one in plain")
	case err == nil && before != nil:
		u.log.Info("WireGuard is as it should be")
	}
}

// remove takes WireGuard away, for a host that is in no encrypted cluster.
func (u *underlay) remove(ctx context.Context) {
	if err := u.plane.RemoveWireGuard(ctx); err != nil {
		u.log.WithError(err).Warn("WireGuard is left")
	}
}

// defaultMTU is Ethernet's, for a host that has no address yet.
const defaultMTU = 1500
