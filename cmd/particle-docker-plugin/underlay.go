package main

import (
	"context"
	"net/netip"
	"sync"

	"github.com/sirupsen/logrus"

	"github.com/particle-net/particle/control"
	"github.com/particle-net/particle/internal/wireguard"
	"github.com/particle-net/particle/topology"
)

// plane is what the underlay needs of overlay.Host.
type plane interface {
	Underlay(ctx context.Context, want netip.Addr) (topology.Underlay, error)
	ApplyWireGuard(ctx context.Context, end wireguard.End) (changed bool, err error)
	RemoveWireGuard(ctx context.Context) error
}

// underlay is what VXLAN travels over: the host's network, or WireGuard on top of it.
type underlay struct {
	plane plane
	vtep  netip.Addr // as set; invalid to find one
	port  uint16     // UDP, of VXLAN
	wire  uint16     // UDP, of WireGuard
	node  topology.NodeID
	log   *logrus.Entry

	// looking lets one at a time change WireGuard. Rank: before mu.
	looking sync.Mutex
	made    bool              // WireGuard was what it should be
	plain   topology.Underlay // as it was found last; zero if it never was

	mu      sync.Mutex // guards what follows
	secret  wireguard.Secret
	keyless error // why the key of an encrypted cluster is not known
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
	u.secret, u.keyless = secret, nil
}

// withhold has nothing go in plain while the key is not known, for a reason. WireGuard
// stays as it is: what it has by now may do.
func (u *underlay) withhold(why error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.secret, u.keyless = wireguard.Secret{}, why
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
	secret, keyless := u.secret, u.keyless
	u.mu.Unlock()
	plain, err := u.plane.Underlay(ctx, u.vtep)
	if !secret.Valid() && keyless == nil {
		u.made = false
		u.note(nil)
		return reach{Underlay: plain}, err
	}
	switch {
	case err == nil:
		u.plain = plain
	case u.plain != topology.Underlay{}:
		plain = u.plain // to look has failed: all hosts would be told that there is nothing
	default:
		plain = topology.Underlay{MTU: defaultMTU, Port: u.port}
	}
	address, failed := topology.WireGuardAddress(u.node)
	if failed != nil {
		return reach{}, failed
	}
	r := reach{Underlay: plain.Encrypted(address), end: &control.WireGuard{}}
	if plain.VTEP.IsValid() {
		r.end.Endpoint = netip.AddrPortFrom(plain.VTEP, u.wire)
	}
	if keyless != nil {
		u.made = false
		u.note(keyless)
		return r, nil
	}
	r.end.Key = secret.Public()
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
