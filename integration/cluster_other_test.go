package integration

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/particle-net/particle/internal/hostpath"
	"github.com/particle-net/particle/internal/lab"
)

// otherStore is an etcd outside of the hosts, with certificates of its administrator: one
// server or several, each of a release of its own.
type otherStore struct {
	lab       *lab.Lab
	authority authority
	dir       string
	releases  []string // of each server
	programs  map[string]string
}

// Ports of the first server; those of the next are ten higher.
const (
	etcdPort     = 2379
	etcdOperator = 2378 // plain text, at home alone
	etcdPeers    = 2377 // likewise
)

// snapshots are made after so many entries. Where years of use have made some, servers do
// not read again what those of an older release have written.
const snapshots = 20

// newOtherStore makes the certificates, and starts a server of each of the releases.
func newOtherStore(t testing.TB, l *lab.Lab, releases ...string) *otherStore {
	t.Helper()
	s := &otherStore{lab: l, dir: t.TempDir(), releases: releases, programs: map[string]string{}}
	var err error
	for _, release := range releases {
		err = errors.Join(err, s.fetch(t.Context(), release))
	}
	if err != nil {
		t.Fatal(err)
	}
	if s.authority, err = newAuthority("administrator"); err != nil {
		t.Fatal(err)
	}
	addr, _ := s.at()
	own, err := s.authority.issue("etcd", addr)
	if err == nil {
		err = s.certify(s.dir, own)
	}
	if err == nil {
		err = s.start(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// fetch has the program of a release at hand.
func (s *otherStore) fetch(ctx context.Context, release string) (err error) {
	s.programs[release], err = lab.FindEtcd(ctx, release, os.Stderr)
	return err
}

// local is a URL at home.
func local(port, server int) string { return fmt.Sprintf("http://127.0.0.1:%d", port+10*server) }

func serverName(server int) string { return fmt.Sprintf("etcd%d", server) }

// clients is where hosts reach a server.
func (s *otherStore) clients(server int) string {
	return "https://" + net.JoinHostPort(lab.Gateway4, fmt.Sprint(etcdPort+10*server))
}

// start starts all servers, and waits until each answers.
func (s *otherStore) start(ctx context.Context) error {
	for i := range s.releases {
		if err := s.launch(ctx, i); err != nil {
			return err
		}
	}
	return s.well(ctx)
}

// launch starts a server, which may have to wait for others.
func (s *otherStore) launch(ctx context.Context, server int) error {
	at, peers := s.clients(server), local(etcdPeers, server)
	var cluster []string
	for i := range s.releases {
		cluster = append(cluster, serverName(i)+"="+local(etcdPeers, i))
	}
	return s.lab.Internet().StartService(ctx, serverName(server), s.programs[s.releases[server]],
		"--name", serverName(server), "--data-dir", s.file(serverName(server)),
		"--listen-client-urls", at+","+local(etcdOperator, server), "--advertise-client-urls", at,
		"--listen-peer-urls", peers, "--initial-advertise-peer-urls", peers, "--initial-cluster", strings.Join(cluster, ","),
		"--cert-file", s.file("cert.pem"), "--key-file", s.file("key.pem"), "--trusted-ca-file", s.file("ca.pem"), "--client-cert-auth",
		"--heartbeat-interval", "20", "--election-timeout", "200", "--snapshot-count", fmt.Sprint(snapshots), "--log-level", "warn")
}

// well waits until each server answers, which has to ask the others.
func (s *otherStore) well(ctx context.Context) error {
	for i, release := range s.releases {
		err := until(ctx, func() error {
			_, err := s.ctl(i).run(ctx, "get", "any")
			return err
		})
		if err != nil {
			said, _ := os.ReadFile(s.lab.Internet().ServiceLog(serverName(i)))
			return fmt.Errorf("%s: %w; etcd %s says at the end:\n%s", serverName(i), err, release, said[max(0, len(said)-4000):])
		}
	}
	return nil
}

func (s *otherStore) certify(dir string, own pair) error {
	return writeFiles(dir, map[string][]byte{"ca.pem": s.authority.pem(), "cert.pem": own.certificate, "key.pem": own.key})
}

func (s *otherStore) file(name string) string { return filepath.Join(s.dir, name) }

// ctl is the operator's, at a server's home.
func (s *otherStore) ctl(server int) etcdctl {
	return etcdctl{node: s.lab.Internet(), endpoint: local(etcdOperator, server)}
}

func (s *otherStore) compact(ctx context.Context) error { return s.ctl(0).compact(ctx) }

// stop ends it as a crash does, until start.
func (s *otherStore) stop(ctx context.Context) error {
	var errs []error
	for i := range s.releases {
		_, err := s.lab.Internet().StopService(ctx, serverName(i), syscall.SIGKILL)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (s *otherStore) kill(ctx context.Context) error {
	return errors.Join(s.stop(ctx), s.start(ctx))
}

func (s *otherStore) wipe(ctx context.Context) error {
	err := s.stop(ctx)
	for i := range s.releases {
		err = errors.Join(err, os.RemoveAll(s.file(serverName(i))))
	}
	return errors.Join(err, s.start(ctx))
}

// at is where the first of the servers is.
func (s *otherStore) at() (netip.Addr, string) {
	return netip.MustParseAddr(lab.Gateway4), fmt.Sprint(etcdPort)
}

func (s *otherStore) join(ctx context.Context, beds []*bed) error {
	var servers []string
	for i := range s.releases {
		servers = append(servers, s.clients(i))
	}
	setting := "PARTICLE_ETCD=" + strings.Join(servers, ",")
	return beds[0].each(func(b *bed) error {
		own, err := s.authority.issue(b.host.Name(), netip.Addr{})
		if err == nil {
			err = s.certify(b.host.Root()+hostpath.EtcdClientDir, own)
		}
		if err == nil {
			_, err = b.particle(ctx, "install", "--set", setting)
		}
		if err == nil {
			err = b.alive(ctx, len(beds))
		}
		return err
	})
}
