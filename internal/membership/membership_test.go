package membership_test

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/particle-net/particle/control/controltest/etcdtest"
	"github.com/particle-net/particle/control/enrol"
	"github.com/particle-net/particle/control/server"
	"github.com/particle-net/particle/internal/membership"
)

func TestInitJoinLeave(t *testing.T) {
	port := etcdtest.FreePorts(t)
	h1, h2 := newHost(t, "h1", "127.0.0.1", port), newHost(t, "h2", "127.0.0.2", port)
	for _, h := range []*host{h1, h2} {
		if c := h.connection(); c != nil {
			t.Fatalf("a connection without a cluster: %+v", c)
		}
	}
	made := h1.init()
	if err := works(t, h1.connection()); err != nil {
		t.Fatal(err)
	}
	if again := h1.init(); !again.Already || again.Token != made.Token {
		t.Errorf("the second init: %+v", again)
	}
	if joined := h2.join(made, false); joined.Already {
		t.Error("it was a member before it joined")
	}
	c := h2.connection()
	if err := works(t, c); err != nil {
		t.Fatal(err)
	}
	if joined := h2.join(made, false); !joined.Already {
		t.Error("the second join")
	}
	s := h2.Status(t.Context())
	if s.Role != membership.RoleMember || len(s.Hosts) != 2 || s.Hosts[1].Name != "h2" || len(s.Store) != 1 || !s.Store[0].Leader || s.Problem != nil {
		t.Errorf("status: %+v", s)
	}
	_, err := h1.Leave(t.Context(), membership.LeaveOptions{})
	refused(t, err, "this host alone serves the store, and 1 others")
	h2.restart()
	c = h2.connection()
	if err := works(t, c); err != nil {
		t.Fatal(err)
	}
	if _, err := h2.Leave(t.Context(), membership.LeaveOptions{}); err != nil {
		t.Fatal(err)
	}
	if h2.connection() != nil {
		t.Error("a connection after leave")
	}
	if err := works(t, c); err == nil {
		t.Error("the store takes a certificate of a host that has left")
	}
	if left, err := h2.Leave(t.Context(), membership.LeaveOptions{}); err != nil || !left.Already {
		t.Errorf("the second leave: %+v, %v", left, err)
	}
	if _, err := h1.Leave(t.Context(), membership.LeaveOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, h := range []*host{h1, h2} {
		if left, _ := filepath.Glob(filepath.Join(h.opts.StateDir, "*")); len(left) != 1 { // its id
			t.Errorf("left behind: %v", left)
		}
	}
}

func TestRefusals(t *testing.T) {
	port := etcdtest.FreePorts(t)
	h1, h2, other := newHost(t, "h1", "127.0.0.1", port), newHost(t, "h2", "127.0.0.2", port), newHost(t, "other", "127.0.0.3", port)
	made, foreign := h1.init(), other.init()
	join := func(h *host, server netip.AddrPort, token string) error {
		_, err := h.Join(t.Context(), membership.JoinOptions{Server: server, Token: token})
		return err
	}
	refused(t, join(h2, made.Address, "particle-1-x"), "read token", "particle cluster token")
	refused(t, join(h2, made.Address, foreign.Token), "belongs to another cluster than the token")
	wrong := made.Token[:len(made.Token)-4] + "aaaa"
	refused(t, join(h2, made.Address, wrong), "the token is wrong", "particle cluster token")
	refused(t, join(h2, netip.MustParseAddrPort("127.0.0.9:7790"), made.Token), "connection refused", "TCP ports 7790 to 7792")
	rotated, err := h1.Token(t.Context(), membership.TokenOptions{Rotate: true, Life: time.Nanosecond})
	if err != nil || rotated.Token == made.Token {
		t.Fatalf("%+v, %v", rotated, err)
	}
	refused(t, join(h2, made.Address, made.Token), "the token is wrong, or was changed")
	refused(t, join(h2, made.Address, rotated.Token), "the token has expired")
	if made, err = h1.Token(t.Context(), membership.TokenOptions{Life: -1}); err != nil || made.Token == rotated.Token || !made.Expires.IsZero() {
		t.Errorf("in place of the expired token: %+v, %v", made, err)
	}
	refused(t, join(other, made.Address, made.Token), "this host is in another cluster", "particle cluster leave")
	h2.join(made, false)
	_, err = h2.Token(t.Context(), membership.TokenOptions{})
	refused(t, err, "does not serve", "h1 (127.0.0.1)")
	_, err = h2.Init(t.Context(), membership.InitOptions{})
	refused(t, err, "a member of a cluster already")

	twin := newHost(t, "twin", "127.0.0.2", port)
	_, err = twin.Join(t.Context(), membership.JoinOptions{Server: made.Address, Token: made.Token, Serve: true})
	refused(t, err, "a host h2", "same address", "particle cluster remove h2", "particle cluster status")
	clone := newHost(t, "clone", "127.0.0.4", port)
	id, err := os.ReadFile(filepath.Join(h2.opts.StateDir, "node"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(clone.opts.StateDir, "node"), id, 0o600); err != nil {
		t.Fatal(err)
	}
	clone.restart()
	refused(t, join(clone, made.Address, made.Token), "a host h2 with the same id", "remove /var/lib/particle/node")
	for range 20 {
		err = join(twin, made.Address, wrong)
	}
	refused(t, err, "too many attempts from 127.0.0.1", "wait a minute")
}

func TestBusyHostsStay(t *testing.T) {
	port := etcdtest.FreePorts(t)
	h := newHost(t, "h1", "127.0.0.1", port)
	busy, stuck, gone := []string{"web"}, errors.New("the store is away"), 0
	h.opts.Busy = func(context.Context) ([]string, error) { return busy, nil }
	h.opts.Leaving = func(context.Context) error { gone++; return stuck }
	h.restart()
	h.init()
	_, err := h.Leave(t.Context(), membership.LeaveOptions{})
	refused(t, err, "containers use its networks here: web", "--force")
	busy = nil
	_, err = h.Leave(t.Context(), membership.LeaveOptions{})
	refused(t, err, "the store is away")
	if h.Status(t.Context()).Role != membership.RoleServer || gone != 1 {
		t.Errorf("role %s, part given up %d times", h.Status(t.Context()).Role, gone)
	}
	busy = []string{"web"}
	if _, err := h.Leave(t.Context(), membership.LeaveOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
}

// A host that was removed is told so, and stays away after the store has lost
// its contents; one that was not is taken in again.
func TestRemoveAndWipe(t *testing.T) {
	port := etcdtest.FreePorts(t)
	h1, h2, h3 := newHost(t, "h1", "127.0.0.1", port), newHost(t, "h2", "127.0.0.2", port), newHost(t, "h3", "127.0.0.3", port)
	made := h1.init()
	h2.join(made, false)
	h3.join(made, false)
	c := h2.endpoints(1)
	open, err := server.Dial(server.Target{Endpoints: c.Endpoints, TLS: c.TLS})
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	if _, err := open.Members(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := h1.Remove(t.Context(), "h2"); err != nil {
		t.Fatal(err)
	}
	if _, err := h1.Token(t.Context(), membership.TokenOptions{}); err != nil {
		t.Errorf("the next command finds no store: %v", err)
	}
	eventually(t, "the end of the removed host's connection", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := open.Members(ctx)
		return err != nil && h1.Status(t.Context()).Store[0].Leader
	})
	if again, err := h1.Remove(t.Context(), "h2"); err != nil || again.Name != "h2" {
		t.Errorf("removed again: %+v, %v", again, err)
	}
	_, err = h1.Remove(t.Context(), "h9")
	refused(t, err, "no such host")
	_, err = h1.Remove(t.Context(), "h1")
	refused(t, err, "it is this one")
	if works(t, c) == nil {
		t.Error("the store takes the certificate of a removed host")
	}
	if err := h1.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(h1.opts.StateDir, "cluster", "etcd")); err != nil {
		t.Fatal(err)
	}
	h1.start()
	h2.restart()
	h3.restart()
	eventually(t, "h3 again", func() bool { return len(h1.Status(t.Context()).Hosts) == 2 })
	eventually(t, "word for h2", func() bool { return errors.Is(h2.Status(t.Context()).Problem, enrol.ErrRemoved) })
	if h2.Removed() == nil || h1.Removed() != nil || h3.Removed() != nil {
		t.Errorf("removed: %v, %v, %v", h1.Removed(), h2.Removed(), h3.Removed())
	}
	if works(t, c) == nil {
		t.Error("a wiped store takes the certificate of a removed host")
	}
	if left, err := h2.Leave(t.Context(), membership.LeaveOptions{}); err != nil || left.Untold != nil {
		t.Errorf("%+v, %v", left, err)
	}
	if made, err = h1.Token(t.Context(), membership.TokenOptions{}); err != nil {
		t.Fatal(err)
	}
	h2.join(made, false)
}

// issue puts a certificate on a host's disk, as one of a time so far from now.
func (h *host) issue(file string, from *host, age time.Duration) {
	h.t.Helper()
	must := func(err error) {
		h.t.Helper()
		if err != nil {
			h.t.Fatal(err)
		}
	}
	root := filepath.Join(from.opts.StateDir, "cluster")
	authority, err := enrol.ReadAuthority(read(h.t, root, "ca.pem"), read(h.t, root, "ca.key"))
	must(err)
	dir := filepath.Join(h.opts.StateDir, "cluster")
	request, err := enrol.RequestFor(read(h.t, dir, "node.key"))
	must(err)
	addr, _ := h.opts.Address(h.t.Context())
	cert, _, err := authority.Issue(request, enrol.Subject{Node: h.Node(), Name: h.opts.Name, Address: addr, Server: h == from}, time.Now().Add(-age))
	must(err)
	must(os.WriteFile(filepath.Join(dir, file), cert, 0o600))
}

const day = 24 * time.Hour

// left is how long the host's certificate is good for.
func (h *host) left() time.Duration { return time.Until(h.Status(h.t.Context()).Expires) }

// A certificate that ends soon is renewed, by members and by servers.
func TestRenewal(t *testing.T) {
	port := etcdtest.FreePorts(t)
	h1, h2 := newHost(t, "h1", "127.0.0.1", port), newHost(t, "h2", "127.0.0.2", port)
	h2.join(h1.init(), false)
	for _, h := range []*host{h2, h1} {
		if err := h.Close(); err != nil {
			t.Fatal(err)
		}
		h.issue("node.pem", h1, 364*day)
		h.start()
		eventually(t, "a new certificate of "+h.opts.Name, func() bool { return h.left() > 360*day })
		if err := works(t, h.endpoints(1)); err != nil {
			t.Error(err)
		}
	}
}

// A server that was off for longer than its certificate was good, or has one of a time
// to which its clock had jumped, signs itself another; the register gets to know it.
func TestServerWithCertificateOfAnotherTime(t *testing.T) {
	port := etcdtest.FreePorts(t)
	h1 := newHost(t, "h1", "127.0.0.1", port)
	h1.init()
	for name, age := range map[string]time.Duration{"ended": 400 * day, "of the future": -400 * day} {
		t.Run(name, func(t *testing.T) {
			if err := h1.Close(); err != nil {
				t.Fatal(err)
			}
			h1.issue("node.pem", h1, age)
			h1.start()
			conn := h1.endpoints(1)
			eventually(t, "a certificate that is good", func() bool { return h1.left() > 360*day && h1.left() < 370*day && works(t, conn) == nil })
			eventually(t, "its entry", func() bool {
				hosts := h1.Status(t.Context()).Hosts
				return len(hosts) == 1 && slices.ContainsFunc(hosts[0].Certificates, func(c enrol.Certificate) bool {
					return c.NotAfter.Equal(h1.Status(t.Context()).Expires)
				})
			})
		})
	}
}

// A member whose certificate is of a time to which its clock had jumped goes on with the
// one before.
func TestMemberWithCertificateOfTheFuture(t *testing.T) {
	port := etcdtest.FreePorts(t)
	h1, h2 := newHost(t, "h1", "127.0.0.1", port), newHost(t, "h2", "127.0.0.2", port)
	h2.join(h1.init(), false)
	if err := h2.Close(); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(h2.opts.StateDir, "cluster")
	if err := os.Rename(filepath.Join(dir, "node.pem"), filepath.Join(dir, "node-former.pem")); err != nil {
		t.Fatal(err)
	}
	h2.issue("node.pem", h1, -400*day)
	h2.start()
	conn := h2.endpoints(1)
	eventually(t, "the store's answer", func() bool { return works(t, conn) == nil })
	if h2.left() > 370*day {
		t.Error("the certificate of the future is in force")
	}
}

func read(t *testing.T, dir, name string) []byte {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return raw
}
