package etcdtest

import (
	"context"
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
	Current = "3.7" // the one that the plugin embeds
)

// A server that is alone needs not wait a second for others before it leads.
const (
	heartbeat = 20  // ms
	election  = 200 // ms
)

// bcryptCost is the lowest: passwords of tests need no protection, and with the race
// detector each sign-in would take seconds.
const bcryptCost = 4

// variable asks the test's program to be an etcd server in the folder it names.
const variable = "PARTICLE_ETCDTEST"

// Main runs the tests, or the server that one of them has started.
func Main(m *testing.M) {
	dir, client, peer := server()
	if dir == "" {
		os.Exit(m.Run())
	}
	if err := serve(dir, client, peer); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// server tells what the environment asks for.
func server() (dir, client, peer string) {
	parts := strings.Split(os.Getenv(variable), " ")
	if len(parts) != 3 {
		return "", "", ""
	}
	return parts[0], parts[1], parts[2]
}

// serve is an etcd server until the process is ended.
func serve(dir, client, peer string) error {
	cfg := embed.NewConfig()
	cfg.Name, cfg.Dir, cfg.LogLevel = "test", dir, "warn"
	cfg.TickMs, cfg.ElectionMs, cfg.BcryptCost = heartbeat, election, bcryptCost
	c, errC := url.Parse(client)
	p, errP := url.Parse(peer)
	if errC != nil || errP != nil {
		return fmt.Errorf("bad URLs: %w, %w", errC, errP)
	}
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{*c}, []url.URL{*c}
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = []url.URL{*p}, []url.URL{*p}
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
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

// Server is one etcd server, alone in its cluster.
type Server struct {
	t            testing.TB
	release      string
	folder       string // of data, log and copies
	client, peer string // URLs
	cmd          *exec.Cmd
	exited       chan struct{}
}

// Start starts a server and waits until it answers; it ends with the test.
func Start(t testing.TB, release string) *Server {
	t.Helper()
	client, peer := address()
	s := &Server{t: t, release: release, folder: t.TempDir(), client: client, peer: peer}
	t.Cleanup(func() {
		s.Kill()
		if t.Failed() {
			raw, _ := os.ReadFile(s.logFile())
			t.Logf("etcd %s said, at the end:\n%s", s.release, raw[max(0, len(raw)-4000):])
		}
	})
	s.Restart()
	return s
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

func (s *Server) data() string    { return filepath.Join(s.folder, "data") }
func (s *Server) logFile() string { return filepath.Join(s.folder, "log") }

// Endpoint is where clients find it.
func (s *Server) Endpoint() string { return strings.TrimPrefix(s.client, "http://") }

// Release is what it runs.
func (s *Server) Release() string { return s.release }

// command is what starts the server.
func (s *Server) command() *exec.Cmd {
	if s.release == Current {
		self, err := os.Executable()
		if err != nil {
			s.t.Fatal(err)
		}
		cmd := exec.Command(self)
		cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s %s %s", variable, s.data(), s.client, s.peer))
		return cmd
	}
	path, err := lab.FindEtcd(s.t.Context(), s.release, s.t.Output())
	if err != nil {
		s.t.Fatal(err)
	}
	return exec.Command(path, "--name=test", "--data-dir="+s.data(),
		"--listen-client-urls="+s.client, "--advertise-client-urls="+s.client,
		"--listen-peer-urls="+s.peer, "--initial-advertise-peer-urls="+s.peer, "--initial-cluster=test="+s.peer,
		"--logger=zap", "--log-level=warn", fmt.Sprintf("--bcrypt-cost=%d", bcryptCost),
		fmt.Sprintf("--heartbeat-interval=%d", heartbeat), fmt.Sprintf("--election-timeout=%d", election))
}

// Restart starts the server on its data, ending it first if it runs.
func (s *Server) Restart() {
	s.t.Helper()
	s.Kill()
	s.start(s.command())
}

func (s *Server) start(cmd *exec.Cmd) {
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
	s.await()
}

// await waits until the server answers.
func (s *Server) await() {
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
	if err := os.RemoveAll(s.data()); err != nil {
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
	s.start(next)
}

// Save keeps a copy of the data for Load. The server is down meanwhile.
func (s *Server) Save() {
	s.t.Helper()
	s.Stop()
	s.copy(s.data(), filepath.Join(s.folder, "copy"))
	s.Restart()
}

// Load has it begin anew with the copy: of the same cluster, at an older
// revision.
func (s *Server) Load() {
	s.t.Helper()
	s.Kill()
	s.copy(filepath.Join(s.folder, "copy"), s.data())
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
