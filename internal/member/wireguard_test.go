package member_test

import (
	"context"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/particle-net/particle/control"
	"github.com/particle-net/particle/internal/member"
	"github.com/particle-net/particle/topology"
)

// encrypting gives a host that was not started yet its end of WireGuard.
func (h *host) encrypting() {
	addr, err := topology.WireGuardAddress(h.node.ID)
	if err != nil {
		h.w.t.Fatal(err)
	}
	end := &control.WireGuard{Key: topology.WireGuardKey{0: 1, 1: h.node.Name[0]}, Endpoint: netip.AddrPortFrom(h.node.VTEP, 7793)}
	h.node.VTEP, h.node.WireGuard = addr, end
}

func (h *host) peer() topology.WireGuardPeer {
	return topology.WireGuardPeer{Address: h.node.VTEP, Key: h.node.WireGuard.Key, Endpoint: h.node.WireGuard.Endpoint}
}

// inEncryptedWorld is inWorld for hosts that encrypt.
func inEncryptedWorld(t *testing.T, hosts int, test func(*world, []*host)) {
	inWorld(t, 0, func(w *world, _ []*host) {
		var all []*host
		for i := range hosts {
			h := w.host(i)
			h.encrypting()
			h.start()
			h.connect()
			all = append(all, h)
		}
		time.Sleep(time.Second)
		test(w, all)
	})
}

// knows finds a host encrypting for others and letting them in, and nobody else.
func (h *host) knows(when string, others ...*host) {
	h.w.t.Helper()
	var ends []topology.WireGuardPeer
	members := []netip.Addr{h.node.VTEP}
	for _, o := range others {
		ends, members = append(ends, o.peer()), append(members, o.node.VTEP)
	}
	slices.SortFunc(members, netip.Addr.Compare)
	h.mu.Lock()
	defer h.mu.Unlock()
	if !slices.Equal(h.ends, ends) || !slices.Equal(h.members, members) {
		h.w.t.Errorf("%s: host %s encrypts for %v and lets in %v, want %v and %v", when, h.node.Name, h.ends, h.members, ends, members)
	}
}

func TestEncryptedHostsKnowEachOther(t *testing.T) {
	inEncryptedWorld(t, 3, func(w *world, hosts []*host) {
		a, b, c := hosts[0], hosts[1], hosts[2]
		if err := a.create(jobs("10.9.0.0/16")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(soon)
		w.agree("jobs", "encrypted", a, b, c)
		a.knows("at first", b, c)
		c.knows("at first", a, b)

		moved := *b.node.WireGuard
		moved.Endpoint = netip.MustParseAddrPort("192.0.2.77:7793")
		b.node.WireGuard = &moved
		b.member.SetReach(netip.AddrPortFrom(b.node.VTEP, b.node.Port), b.node.WireGuard)
		time.Sleep(soon)
		a.knows("when b has moved", b, c)

		if err := c.member.Leave(context.Background()); err != nil {
			t.Fatal(err)
		}
		c.member.Disconnect()
		time.Sleep(time.Minute)
		a.knows("when c has left", b)
		if len(c.hosts.text) > 0 {
			t.Errorf("c still has hosts on disk: %v", c.hosts.text)
		}

		c.member.SetReach(netip.MustParseAddrPort("192.0.2.3:8472"), nil)
		c.mu.Lock()
		c.ends = nil // with the device
		c.mu.Unlock()
		time.Sleep(time.Minute)
		c.member.SetReach(netip.AddrPortFrom(c.node.VTEP, c.node.Port), c.node.WireGuard)
		c.connect()
		time.Sleep(time.Minute)
		c.knows("in again", a, b)
	})
}

// Without the store a host that boots has its peers of the disk.
func TestEncryptedHostBootsWithoutStore(t *testing.T) {
	inEncryptedWorld(t, 3, func(_ *world, hosts []*host) {
		a, b, c := hosts[0], hosts[1], hosts[2]
		if err := a.create(jobs("10.9.0.0/16")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(soon)
		a.kill()
		a.ends, a.members = nil, nil
		a.start()
		a.member.Enter()
		time.Sleep(soon)
		a.knows("after the boot", b, c)
	})
}

// What a record may say that is not so: none of it opens a way in plain, or to
// another's address.
func TestStrangersInAnEncryptedCluster(t *testing.T) {
	for name, spoil := range map[string]func(stranger *control.Node, a control.Node){
		"an address in plain":  func(n *control.Node, _ control.Node) { n.VTEP = netip.MustParseAddr("192.0.2.9") },
		"no key":               func(n *control.Node, _ control.Node) { n.WireGuard = nil },
		"another's address":    func(n *control.Node, a control.Node) { n.VTEP = a.VTEP },
		"another's key":        func(n *control.Node, a control.Node) { n.WireGuard.Key = a.WireGuard.Key },
		"an address of nobody": func(n *control.Node, _ control.Node) { n.VTEP = netip.MustParseAddr("fd91:9a00:bcf::9") },
	} {
		t.Run(name, func(t *testing.T) {
			inEncryptedWorld(t, 2, func(w *world, hosts []*host) {
				a, b := hosts[0], hosts[1]
				if err := a.create(jobs("10.9.0.0/16")); err != nil {
					t.Fatal(err)
				}
				c := w.host(2)
				c.encrypting()
				spoil(&c.node, a.node)
				c.start()
				c.connect()
				time.Sleep(time.Minute)
				routes := b.find("jobs").peers
				b.mu.Lock()
				defer b.mu.Unlock()
				if want := []topology.WireGuardPeer{a.peer()}; !slices.Equal(b.ends, want) {
					t.Errorf("b encrypts for %v, want %v", b.ends, want)
				}
				for _, addr := range b.members {
					if !topology.WireGuardRange.Contains(addr) {
						t.Errorf("b lets in %v", b.members)
					}
				}
				for _, p := range routes {
					if !topology.WireGuardRange.Contains(p.VTEP) {
						t.Errorf("b has a route by %s", p.VTEP)
					}
				}
			})
		})
	}
}

// Until a list of hosts was heard, what the kernel has is not touched.
func TestPeersStayUntilTheStoreAnswers(t *testing.T) {
	inEncryptedWorld(t, 0, func(w *world, _ []*host) {
		h := w.host(0)
		h.encrypting()
		h.start()
		h.member.Enter()
		time.Sleep(time.Minute)
		if h.ends != nil {
			t.Errorf("told the kernel %v without knowing", h.ends)
		}
	})
}

// A cluster that does not encrypt has none of it.
func TestPlainHostsSendNothingToTunnelAddresses(t *testing.T) {
	inWorld(t, 2, func(w *world, hosts []*host) {
		if err := hosts[0].create(jobs("10.9.0.0/16")); err != nil {
			t.Fatal(err)
		}
		c := w.host(2)
		c.encrypting()
		c.start()
		c.connect()
		time.Sleep(time.Minute)
		a := hosts[0]
		synctest.Wait()
		a.mu.Lock()
		defer a.mu.Unlock()
		if want := []netip.Addr{a.node.VTEP, hosts[1].node.VTEP}; !slices.Equal(a.members, want) || a.ends != nil || len(a.hosts.text) > 0 {
			t.Errorf("a lets in %v, encrypts for %v, has %d hosts on disk", a.members, a.ends, len(a.hosts.text))
		}
	})
}

var _ member.Overlay = (*host)(nil)
