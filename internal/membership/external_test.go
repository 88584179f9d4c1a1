package membership_test

import (
	"context"
	"errors"
	"testing"

	"github.com/particle-net/particle/control"
	"github.com/particle-net/particle/control/controltest/etcdtest"
	"github.com/particle-net/particle/control/enrol"
	"github.com/particle-net/particle/internal/membership"
	"github.com/particle-net/particle/topology"
)

// useEtcd has the host use an etcd that somebody else runs, from the plugin's next start.
func (h *host) useEtcd() {
	h.opts.External = &membership.External{Endpoints: []string{"http://127.0.0.9:2379"}}
}

// emptied is all that has to be: a plugin that is to encrypt and has no etcd does not start.
const emptied = "docker plugin disable -f particle-net && docker plugin set particle-net PARTICLE_ETCD= PARTICLE_ENCRYPT= && docker plugin enable particle-net"

// What is refused to hosts that use an etcd of an administrator's names what is there
// in its place.
func TestExternalRefusals(t *testing.T) {
	h := newHost(t, "h1", "127.0.0.1", etcdtest.FreePorts(t))
	h.useEtcd()
	h.restart()
	const why = "PARTICLE_ETCD names an etcd"
	_, err := h.Token(t.Context(), membership.TokenOptions{})
	refused(t, err, why, "set PARTICLE_ETCD on the host that is to join")
	_, err = h.Recover(t.Context())
	refused(t, err, why, "recover etcd with its own commands")
	_, err = h.Init(t.Context(), membership.InitOptions{})
	refused(t, err, why, "set PARTICLE_ETCD on each host instead, or empty it first", emptied)
}

func TestExternalRemove(t *testing.T) {
	h := newHost(t, "h1", "127.0.0.1", etcdtest.FreePorts(t))
	h.useEtcd()
	h.opts.Known = func() []enrol.Host {
		return []enrol.Host{{ID: h.Node(), Name: "h1"}, {ID: "aaaaaa22", Name: "h2"}, {ID: "bbbbbb33", Name: "h3"}}
	}
	var gone []topology.NodeID
	h.opts.Removing = func(_ context.Context, id topology.NodeID) error {
		if id == "bbbbbb33" {
			return &busyHost{}
		}
		gone = append(gone, id)
		return nil
	}
	h.restart()
	if done, err := h.Remove(t.Context(), "h2"); err != nil || done.Name != "h2" || len(gone) != 1 || gone[0] != "aaaaaa22" {
		t.Errorf("removed %v: %+v, %v", gone, done, err)
	}
	_, err := h.Remove(t.Context(), "h3")
	refused(t, err, "h3", "it is alive", "take its user or certificate from etcd")
	_, err = h.Remove(t.Context(), "h1")
	refused(t, err, "it is this one", "particle cluster leave")
	_, err = h.Remove(t.Context(), "h9")
	refused(t, err, "no such host")
}

// busyHost is an error as the store gives it.
type busyHost struct{}

func (*busyHost) Error() string   { return "remove host: it is alive" }
func (*busyHost) Is(e error) bool { return e == control.ErrAlive }

func TestExternalLeave(t *testing.T) {
	h := newHost(t, "h1", "127.0.0.1", etcdtest.FreePorts(t))
	h.useEtcd()
	stuck, left := errors.New("etcd is away"), 0
	h.opts.Leaving = func(context.Context) error { left++; return stuck }
	h.restart()
	if h.connection() == nil {
		t.Fatal("it does not use etcd")
	}
	_, err := h.Leave(t.Context(), membership.LeaveOptions{})
	refused(t, err, "etcd is away", "cluster remove` for this host on another one")
	stuck = nil
	if done, err := h.Leave(t.Context(), membership.LeaveOptions{}); err != nil || !done.External || left != 2 {
		t.Fatalf("%+v, %v, after %d attempts", done, err, left)
	}
	if h.connection() != nil {
		t.Error("a connection after leave")
	}
	s := h.Status(t.Context())
	if s.Role != membership.RoleNone {
		t.Errorf("it is %s still", s.Role)
	}
	refused(t, s.Problem, "has left its cluster", emptied)
	if done, err := h.Leave(t.Context(), membership.LeaveOptions{}); err != nil || !done.Already || left != 2 {
		t.Errorf("the second leave: %+v, %v", done, err)
	}
	h.restart()
	if h.connection() == nil {
		t.Error("the next plugin does not heed the setting")
	}
	stuck = errors.New("etcd is away")
	if done, err := h.Leave(t.Context(), membership.LeaveOptions{Force: true}); err != nil || done.Untold == nil {
		t.Errorf("forced: %+v, %v", done, err)
	}
}

// A host that is in a cluster of particle's own stays in it, whatever PARTICLE_ETCD is:
// the others of that cluster may have their store from it.
func TestMembershipComesBeforeExternal(t *testing.T) {
	port := etcdtest.FreePorts(t)
	h1, h2 := newHost(t, "h1", "127.0.0.1", port), newHost(t, "h2", "127.0.0.2", port)
	h2.join(h1.init(), false)
	conn := h2.endpoints(1)
	h1.useEtcd()
	h1.restart()
	h1.endpoints(1)
	eventually(t, "the store, for the others", func() bool { return works(t, conn) == nil })
	eventually(t, "the server's peace", func() bool {
		s := h1.Status(t.Context())
		return s.Role == membership.RoleServer && len(s.Hosts) == 2
	})
	refused(t, h1.Status(t.Context()).Problem, "in a cluster of particle's own, and stays in it", "empty it", emptied, "particle cluster leave")
	if _, err := h1.Token(t.Context(), membership.TokenOptions{}); err != nil {
		t.Errorf("it serves the cluster by half: %v", err)
	}
	for _, h := range []*host{h2, h1} {
		if _, err := h.Leave(t.Context(), membership.LeaveOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	refused(t, h1.Status(t.Context()).Problem, "has left its cluster", "restart the plugin")
	h1.restart()
	if c := h1.connection(); c == nil || c.Endpoints[0] != "http://127.0.0.9:2379" {
		t.Errorf("after it has left: %+v", c)
	}
}
