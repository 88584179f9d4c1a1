package server_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/control/controltest/etcdtest"
	"github.com/particle-net/particle/control/enrol"
	"github.com/particle-net/particle/control/server"
	"github.com/particle-net/particle/topology"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == server.Argument {
		server.Run()
	}
	os.Setenv("GORACE", "atexit_sleep_ms=0") // a server that is told to end would wait a second
	os.Exit(m.Run())
}

const node = topology.NodeID("0123456789abcdef0123456789abcdef")

// world is an authority and one server's files.
type world struct {
	config    server.Config
	tls       *tls.Config
	authority *enrol.Authority
}

func newWorld(t *testing.T) world {
	t.Helper()
	authority, err := enrol.NewAuthority(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	host := enrol.Host{ID: node, Name: "h1", Address: netip.MustParseAddr("127.0.0.1"), Port: etcdtest.FreePorts(t), Server: true}
	dir := t.TempDir()
	c := server.Config{Host: host, Dir: filepath.Join(dir, "etcd"), Certificate: filepath.Join(dir, "node.pem"), Key: filepath.Join(dir, "node.key"),
		Authority: filepath.Join(dir, "ca.pem"), Revoked: filepath.Join(dir, "crl.der")}
	empty, err := authority.Revocations(nil, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	pair, cert := issue(t, authority, enrol.Subject{Node: node, Name: "h1", Address: host.Address, Server: true})
	for path, content := range map[string][]byte{c.Certificate: cert.certificate, c.Key: cert.key, c.Authority: authority.Certificate(), c.Revoked: empty} {
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return world{config: c, authority: authority, tls: clientTLS(authority, pair)}
}

type issued struct{ certificate, key []byte }

func issue(t *testing.T, a *enrol.Authority, s enrol.Subject) (tls.Certificate, issued) {
	t.Helper()
	key, request, err := enrol.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	cert, _, err := a.Issue(request, s, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	return pair, issued{certificate: cert, key: key}
}

func clientTLS(a *enrol.Authority, pair tls.Certificate) *tls.Config {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(a.Certificate())
	return &tls.Config{RootCAs: roots, ServerName: enrol.ServerName, Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS13}
}

func (w world) start(t *testing.T) *server.Server {
	t.Helper()
	log := logrus.New()
	log.SetOutput(io.Discard)
	s := server.Start(func() server.Config { return w.config }, []string{os.Args[0], server.Argument}, logrus.NewEntry(log))
	t.Cleanup(s.Stop)
	return s
}

func (w world) dial(t *testing.T, config *tls.Config) *server.Client {
	t.Helper()
	c, err := server.Dial(server.Target{Endpoints: []string{"https://" + w.config.Host.Clients().String()}, TLS: config})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func eventually(t *testing.T, what string, met func() bool) {
	t.Helper()
	limit := time.After(40 * time.Second)
	for !met() {
		select {
		case <-limit:
			t.Fatal("did not come: " + what)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func ready(t *testing.T, s *server.Server) {
	t.Helper()
	eventually(t, "a server that is ready", func() bool { return s.State().Ready })
}

// A killed server comes back with what it had.
func TestKilled(t *testing.T) {
	w := newWorld(t)
	s := w.start(t)
	ready(t, s)
	register := w.dial(t, w.tls).Register()
	before, err := register.TokenInfo(t.Context(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(s.State().Pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the second child", func() bool { return s.State().Starts == 2 && s.State().Ready })
	after, err := register.TokenInfo(t.Context(), time.Hour)
	if err != nil || string(after.Nonce) != string(before.Nonce) {
		t.Errorf("%v is now %v, %v", before, after, err)
	}
	first := s.State().Pid
	s.Restart()
	eventually(t, "the third child", func() bool { return s.State().Starts == 3 && s.State().Ready && s.State().Pid != first })
	s.Stop()
	if err := unix.Kill(s.State().Pid, 0); err == nil {
		t.Error("the child outlives Stop")
	}
}

// What was confirmed a moment before the end is there for a server that is to stand alone.
// etcd drops then what it does not know to be committed, by what is on its disk.
func TestAloneWithLastWrite(t *testing.T) {
	w := newWorld(t)
	s := w.start(t)
	ready(t, s)
	register := w.dial(t, w.tls).Register()
	for i := range 20 {
		enter(t, register, i)
	}
	s.Stop()
	w.config.Alone = true
	ready(t, w.start(t))
	hosts, err := register.Hosts(t.Context())
	if err != nil || len(hosts) != 20 {
		t.Errorf("of 20 hosts %d are left, %v", len(hosts), err)
	}
}

// A new server that nobody answers in time may be answered the next time.
func TestUnmet(t *testing.T) {
	w := newWorld(t)
	w.config.Initial = string(node) + "=https://" + w.config.Host.Peers().String() + ",other=https://127.0.0.9:" + fmt.Sprint(w.config.Host.Port)
	s := w.start(t)
	eventually(t, "word of it", func() bool { return s.State().Problem != "" })
	if p := s.State().Problem; !s.State().Unmet || !strings.Contains(p, "no other server has told it") {
		t.Error(p)
	}
}

// A store that is made anew, at the same address, is not the one before: former servers
// must not go on with it as if it were.
func TestMadeAnew(t *testing.T) {
	w := newWorld(t)
	member := func() uint64 {
		t.Helper()
		s := w.start(t)
		ready(t, s)
		all, err := w.dial(t, w.tls).Members(t.Context())
		if err != nil || len(all) != 1 {
			t.Fatalf("%v, %v", all, err)
		}
		s.Stop()
		return all[0].ID
	}
	first := member()
	if again := member(); again != first {
		t.Errorf("with its data, server %x is %x after a start", first, again)
	}
	if err := os.RemoveAll(w.config.Dir); err != nil {
		t.Fatal(err)
	}
	if anew := member(); anew == first {
		t.Errorf("the server of the new store is %x, as before", anew)
	}
}

// A certificate that ends by itself is not revoked, which would be for good: the clock
// may be wrong that says so. One that a host gives up is, and that is not forgotten
// before it cannot be good by any clock.
func TestCertificatesThatHaveEnded(t *testing.T) {
	w := newWorld(t)
	ready(t, w.start(t))
	register := w.dial(t, w.tls).Register()
	ends := func(serial string, in time.Duration) enrol.Certificate {
		return enrol.Certificate{Serial: serial, NotAfter: time.Now().Add(in).UTC().Truncate(time.Second)}
	}
	const day = 24 * time.Hour
	h := enrol.Host{ID: hostID(1), Name: "h"}
	next := ends("d", 365*day)
	for _, list := range [][]enrol.Certificate{
		{ends("a", -400*day), ends("b", -100*day), ends("c", 0)},
		{ends("a", -400*day), ends("b", -100*day), ends("c", 0), next},
		{ends("b", -100*day), next},
	} {
		h.Certificates = list
		var err error
		if h, err = register.Enter(t.Context(), h); err != nil {
			t.Fatal(err)
		}
	}
	got, err := register.Host(t.Context(), h.ID)
	if err != nil || len(got.Certificates) != 2 || got.Certificates[1] != next {
		t.Errorf("listed: %v, %v; want b and d", got.Certificates, err)
	}
	revoked, err := register.Revoked(t.Context())
	if err != nil || len(revoked) != 1 || revoked[0].Serial != "c" {
		t.Errorf("revoked: %v, %v; want c", revoked, err)
	}
}

// A child whose parent is gone ends.
func TestOrphan(t *testing.T) {
	w := newWorld(t)
	cmd := exec.Command(os.Args[0], server.Argument)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if err := json.NewEncoder(in).Encode(w.config); err != nil {
		t.Fatal(err)
	}
	if line := make([]byte, 6); true {
		if _, err := io.ReadFull(out, line); err != nil || string(line) != "ready\n" {
			t.Errorf("%q, %v", line, err)
		}
	}
	if err := in.Close(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}

// What etcd cannot go on after is told, and tried again.
func TestProblem(t *testing.T) {
	w := newWorld(t)
	l, err := net.Listen("tcp", w.config.Host.Clients().String())
	if err != nil {
		t.Fatal(err)
	}
	s := w.start(t)
	eventually(t, "a problem", func() bool { return s.State().Problem != "" })
	if p := s.State().Problem; !strings.Contains(p, "address already in use") || !strings.Contains(p, "PARTICLE_CLUSTER_PORT") {
		t.Error(p)
	}
	l.Close()
	ready(t, s)
	if s.State().Problem != "" {
		t.Error(s.State().Problem)
	}
}

func TestWhoIsLetIn(t *testing.T) {
	w := newWorld(t)
	ready(t, w.start(t))
	member, _ := issue(t, w.authority, enrol.Subject{Node: "m", Name: "m"})
	stranger, err := enrol.NewAuthority(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	foreign, _ := issue(t, stranger, enrol.Subject{Node: "m", Name: "m"})
	withForeign := clientTLS(w.authority, foreign)
	without := clientTLS(w.authority, foreign)
	without.Certificates = nil
	old := clientTLS(w.authority, member)
	old.MinVersion, old.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	for _, c := range []struct {
		name   string
		config *tls.Config
		at     netip.AddrPort
		in     bool
	}{
		{"a member", clientTLS(w.authority, member), w.config.Host.Clients(), true},
		{"a stranger", withForeign, w.config.Host.Clients(), false},
		{"nobody", without, w.config.Host.Clients(), false},
		{"an old protocol", old, w.config.Host.Clients(), false},
		{"a server as a peer", w.tls, w.config.Host.Peers(), true},
		{"a member as a peer", clientTLS(w.authority, member), w.config.Host.Peers(), false},
	} {
		if err := shake(c.at, c.config); (err == nil) != c.in {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	cert, err := x509.ParseCertificate(member.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	list, err := w.authority.Revocations([]enrol.Revoked{{Certificate: enrol.Certificate{Serial: cert.SerialNumber.Text(16)}, At: time.Now()}}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(w.config.Revoked, list, 0o600); err != nil {
		t.Fatal(err)
	}
	if shake(w.config.Host.Clients(), clientTLS(w.authority, member)) == nil {
		t.Error("a revoked certificate is taken")
	}
}

// shake sends a request and waits for the first byte of the answer: in TLS 1.3 a
// client hears of its refusal after its own part of the handshake.
func shake(at netip.AddrPort, config *tls.Config) error {
	conn, err := tls.Dial("tcp", at.String(), config)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err
	}
	if _, err := io.WriteString(conn, "GET /version HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		return err
	}
	_, err = conn.Read(make([]byte, 1))
	return err
}

// A full store is told as such.
func TestQuota(t *testing.T) {
	w := newWorld(t)
	w.config.Quota = 1 << 20
	ready(t, w.start(t))
	c := w.dial(t, w.tls)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var err error
	big := enrol.Host{ID: node, Name: strings.Repeat("x", 100_000)}
	for err == nil && ctx.Err() == nil {
		big, err = c.Register().Enter(ctx, big)
	}
	if err == nil || !strings.Contains(err.Error(), "space") {
		t.Errorf("got %v", err)
	}
	h := c.Check(ctx, "https://"+w.config.Host.Clients().String())
	if !strings.Contains(h.Problem, "NOSPACE") || h.Version == "" || !h.Leader {
		t.Errorf("health: %+v", h)
	}
}
