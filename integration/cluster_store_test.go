package integration

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"syscall"
	"testing"

	"github.com/particle-net/particle/internal/hostpath"
	"github.com/particle-net/particle/internal/lab"
)

// clusterStore is where a cluster of lab hosts keeps its records.
type clusterStore interface {
	// join makes the hosts a cluster.
	join(context.Context, []*bed) error
	// kill ends the store as a crash does, and has it start again.
	kill(context.Context) error
	// wipe does the same, and the store has lost all it had.
	wipe(context.Context) error
	// compact has the store forget all changes up to now.
	compact(context.Context) error
	// at is where hosts reach it: an address and TCP ports, as iptables writes them.
	at() (addr netip.Addr, ports string)
}

// ownStore is served by the plugin of a host.
type ownStore struct{ *bed }

func (s ownStore) join(ctx context.Context, _ []*bed) error { return s.cluster(ctx) }

func (s ownStore) at() (netip.Addr, string) { return s.host.Addr4(), "7790:7792" }

// ctl is of a host, who has the rights of all hosts.
func (s ownStore) ctl() etcdctl {
	const files = hostpath.StateDir + "/cluster/"
	return etcdctl{
		node: s.host.Node, endpoint: "https://" + net.JoinHostPort(s.host.Addr4().String(), "7791"),
		authority: files + "ca.pem", cert: files + "node.pem", key: files + "node.key",
	}
}

func (s ownStore) compact(ctx context.Context) error { return s.ctl().compact(ctx) }

func (s ownStore) kill(ctx context.Context) error {
	before, err := s.pid(hasWord("cluster-store"))
	if err != nil {
		return err
	}
	if _, err := s.host.Exec(ctx, "kill", "-9", strconv.Itoa(before)); err != nil {
		return err
	}
	return until(ctx, func() error {
		now, err := s.pid(hasWord("cluster-store"))
		if err == nil && now == before {
			err = errors.New("the store is still being killed")
		}
		return err
	})
}

func (s ownStore) wipe(ctx context.Context) error {
	if _, err := s.host.Exec(ctx, "sh", "-c", "rm -rf "+hostpath.StateDir+"/cluster/etcd"); err != nil {
		return err
	}
	return s.kill(ctx)
}

// threeStores are served by the plugins of all hosts.
type threeStores struct{ ownStore }

func (s threeStores) join(ctx context.Context, hosts []*bed) error {
	if err := s.cluster(ctx); err != nil {
		return err
	}
	token, err := s.particle(ctx, "cluster", "token", "-q")
	if err != nil {
		return err
	}
	for _, b := range hosts[1:] { // one after the other, as the document has it
		if _, err := b.particle(ctx, "cluster", "join", s.host.Addr4().String(), "--token", token, "--server"); err != nil {
			return err
		}
	}
	_, err = s.leader(ctx, hosts)
	return err
}

// leader is the one of these hosts whose server all of them say leads.
func (s threeStores) leader(ctx context.Context, hosts []*bed) (leader *bed, err error) {
	err = until(ctx, func() error {
		leader = nil
		for _, asked := range hosts {
			out, err := asked.particle(ctx, "cluster", "status")
			if err != nil {
				return err
			}
			i := slices.IndexFunc(hosts, func(b *bed) bool {
				return regexp.MustCompile(regexp.QuoteMeta(b.host.Addr4().String()) + `:7791 +leader`).MatchString(out)
			})
			if i < 0 || leader != nil && leader != hosts[i] {
				return fmt.Errorf("%s: not one of %d servers leads:\n%s", asked.host.Name(), len(hosts), out)
			}
			leader = hosts[i]
		}
		return nil
	})
	return leader, err
}

// otherStore is an etcd of the distribution, outside of the hosts, with
// certificates of its administrator.
type otherStore struct {
	lab       *lab.Lab
	authority authority
	dir       string
	binary    string
}

const (
	etcdService  = "etcd"
	etcdPort     = "2379"
	etcdOperator = "http://127.0.0.1:2378" // plain text, at home alone
)

// newOtherStore makes the certificates, and starts it.
func newOtherStore(t *testing.T, l *lab.Lab) *otherStore {
	t.Helper()
	binary, err := lab.FindEtcd(t.Context(), lab.EtcdDebian, os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	s := &otherStore{lab: l, dir: t.TempDir(), binary: binary}
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

func (s *otherStore) start(ctx context.Context) error {
	at := "https://" + net.JoinHostPort(lab.Gateway4, etcdPort)
	err := s.lab.Internet().StartService(ctx, etcdService, s.binary, "--data-dir", filepath.Join(s.dir, "data"),
		"--listen-client-urls", at+","+etcdOperator, "--advertise-client-urls", at, "--listen-peer-urls", "http://127.0.0.1:2377",
		"--cert-file", s.file("cert.pem"), "--key-file", s.file("key.pem"), "--trusted-ca-file", s.file("ca.pem"), "--client-cert-auth",
		"--heartbeat-interval", "20", "--election-timeout", "200", "--log-level", "warn")
	if err != nil {
		return err
	}
	return until(ctx, func() error {
		_, err := s.ctl().run(ctx, "get", "any")
		return err
	})
}

func (s *otherStore) certify(dir string, own pair) error {
	return writeFiles(dir, map[string][]byte{"ca.pem": s.authority.pem(), "cert.pem": own.certificate, "key.pem": own.key})
}

func (s *otherStore) file(name string) string { return filepath.Join(s.dir, name) }

// ctl is the operator's, at home.
func (s *otherStore) ctl() etcdctl {
	return etcdctl{node: s.lab.Internet(), endpoint: etcdOperator}
}

func (s *otherStore) compact(ctx context.Context) error { return s.ctl().compact(ctx) }

// stop ends it as a crash does, until start.
func (s *otherStore) stop(ctx context.Context) error {
	_, err := s.lab.Internet().StopService(ctx, etcdService, syscall.SIGKILL)
	return err
}

func (s *otherStore) kill(ctx context.Context) error {
	return errors.Join(s.stop(ctx), s.start(ctx))
}

func (s *otherStore) wipe(ctx context.Context) error {
	return errors.Join(s.stop(ctx), os.RemoveAll(s.file("data")), s.start(ctx))
}

func (s *otherStore) at() (netip.Addr, string) { return netip.MustParseAddr(lab.Gateway4), etcdPort }

func (s *otherStore) join(ctx context.Context, beds []*bed) error {
	setting := "PARTICLE_ETCD=https://" + net.JoinHostPort(lab.Gateway4, etcdPort)
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
