package membership_test

import (
	"context"
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/particle-net/particle/control/controltest/etcdtest"
	"github.com/particle-net/particle/control/enrol"
	"github.com/particle-net/particle/control/server"
	"github.com/particle-net/particle/internal/membership"
	"github.com/particle-net/particle/topology"
)

// twoServers are the servers of a cluster.
func twoServers(t *testing.T) (h1, h2 *host) {
	t.Helper()
	port := etcdtest.FreePorts(t)
	h1, h2 = newHost(t, "h1", "127.0.0.1", port), newHost(t, "h2", "127.0.0.2", port)
	h2.join(h1.init(), true)
	h2.endpoints(2)
	return h1, h2
}

// threeServers are those of another, and what lets further hosts join.
func threeServers(t *testing.T) (h1, h2, h3 *host, made membership.Made) {
	t.Helper()
	port := etcdtest.FreePorts(t)
	h1, h2, h3 = newHost(t, "h1", "127.0.0.1", port), newHost(t, "h2", "127.0.0.2", port), newHost(t, "h3", "127.0.0.3", port)
	made = h1.init()
	h2.join(made, true)
	h2.endpoints(2)
	h3.join(made, true)
	h3.endpoints(3)
	return h1, h2, h3, made
}

// Three servers bear the loss of one; each can be the one that leaves.
func TestThreeServers(t *testing.T) {
	port := etcdtest.FreePorts(t)
	h1, h2, h3 := newHost(t, "h1", "127.0.0.1", port), newHost(t, "h2", "127.0.0.2", port), newHost(t, "h3", "127.0.0.3", port)
	m := newHost(t, "m", "127.0.0.4", port)
	made := h1.init()
	h2.join(made, false)
	h2.join(made, true) // a member becomes a server
	m.join(made, false)
	h2.endpoints(2)
	h3.join(made, true)
	h3.endpoints(3)
	m.restart() // it would look once a minute
	c := m.endpoints(3)
	if works(t, c) != nil {
		t.Fatal("the store does not answer")
	}
	_, err := m.Join(t.Context(), membership.JoinOptions{Server: made.Address, Token: made.Token, Serve: true})
	refused(t, err, "3 hosts serve the store already", "without --server")

	if closed := h2.Status(t.Context()).Closed; len(closed) > 0 {
		t.Errorf("closed ports: %v", closed)
	}
	if err := h1.Close(); err != nil {
		t.Fatal(err)
	}
	h2.restart() // it would look once a minute
	h2.endpoints(3)
	if text := strings.Join(h2.Status(t.Context()).Closed, "; "); !strings.Contains(text, "enrolment of h1 at 127.0.0.1") ||
		!strings.Contains(text, "peers of h1") || strings.Contains(text, "h3") {
		t.Errorf("closed ports: %s", text)
	}
	if text := strings.Join(m.Status(t.Context()).Closed, "; "); strings.Contains(text, "peers") || !strings.Contains(text, "enrolment of h1") {
		t.Errorf("closed ports: %s", text)
	}
	eventually(t, "an answer of the other two", func() bool { return works(t, c) == nil })
	h1.start()
	eventually(t, "the third", func() bool {
		s := h1.Status(t.Context())
		leaders, well := 0, 0
		for _, e := range s.Store {
			if e.Problem == "" && !e.Learner {
				well++
			}
			if e.Leader {
				leaders++
			}
		}
		return well == 3 && leaders == 1
	})

	// The host that made the cluster is no more than the others.
	if _, err := h1.Leave(t.Context(), membership.LeaveOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := h2.Remove(t.Context(), "h3"); err != nil {
		t.Fatal(err)
	}
	h2.endpoints(1)
	m.restart()
	if c := m.endpoints(1); works(t, c) != nil || !strings.Contains(c.Endpoints[0], "127.0.0.2:") {
		t.Errorf("%v does not answer", c.Endpoints)
	}
	made, err = h2.Token(t.Context(), membership.TokenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	h1.join(made, true)
	h1.endpoints(2)
}

// A server that is left alone makes itself the only one, and loses nothing; those
// that come back are told, and can serve again.
func TestRecover(t *testing.T) {
	port := etcdtest.FreePorts(t)
	h1, h2, h3 := newHost(t, "h1", "127.0.0.1", port), newHost(t, "h2", "127.0.0.2", port), newHost(t, "h3", "127.0.0.3", port)
	m := newHost(t, "m", "127.0.0.4", port)
	made := h1.init()
	if joined := h2.join(made, true); !joined.Two {
		t.Errorf("joined as the second: %+v", joined)
	}
	h2.endpoints(2)
	if joined := h3.join(made, true); joined.Two {
		t.Errorf("joined as the third: %+v", joined)
	}
	h3.endpoints(3)
	m.join(made, false)
	h1.restart() // it would look once a minute
	h1.endpoints(3)
	_, err := h2.Recover(t.Context())
	refused(t, err, "nothing is to be recovered")
	_, err = m.Recover(t.Context())
	refused(t, err, "does not serve", "h1")

	if err := errors.Join(h1.Close(), h3.Close()); err != nil {
		t.Fatal(err)
	}
	bounded, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	_, err = h2.Token(bounded, membership.TokenOptions{Rotate: true})
	refused(t, err, "read token")
	done, err := h2.Recover(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(done.Former)
	if !slices.Equal(done.Former, []string{"h1", "h3"}) {
		t.Errorf("former servers: %v", done.Former)
	}
	if s := h2.Status(t.Context()); len(s.Hosts) != 4 || len(s.Store) != 1 || !s.Store[0].Leader {
		t.Errorf("recovered: %+v", s)
	}
	fresh, err := h2.Token(t.Context(), membership.TokenOptions{})
	if err != nil || fresh.Token != made.Token {
		t.Errorf("%v is now %v, %v", made, fresh, err)
	}
	m.restart()
	if c := m.endpoints(1); works(t, c) != nil {
		t.Error("a member cannot reach the store")
	}

	h1.start()
	h3.start()
	for _, h := range []*host{h1, h3} {
		eventually(t, "word for a former server", func() bool {
			p := h.Status(t.Context()).Problem
			return p != nil && strings.Contains(p.Error(), "removed from the store")
		})
	}
	h1.join(fresh, true)
	h1.endpoints(2)
	if _, err := h2.Remove(t.Context(), "h3"); err != nil {
		t.Fatal(err)
	}
	h2.restart()
	if c := h2.endpoints(2); works(t, c) != nil {
		t.Error("the store does not answer after a restart")
	}
}

// A plugin that was killed while it recovered the store goes on when it is asked again.
func TestRecoverAgain(t *testing.T) {
	h1, h2 := twoServers(t)
	if err := errors.Join(h1.Close(), h2.RecoverHalf(t.Context())); err != nil {
		t.Fatal(err)
	}
	h2.restart()
	eventually(t, "the store", func() bool { _, err := h2.Token(t.Context(), membership.TokenOptions{}); return err == nil })
	done, err := h2.Recover(t.Context())
	if err != nil || !slices.Equal(done.Former, []string{"h1"}) {
		t.Errorf("former servers: %v, %v", done.Former, err)
	}
	for _, host := range h2.Status(t.Context()).Hosts {
		if host.Server != (host.Name == "h2") {
			t.Errorf("host %s serves the store: %t", host.Name, host.Server)
		}
	}
	_, err = h2.Recover(t.Context())
	refused(t, err, "nothing is to be recovered")
}

// What a server has confirmed last is there when it has to stand alone.
func TestRecoverWithLastWrite(t *testing.T) {
	h1, h2 := twoServers(t)
	made, err := h1.Token(t.Context(), membership.TokenOptions{Rotate: true})
	if err = errors.Join(err, h1.Close()); err != nil {
		t.Fatal(err)
	}
	if done, err := h2.Recover(t.Context()); err != nil || !slices.Equal(done.Former, []string{"h1"}) {
		t.Fatalf("former servers: %v, %v", done.Former, err)
	}
	if now, err := h2.Token(t.Context(), membership.TokenOptions{}); err != nil || now.Token != made.Token {
		t.Errorf("the token is not the one given out: %v", err)
	}
}

// A server that was killed before it had its vote says that it cannot stand alone.
func TestRecoverWithoutVote(t *testing.T) {
	h1, h2 := twoServers(t)
	if err := errors.Join(h2.Unvoted(t.Context()), h1.Close()); err != nil {
		t.Fatal(err)
	}
	h2.restart()
	_, err := h2.Recover(t.Context())
	refused(t, err, "was still joining the store", "particle cluster leave --force")
}

// move gives the host's files, and starts its plugin, in another place.
func (h *host) move(to string) {
	h.t.Helper()
	_ = os.Remove(to) // empty, if it is there
	if err := errors.Join(h.Close(), os.Rename(h.opts.StateDir, to)); err != nil {
		h.t.Fatal(err)
	}
	h.opts.StateDir = to
	h.start()
}

// A member that cannot write down that it is a server stays a member, and may try again.
func TestMemberThatCannotBecomeServer(t *testing.T) {
	port := etcdtest.FreePorts(t)
	h1, h2 := newHost(t, "h1", "127.0.0.1", port), newHost(t, "h2", "127.0.0.2", port)
	made := h1.init()
	h2.join(made, false)
	roomy := h2.opts.StateDir
	h2.move(membership.Tight(t, t.TempDir(), "cluster/cluster.json"))
	h2.endpoints(1)
	_, err := h2.Join(t.Context(), membership.JoinOptions{Server: made.Address, Token: made.Token, Serve: true})
	refused(t, err, "file name too long", "join the cluster", "run the same command again")
	if s := h2.Status(t.Context()); s.Role != membership.RoleMember {
		t.Fatalf("role %s", s.Role)
	}
	if err := works(t, h2.endpoints(1)); err != nil {
		t.Error(err)
	}
	_, err = h2.Init(t.Context(), membership.InitOptions{})
	refused(t, err, "a member of a cluster already")
	h2.move(roomy)
	h2.join(made, true)
	if err := works(t, h2.endpoints(2)); err != nil {
		t.Error(err)
	}
}

// A host that cannot write down that it has joined is in no cluster, and may try again.
func TestJoinThatCannotBeWritten(t *testing.T) {
	port := etcdtest.FreePorts(t)
	h1, h2 := newHost(t, "h1", "127.0.0.1", port), newHost(t, "h2", "127.0.0.2", port)
	made := h1.init()
	roomy := h2.opts.StateDir
	h2.move(membership.Tight(t, t.TempDir(), "cluster/cluster.json"))
	_, err := h2.Join(t.Context(), membership.JoinOptions{Server: made.Address, Token: made.Token})
	refused(t, err, "file name too long")
	if s := h2.Status(t.Context()); s.Role != membership.RoleNone || s.Problem != nil {
		t.Errorf("%+v", s)
	}
	h2.move(roomy)
	if h2.join(made, false); works(t, h2.endpoints(1)) != nil {
		t.Error("the store does not answer")
	}
}

// Whatever a kill leaves, the next start goes on from.
func TestKilled(t *testing.T) {
	port := etcdtest.FreePorts(t)
	h1, h2 := newHost(t, "h1", "127.0.0.1", port), newHost(t, "h2", "127.0.0.2", port)
	for _, name := range []string{"cluster.new", "cluster.left"} {
		if err := os.MkdirAll(filepath.Join(h1.opts.StateDir, name, "etcd"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	h1.restart()
	made := h1.init()
	if left, _ := filepath.Glob(filepath.Join(h1.opts.StateDir, "cluster.*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}

	// Killed after a server let it in, and before it wrote that down.
	token, err := enrol.ParseToken(made.Token)
	if err != nil {
		t.Fatal(err)
	}
	_, request, err := enrol.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	addr, _ := h2.opts.Address(t.Context())
	_, _, err = enrol.Join(t.Context(), made.Address, token, enrol.JoinRequest{Request: request, ID: h2.Node(), Name: "h2", Address: addr, Port: port, Server: true})
	if err != nil {
		t.Fatal(err)
	}
	h2.restart()
	if h2.connection() != nil {
		t.Error("a connection without a cluster")
	}
	h2.join(made, true)
	if c := h2.endpoints(2); works(t, c) != nil {
		t.Error("the store does not answer")
	}
}

// A server that was let in and then not entered, since the one that did so was killed, does
// not keep others from becoming one. One that was entered does, until it is removed.
func TestServerThatNeverCame(t *testing.T) {
	port := etcdtest.FreePorts(t)
	h1, h2 := newHost(t, "h1", "127.0.0.1", port), newHost(t, "h2", "127.0.0.2", port)
	made := h1.init()
	c := h1.endpoints(1)
	client, err := server.Dial(server.Target{Endpoints: c.Endpoints, TLS: c.TLS})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	never := enrol.Host{ID: topology.NodeID(strings.Repeat("9", 32)), Name: "h9", Address: netip.MustParseAddr("127.0.0.9"), Port: port, Server: true}
	if _, err := client.Add(t.Context(), never); err != nil {
		t.Fatal(err)
	}
	entered, err := client.Register().Enter(t.Context(), never)
	if err != nil {
		t.Fatal(err)
	}
	_, err = h2.Join(t.Context(), membership.JoinOptions{Server: made.Address, Token: made.Token, Serve: true})
	refused(t, err, "too many learner", "or remove it")
	if err := client.Register().Remove(t.Context(), entered.ID, false); err != nil {
		t.Fatal(err)
	}
	h2.join(made, true)
	if err := works(t, h2.endpoints(2)); err != nil {
		t.Error(err)
	}
}

// A server whose address is its host's no more is told to leave, can do so by way of
// the others, and joins again with another.
func TestMoved(t *testing.T) {
	_, _, h3, made := threeServers(t)
	if err := h3.Close(); err != nil {
		t.Fatal(err)
	}
	h3.rewrite(func(record map[string]any) { record["address"] = "192.0.2.7" })
	h3.start()
	var problem error
	eventually(t, "word of the address", func() bool {
		problem = h3.Status(t.Context()).Problem
		return problem != nil && strings.Contains(problem.Error(), "cannot assign requested address")
	})
	refused(t, problem, "give the host its address back", "particle cluster leave", "join")
	if _, err := h3.Leave(t.Context(), membership.LeaveOptions{}); err != nil {
		t.Fatal(err)
	}
	h3.opts.Address = func(context.Context) (netip.Addr, error) { return netip.ParseAddr("127.0.0.4") }
	h3.restart()
	h3.join(made, true)
	if c := h3.endpoints(3); works(t, c) != nil || !strings.Contains(strings.Join(c.Endpoints, " "), "127.0.0.4:") {
		t.Errorf("%v does not answer", c.Endpoints)
	}
}

// A member whose address has changed since it joined becomes a server at the one that it has
// now, or at the one asked for.
func TestMovedMemberBecomesServer(t *testing.T) {
	port := etcdtest.FreePorts(t)
	h1, h2, h3 := newHost(t, "h1", "127.0.0.1", port), newHost(t, "h2", "127.0.0.2", port), newHost(t, "h3", "127.0.0.3", port)
	made := h1.init()
	h2.join(made, false)
	h3.join(made, false)
	if err := h2.Close(); err != nil {
		t.Fatal(err)
	}
	h2.rewrite(func(record map[string]any) { record["address"] = "192.0.2.7" }) // as it was then
	h2.start()
	h2.join(made, true)
	if c := h2.endpoints(2); works(t, c) != nil || !strings.Contains(strings.Join(c.Endpoints, " "), "127.0.0.2:") {
		t.Errorf("%v does not answer", c.Endpoints)
	}
	_, err := h3.Join(t.Context(), membership.JoinOptions{Server: made.Address, Token: made.Token, Serve: true, Address: netip.MustParseAddr("127.0.0.4")})
	if err != nil {
		t.Fatal(err)
	}
	if c := h3.endpoints(3); works(t, c) != nil || !strings.Contains(strings.Join(c.Endpoints, " "), "127.0.0.4:") {
		t.Errorf("%v does not answer", c.Endpoints)
	}
	for _, h := range h1.Status(t.Context()).Hosts {
		if at := map[string]string{"h1": "127.0.0.1", "h2": "127.0.0.2", "h3": "127.0.0.4"}[h.Name]; h.Address.String() != at {
			t.Errorf("%s is known at %s, want %s", h.Name, h.Address, at)
		}
	}
}

// rewrite changes the membership on a host's disk.
func (h *host) rewrite(change func(record map[string]any)) {
	h.t.Helper()
	path := filepath.Join(h.opts.StateDir, "cluster", "cluster.json")
	var record map[string]any
	if err := json.Unmarshal(read(h.t, filepath.Dir(path), "cluster.json"), &record); err != nil {
		h.t.Fatal(err)
	}
	change(record)
	raw, err := json.Marshal(record)
	if err != nil {
		h.t.Fatal(err)
	}
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		h.t.Fatal(err)
	}
}

// Killed while it was leaving.
func TestLeavingIsCarriedThrough(t *testing.T) {
	port := etcdtest.FreePorts(t)
	h1, h2 := newHost(t, "h1", "127.0.0.1", port), newHost(t, "h2", "127.0.0.2", port)
	h2.join(h1.init(), false)
	if err := h2.Close(); err != nil {
		t.Fatal(err)
	}
	h2.rewrite(func(record map[string]any) { record["leaving"] = true })
	h2.start()
	if h2.connection() != nil {
		t.Error("a connection while it leaves")
	}
	eventually(t, "the end of leaving", func() bool { return h2.Status(t.Context()).Role == membership.RoleNone })
	if s := h1.Status(t.Context()); len(s.Hosts) != 1 {
		t.Errorf("hosts: %+v", s.Hosts)
	}
}

// The last two servers leave at the same moment: one of them has nobody to tell then. It is
// the one of the lower id, by which the other is taken out, and not the other way round as
// well: etcd would do both.
func TestLastServersLeaveAtOnce(t *testing.T) {
	port := etcdtest.FreePorts(t)
	last, first := newHost(t, "h1", "127.0.0.1", port), newHost(t, "h2", "127.0.0.2", port)
	if first.Node() < last.Node() {
		first, last = last, first
	}
	leaving, refusal := make(chan struct{}), make(chan struct{})
	first.opts.Leaving = func(context.Context) error {
		close(leaving)
		<-refusal
		return nil
	}
	first.restart()
	last.join(first.init(), true)
	first.restart() // it would look once a minute
	for _, h := range []*host{first, last} {
		h.endpoints(2)
	}
	var both sync.WaitGroup
	both.Go(func() {
		if _, err := first.Leave(t.Context(), membership.LeaveOptions{}); err != nil {
			t.Error(err)
		}
	})
	<-leaving
	_, err := last.Leave(t.Context(), membership.LeaveOptions{})
	refused(t, err, first.opts.Name+" is leaving too, and goes first", "the plugin goes on trying")
	close(refusal)
	both.Wait()
	for _, h := range []*host{first, last} {
		eventually(t, h.opts.Name+" to be out", func() bool { return h.Status(t.Context()).Role == membership.RoleNone })
	}
}

// That a host was in no cluster is told, however soon it has joined again: that may be
// another one.
func TestLeavingIsTold(t *testing.T) {
	port := etcdtest.FreePorts(t)
	h1, h2 := newHost(t, "h1", "127.0.0.1", port), newHost(t, "h2", "127.0.0.2", port)
	made := h1.init()
	h2.join(made, false)
	h2.endpoints(1)
	if _, err := h2.Leave(t.Context(), membership.LeaveOptions{}); err != nil {
		t.Fatal(err)
	}
	h2.join(made, false)
	if c := h2.connection(); c != nil {
		t.Errorf("it was never in no cluster: %+v", c)
	}
	if c := h2.connection(); c == nil {
		t.Error("it is in no cluster")
	}
}

// A damaged membership neither keeps the plugin from starting nor makes the host
// believe that it is in no cluster.
func TestDamage(t *testing.T) {
	h := newHost(t, "h1", "127.0.0.1", etcdtest.FreePorts(t))
	h.init()
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(h.opts.StateDir, "cluster", "cluster.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	h.start()
	select {
	case c := <-h.Connections():
		t.Errorf("a connection: %+v", c)
	default:
	}
	_, err := h.Init(t.Context(), membership.InitOptions{})
	refused(t, err, "read membership", "join the cluster again")
	if _, err := h.Leave(t.Context(), membership.LeaveOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	if h.connection() != nil {
		t.Error("a connection after leave")
	}
	h.init()
}

// A port that is taken leaves nothing of the cluster that could not be.
func TestPortTaken(t *testing.T) {
	port := etcdtest.FreePorts(t)
	h1, h2 := newHost(t, "h1", "127.0.0.1", port), newHost(t, "h2", "127.0.0.1", port)
	h1.init()
	_, err := h2.Init(t.Context(), membership.InitOptions{})
	refused(t, err, "address already in use", "PARTICLE_CLUSTER_PORT")
	if left, _ := filepath.Glob(filepath.Join(h2.opts.StateDir, "cluster*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestExternal(t *testing.T) {
	h := newHost(t, "h1", "127.0.0.1", etcdtest.FreePorts(t))
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "password"), []byte("secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	endpoints, err := membership.ParseEndpoints("https://10.0.0.1:2379, https://10.0.0.2:2379")
	if err != nil {
		t.Fatal(err)
	}
	h.opts.External = &membership.External{Endpoints: endpoints, User: "particle", Dir: dir}
	h.restart()
	refused(t, h.Status(t.Context()).Problem, "ca.pem", "etcd's authority")
	authority, err := enrol.NewAuthority(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "ca.pem"), authority.Certificate(), 0o600); err != nil {
		t.Fatal(err)
	}
	h.restart()
	if c := h.connection(); c == nil || len(c.Endpoints) != 2 || c.User != "particle" || c.Password != "secret" || c.TLS == nil {
		t.Errorf("connection: %+v", c)
	}
	_, err = h.Init(t.Context(), membership.InitOptions{})
	refused(t, err, "PARTICLE_ETCD names an etcd", "empty it")
	_, err = h.Join(t.Context(), membership.JoinOptions{})
	refused(t, err, "PARTICLE_ETCD")
	if err := os.WriteFile(filepath.Join(dir, "ca.pem"), []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	h.restart()
	refused(t, h.Status(t.Context()).Problem, "ca.pem", "etcd's authority")
}
