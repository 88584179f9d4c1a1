package etcdtest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"

	"github.com/particle-net/particle/internal/lab"
)

// The releases a server can be of.
const (
	Debian  = lab.EtcdDebian
	V35     = lab.Etcd35
	V36     = lab.Etcd36
	Current = lab.EtcdCurrent
)

// A server needs not wait a second for others before it leads.
const (
	heartbeat = 20  // ms
	election  = 200 // ms
)

// snapshots are made after so many entries. Where years of use have made some, servers do
// not read again what those of an older release have written.
const snapshots = 20

// bcryptCost is the lowest: passwords of tests need no protection, and with the race
// detector each sign-in would take seconds.
const bcryptCost = 4

// variable asks the test's program to be an etcd server, the [member] that it holds.
const variable = "PARTICLE_ETCDTEST"

// Main runs the tests, or the server that one of them has started.
func Main(m *testing.M) {
	raw := os.Getenv(variable)
	if raw == "" {
		os.Exit(m.Run())
	}
	var who member
	err := json.Unmarshal([]byte(raw), &who)
	if err == nil {
		err = who.serve()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// member is what a server has to know when it is started.
type member struct {
	Name         string
	Dir          string // of its data
	Client, Peer string // URLs
	Cluster      string // all members, as --initial-cluster wants them
}

// serve is an etcd server until the process is ended.
func (m member) serve() error {
	cfg := embed.NewConfig()
	cfg.Name, cfg.Dir, cfg.LogLevel = m.Name, m.Dir, "warn"
	cfg.TickMs, cfg.ElectionMs, cfg.BcryptCost, cfg.SnapshotCount = heartbeat, election, bcryptCost, snapshots
	c, errC := url.Parse(m.Client)
	p, errP := url.Parse(m.Peer)
	if errC != nil || errP != nil {
		return fmt.Errorf("bad URLs: %w, %w", errC, errP)
	}
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{*c}, []url.URL{*c}
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = []url.URL{*p}, []url.URL{*p}
	cfg.InitialCluster = m.Cluster
	e, err := embed.StartEtcd(cfg)
	if err != nil {
		return err
	}
	defer e.Close()
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	select {
	case err := <-e.Err():
		return err
	case <-stop:
		return nil
	}
}

// Server is one etcd server.
type Server struct {
	t       testing.TB
	release string
	folder  string // of data, log and copies
	member  member
	cmd     *exec.Cmd
	exited  chan struct{}
}

// Start starts a server that is alone in its cluster, and waits until it answers; it
// ends with the test.
func Start(t testing.TB, release string) *Server {
	t.Helper()
	return StartCluster(t, release, 1)[0]
}

// StartCluster starts the servers of one cluster, and waits until each answers; they end
// with the test.
func StartCluster(t testing.TB, release string, size int) []*Server {
	t.Helper()
	var all []*Server
	var cluster []string
	for i := range size {
		s := &Server{t: t, release: release, folder: t.TempDir()}
		s.member = member{Name: fmt.Sprintf("test%d", i+1), Dir: filepath.Join(s.folder, "data")}
		s.member.Client, s.member.Peer = address()
		cluster = append(cluster, s.member.Name+"="+s.member.Peer)
		all = append(all, s)
		t.Cleanup(s.finish)
	}
	for _, s := range all {
		s.member.Cluster = strings.Join(cluster, ",")
		s.launch(s.command())
	}
	for _, s := range all {
		s.Await()
	}
	return all
}

func (s *Server) finish() {
	s.Kill()
	if s.t.Failed() {
		raw, _ := os.ReadFile(s.logFile())
		s.t.Logf("etcd %s said, at the end:\n%s", s.release, raw[max(0, len(raw)-4000):])
	}
}

// servers is how many this process has started.
var servers atomic.Uint32

// address gives the URLs of a new server: an address of the loopback link that is this
// process's alone, and two ports that no other of its servers has. A port that is free
// now would not do: the kernel may give it to somebody's outgoing connection while the
// server is down.
func address() (client, peer string) {
	pid := os.Getpid()
	at := netip.AddrFrom4([4]byte{127, byte(pid >> 16), byte(pid >> 8), byte(pid)})
	port := 10000 + 2*uint16(servers.Add(1))
	return "http://" + netip.AddrPortFrom(at, port).String(), "http://" + netip.AddrPortFrom(at, port+1).String()
}

func (s *Server) logFile() string { return filepath.Join(s.folder, "log") }

// Endpoint is where clients find it.
func (s *Server) Endpoint() string { return strings.TrimPrefix(s.member.Client, "http://") }

// Version is the release that it says it runs.
func (s *Server) Version() string {
	s.t.Helper()
	c := s.dial()
	defer c.Close()
	status, err := c.Status(s.t.Context(), s.Endpoint())
	if err != nil {
		s.t.Fatal(err)
	}
	return status.Version
}

// command is what starts the server.
func (s *Server) command() *exec.Cmd {
	if s.release == Current {
		self, err := os.Executable()
		if err != nil {
			s.t.Fatal(err)
		}
		who, err := json.Marshal(s.member)
		if err != nil {
			s.t.Fatal(err)
		}
		cmd := exec.Command(self)
		cmd.Env = append(os.Environ(), variable+"="+string(who))
		return cmd
	}
	path, err := lab.FindEtcd(s.t.Context(), s.release, s.t.Output())
	if err != nil {
		s.t.Fatal(err)
	}
	m := s.member
	return exec.Command(path, "--name="+m.Name, "--data-dir="+m.Dir,
		"--listen-client-urls="+m.Client, "--advertise-client-urls="+m.Client,
		"--listen-peer-urls="+m.Peer, "--initial-advertise-peer-urls="+m.Peer, "--initial-cluster="+m.Cluster,
		"--logger=zap", "--log-level=warn", fmt.Sprintf("--bcrypt-cost=%d", bcryptCost), fmt.Sprintf("--snapshot-count=%d", snapshots),
		fmt.Sprintf("--heartbeat-interval=%d", heartbeat), fmt.Sprintf("--election-timeout=%d", election))
}

// Restart starts the server on its data, ending it first if it runs.
func (s *Server) Restart() {
	s.t.Helper()
	s.Kill()
	s.launch(s.command())
	s.Await()
}

// launch starts the server, which may have to wait for others before it answers.
func (s *Server) launch(cmd *exec.Cmd) {
	s.t.Helper()
	log, err := os.OpenFile(s.logFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		s.t.Fatal(err)
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // a test that is killed leaves nothing
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	exited := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(exited)
	}()
	s.cmd, s.exited = cmd, exited
}

// Await waits until the server is well: it answers, and those that it has to ask do.
func (s *Server) Await() {
	s.t.Helper()
	c := s.dial()
	defer c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		asking, done := context.WithTimeout(ctx, time.Second)
		_, err := c.Get(asking, "ready")
		done()
		if err == nil || errors.Is(err, rpctypes.ErrUserEmpty) { // it has users now
			return
		}
		select {
		case <-tick.C:
		case <-s.exited:
			s.t.Fatalf("etcd %s has ended by itself: %v", s.release, err)
		case <-ctx.Done():
			s.t.Fatalf("etcd %s does not answer: %v", s.release, err)
		}
	}
}

func (s *Server) dial() *clientv3.Client {
	s.t.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{s.Endpoint()}, Logger: zap.NewNop()})
	if err != nil {
		s.t.Fatal(err)
	}
	return c
}

// Client is a client of the server's, for the test itself.
func (s *Server) Client() *clientv3.Client {
	s.t.Helper()
	c := s.dial()
	s.t.Cleanup(func() { c.Close() })
	return c
}

func (s *Server) end(sig os.Signal) {
	if s.cmd == nil {
		return
	}
	_ = s.cmd.Process.Signal(sig)
	<-s.exited
	s.cmd = nil
}

// Kill ends it at once, as kill -9 does; ended already is fine.
func (s *Server) Kill() { s.end(syscall.SIGKILL) }

// Stop ends it as an operator does; ended already is fine.
func (s *Server) Stop() { s.end(syscall.SIGTERM) }

// Freeze keeps it from running until Thaw.
func (s *Server) Freeze() { s.signal(syscall.SIGSTOP) }

// Thaw undoes Freeze.
func (s *Server) Thaw() { s.signal(syscall.SIGCONT) }

func (s *Server) signal(sig os.Signal) {
	s.t.Helper()
	if err := s.cmd.Process.Signal(sig); err != nil {
		s.t.Fatal(err)
	}
}

// Wipe has it begin anew without its data.
func (s *Server) Wipe() {
	s.t.Helper()
	s.Kill()
	if err := os.RemoveAll(s.member.Dir); err != nil {
		s.t.Fatal(err)
	}
	s.Restart()
}

// Upgrade stops it and has another release take over its data.
func (s *Server) Upgrade(release string) {
	s.t.Helper()
	s.release = release
	next := s.command() // which may take minutes to build
	s.Stop()
	s.launch(next)
	s.Await()
}

// Save keeps a copy of the data for Load. The server is down meanwhile.
func (s *Server) Save() {
	s.t.Helper()
	s.Stop()
	s.copy(s.member.Dir, filepath.Join(s.folder, "copy"))
	s.Restart()
}

// Load has it begin anew with the copy: of the same cluster, at an older
// revision.
func (s *Server) Load() {
	s.t.Helper()
	s.Kill()
	s.copy(filepath.Join(s.folder, "copy"), s.member.Dir)
	s.Restart()
}

func (s *Server) copy(from, to string) {
	s.t.Helper()
	if err := os.RemoveAll(to); err != nil {
		s.t.Fatal(err)
	}
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		s.t.Fatal(err)
	}
	// CopyFS loosens rights, and etcd wants the folder to itself.
	if err := os.Chmod(to, 0o700); err != nil {
		s.t.Fatal(err)
	}
}

// Expire has the time of all keys that end so run out: a lease that is revoked
// leaves nothing that one whose time is over would not.
func (s *Server) Expire(suffixes ...string) {
	s.t.Helper()
	c := s.dial()
	defer c.Close()
	got, err := c.Get(s.t.Context(), "", clientv3.WithPrefix())
	if err != nil {
		s.t.Fatal(err)
	}
	for _, kv := range got.Kvs {
		ends := func(suffix string) bool { return strings.HasSuffix(string(kv.Key), suffix) }
		if !slices.ContainsFunc(suffixes, ends) {
			continue
		}
		// Several keys may be of one lease.
		if _, err := c.Revoke(s.t.Context(), clientv3.LeaseID(kv.Lease)); err != nil && !errors.Is(err, rpctypes.ErrLeaseNotFound) || kv.Lease == 0 {
			s.t.Fatalf("%s does not run out: %v", kv.Key, err)
		}
	}
}

// Compact forgets all history up to now.
func (s *Server) Compact() {
	s.t.Helper()
	c := s.dial()
	defer c.Close()
	got, err := c.Get(s.t.Context(), "any")
	if err == nil {
		_, err = c.Compact(s.t.Context(), got.Header.Revision, clientv3.WithCompactPhysical())
	}
	if err != nil {
		s.t.Fatal(err)
	}
}
