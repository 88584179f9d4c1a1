package etcd_test

import (
	"errors"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/particle-net/particle/control"
	"github.com/particle-net/particle/control/blocks"
	"github.com/particle-net/particle/control/controltest"
	"github.com/particle-net/particle/control/controltest/etcdtest"
)

// loses has the store lose claims, the hosts claim again what they have while they
// go on, and the time end in which they may.
func (l *load) loses(srv *etcdtest.Server, strike func()) {
	strike()
	l.pass(30) // claims that are granted now may be another's
	l.each(func(host *loadHost) { host.reclaim(l) })
	l.settles(srv)
}

// settles has that time end, for all hosts.
func (l *load) settles(srv *etcdtest.Server) {
	l.t.Helper()
	probe := control.Claim{Network: l.n.ID, Prefix: netip.PrefixFrom(last(l.n), 32)}
	for began := time.Now(); ; l.pass(1) {
		srv.Expire("settling", "restored")
		var mu sync.Mutex
		var waiting []error
		l.each(func(host *loadHost) {
			_, err := host.ClaimAddress(l.t.Context(), l.n.ID, probe.Prefix.Addr(), "")
			host.until(l, "release the probe", func() error { return host.Release(l.t.Context(), probe) })
			if err != nil && !errors.Is(err, control.ErrTaken) {
				mu.Lock()
				defer mu.Unlock()
				waiting = append(waiting, err)
			}
		})
		if len(waiting) == 0 {
			return
		}
		if errors.Is(waiting[0], control.ErrNoNetwork) { // nobody had a part of it
			_, _ = l.first.ClaimNetwork(l.t.Context(), l.n)
		}
		if time.Since(began) > time.Minute {
			l.t.Fatal(errors.Join(waiting...))
		}
	}
}

// last is an address of the network that only settles asks for.
func last(n control.Network) netip.Addr { return blocks.Last(n.Subnets[0].Prefix).Prev() }

// reclaim does as a host's member does that finds a list to be of a store that has
// lost something: what the store has for it and it does not know of it gives back,
// and what it has it claims again. Of that an older store may say that another has
// it, who has given it back since, until that one has done so again.
func (h *loadHost) reclaim(l *load) {
	for _, b := range blocks.Unused(l.n.Subnets[0], 8, func(netip.Prefix) bool { return false }) {
		h.gives(l, b)
		for a := b.Addr(); b.Contains(a); a = a.Next() {
			if (a.As4()[3]-1)%12 == 0 { // Churn asks for these
				h.gives(l, netip.PrefixFrom(a, 32))
			}
		}
	}
	for _, c := range h.have {
		h.until(l, "restore "+c.Prefix.String(), func() error { return h.Restore(l.t.Context(), l.n, c) })
	}
}

// gives gives back what the host does not know to have.
func (h *loadHost) gives(l *load, p netip.Prefix) {
	c := control.Claim{Network: l.n.ID, Prefix: p}
	if !slices.ContainsFunc(h.have, func(c control.Claim) bool { return c.Prefix == p }) {
		h.until(l, "release "+p.String(), func() error { return h.Release(l.t.Context(), c) })
	}
}

// look has the host know how new the store is.
func (h *loadHost) look(l *load) { h.gives(l, netip.PrefixFrom(last(l.n), 32)) }

// until repeats what the store does not answer, or not as it should.
func (h *loadHost) until(l *load, what string, try func() error) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(20 * time.Second)
	for {
		err := try()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			l.t.Errorf("%s: still after 20 s: %v", what, err)
			return
		}
	}
}

// same says whether routes are what the hosts have, who have ended.
func (l *load) same(routes map[controltest.RouteKey]control.Route) bool {
	want := map[controltest.RouteKey]bool{}
	for i, host := range l.hosts {
		for _, c := range host.have {
			want[controltest.RouteKey{Prefix: c.Prefix.String(), Node: controltest.Node(i + 1).ID}] = true
		}
	}
	return maps.EqualFunc(want, routes, func(bool, control.Route) bool { return true })
}
