package membership_test

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/particle-net/particle/control/controltest/etcdtest"
	"github.com/particle-net/particle/control/enrol"
	"github.com/particle-net/particle/internal/membership"
)

// loseStore ends the plugin, and takes away what its store has on the disk.
func (h *host) loseStore() {
	h.t.Helper()
	if err := errors.Join(h.Close(), os.RemoveAll(filepath.Join(h.opts.StateDir, "cluster", "etcd"))); err != nil {
		h.t.Fatal(err)
	}
}

// saysLost waits until the host tells that its store is lost, and gives its words.
func (h *host) saysLost() (problem error) {
	h.t.Helper()
	eventually(h.t, "word of the loss", func() bool {
		problem = h.Status(h.t.Context()).Problem
		return problem != nil && strings.Contains(problem.Error(), "this server's data is gone")
	})
	return problem
}

// The only server makes an empty store where it has lost its own, and it does not matter
// that another has made the cluster.
func TestOnlyServerLosesItsStore(t *testing.T) {
	h1, h2 := twoServers(t)
	h1.restart() // it would look once a minute
	h1.endpoints(2)
	if _, err := h1.Leave(t.Context(), membership.LeaveOptions{}); err != nil {
		t.Fatal(err)
	}
	h2.restart()
	h2.endpoints(1)
	h2.loseStore()
	h2.start()
	c := h2.endpoints(1)
	eventually(t, "the store again", func() bool { return works(t, c) == nil && h2.Status(t.Context()).Store[0].Leader })
}

// So does one that has made itself the only one.
func TestRecoveredServerLosesItsStore(t *testing.T) {
	h1, h2 := twoServers(t)
	if err := h1.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := h2.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	h2.loseStore()
	h2.start()
	c := h2.endpoints(1)
	eventually(t, "the store again", func() bool { return works(t, c) == nil })
}

// One that lost its store when others served, and is the last that there is, makes an
// empty one when it is told so.
func TestLastServerLosesItsStore(t *testing.T) {
	h1, h2 := twoServers(t)
	if err := h1.Close(); err != nil {
		t.Fatal(err)
	}
	h2.loseStore()
	h2.start()
	refused(t, h2.saysLost(), "particle cluster recover")
	if _, err := h2.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := works(t, h2.endpoints(1)); err != nil {
		t.Error(err)
	}
}

// revision counts the writes of the store, as a server has them; 0 if it does not answer.
func (h *host) revision() int64 {
	for _, e := range h.Status(h.t.Context()).Store {
		if e.Leader {
			return e.Revision
		}
	}
	return 0
}

// A server that has lost its store while others serve makes none of its own beside theirs,
// also if it made the cluster, and is theirs again when it is told to join.
func TestServerLosesItsStore(t *testing.T) {
	h1, h2, h3, made := threeServers(t)
	h1.restart() // it would look once a minute
	h1.endpoints(3)
	h2.restart()
	h2.endpoints(3)
	for _, lost := range []*host{h1, h3} {
		if err := lost.Close(); err != nil {
			t.Fatal(err)
		}
		var before int64
		eventually(t, "the others without it", func() bool { before = h2.revision(); return before > 0 })
		lost.loseStore()
		lost.start()
		refused(t, lost.saysLost(), "particle cluster join --server", "h2 (127.0.0.2)")
		if err := works(t, lost.endpoints(3)); err != nil {
			t.Errorf("%s does not reach the others' store: %v", lost.opts.Name, err)
		}
		if s := h2.Status(t.Context()); len(s.Hosts) != 3 || h2.revision() < before {
			t.Errorf("the others' store was at %d and is at %d: %+v", before, h2.revision(), s.Hosts)
		}
		if lost == h3 { // the long way
			left, err := lost.Leave(t.Context(), membership.LeaveOptions{Force: true})
			if err != nil || left.Untold != nil {
				t.Fatal(left, err)
			}
			if _, err := h2.Remove(t.Context(), "h3"); err != nil {
				t.Fatal(err)
			}
		}
		lost.join(membership.Made{Address: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.2"), made.Address.Port()), Token: made.Token}, true)
		eventually(t, "three servers", func() bool {
			well := 0
			for _, e := range lost.Status(t.Context()).Store {
				if e.Problem == "" && !e.Learner {
					well++
				}
			}
			return well == 3
		})
	}
}

// A host that has left, or was removed, stays out after the store was lost, also for a
// server that has come since and has never heard of it.
func TestLaterServerRefusesWhoWasRemoved(t *testing.T) {
	port := etcdtest.FreePorts(t)
	h1, h3 := newHost(t, "h1", "127.0.0.1", port), newHost(t, "h3", "127.0.0.3", port)
	out := map[string]*membership.Connection{}
	made := h1.init()
	for name, addr := range map[string]string{"removed": "127.0.0.2", "left": "127.0.0.4"} {
		h := newHost(t, name, addr, port)
		h.join(made, false)
		out[name] = h.endpoints(1)
		var err error
		if name == "left" {
			_, err = h.Leave(t.Context(), membership.LeaveOptions{})
		} else {
			_, err = h1.Remove(t.Context(), name)
		}
		if err != nil {
			t.Fatal(err)
		}
		_ = h.Close() // its certificate goes on without it
	}
	h1.loseStore()
	h1.start()
	eventually(t, "the store again", func() (back bool) {
		var err error
		made, err = h1.Token(t.Context(), membership.TokenOptions{})
		return err == nil
	})
	h3.join(made, true)
	h3.endpoints(2)
	at := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.3"), port)
	for name, c := range out {
		c.Endpoints = []string{"https://" + netip.AddrPortFrom(at.Addr(), port+1).String()}
		if works(t, c) == nil {
			t.Errorf("the store takes the certificate of a host that has %s", name)
		}
		hello := enrol.Hello{Name: name, Address: at.Addr().Next(), Port: port}
		if _, err := (enrol.Caller{TLS: c.TLS, Hello: hello}).State(t.Context(), at); !errors.Is(err, enrol.ErrRemoved) {
			t.Errorf("enrolment for a host that has %s: %v", name, err)
		}
	}
	if hosts := h1.Status(t.Context()).Hosts; len(hosts) != 2 {
		t.Errorf("hosts of the cluster: %+v", hosts)
	}
}
