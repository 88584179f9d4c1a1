package integration

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/particle-net/particle/internal/hostpath"
	"github.com/particle-net/particle/internal/lab"
	"github.com/rogpeppe/go-internal/testscript"
)

// externalEtcd is an etcd as an administrator runs it for others too: on the lab's
// node that is no host, with certificates for its clients and with users.
type externalEtcd struct {
	node      *lab.Node
	dir       string // in the lab's own: that node has the machine's files
	addr      netip.Addr
	authority authority
	ready     bool // root is there
}

const (
	etcdRoot     = "root:of-root"
	etcdPassword = "of-particle" // the user is particle, as docs/operations.md makes it
)

// authority issues certificates.
type authority struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
}

// pair is a certificate and its key, as PEM.
type pair struct{ certificate, key []byte }

func newAuthority(name string) (authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return authority{}, err
	}
	a := authority{key: key, certificate: &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}}
	der, err := x509.CreateCertificate(rand.Reader, a.certificate, a.certificate, key.Public(), key)
	if err != nil {
		return a, err
	}
	a.certificate, err = x509.ParseCertificate(der)
	return a, err
}

// issue makes a certificate for a server at addr or, without one, for a client.
func (a authority) issue(name string, addr netip.Addr) (pair, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return pair{}, err
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	if addr.IsValid() {
		c.ExtKeyUsage = append(c.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
		c.IPAddresses = []net.IP{addr.AsSlice()}
	}
	der, err := x509.CreateCertificate(rand.Reader, c, a.certificate, key.Public(), a.key)
	if err != nil {
		return pair{}, err
	}
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	return pair{
		pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw}),
	}, err
}

func (a authority) pem() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.certificate.Raw})
}

// cmdEtcd is about an etcd on the lab's node that is no host:
// etcd start|kill, etcd restore FILE, etcd trust [other|wrong].
func cmdEtcd(ts *testscript.TestScript, _ bool, args []string) {
	s, ctx := sessionOf(ts), context.Background()
	if len(args) == 0 {
		args = []string{""}
	}
	switch args[0] {
	case "start":
		if s.etcd == nil {
			e, err := newExternal(s.bed.lab.Internet())
			ts.Check(err)
			s.etcd = e
		}
		ts.Check(s.etcd.start(ctx))
		ts.Setenv("ETCD", "https://"+s.etcd.endpoint())
	case "kill":
		_, err := s.etcd.node.StopService(ctx, "etcd", syscall.SIGKILL)
		ts.Check(err)
	case "restore":
		ts.Check(s.etcd.restore(ctx, s.bed.host, args[1]))
	case "trust":
		ts.Check(s.etcd.trust(s.bed.host, append(args[1:], "")[0]))
	default:
		ts.Fatalf("usage: etcd start|kill|restore FILE|trust [other|wrong]")
	}
}

func newExternal(node *lab.Node) (*externalEtcd, error) {
	e := &externalEtcd{node: node, dir: filepath.Join(filepath.Dir(node.ServiceLog("etcd")), "etcd"), addr: netip.MustParseAddr("198.51.100.254")}
	a, err := newAuthority("authority of etcd")
	if err != nil {
		return nil, err
	}
	e.authority = a
	server, err := a.issue("etcd", e.addr)
	if err != nil {
		return nil, err
	}
	return e, writeFiles(e.dir, map[string][]byte{"ca.pem": a.pem(), "cert.pem": server.certificate, "key.pem": server.key})
}

func writeFiles(dir string, files map[string][]byte) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			return err
		}
	}
	return nil
}

func (e *externalEtcd) endpoint() string { return netip.AddrPortFrom(e.addr, 2379).String() }

// start runs the distribution's etcd and, the first time, has it ask for users.
func (e *externalEtcd) start(ctx context.Context) error {
	program, err := lab.FindEtcd(ctx, lab.EtcdDebian, os.Stderr)
	if err != nil {
		return err
	}
	url := "https://" + e.endpoint()
	if err := e.node.StartService(ctx, "etcd", program, "--data-dir", e.data(),
		"--listen-client-urls", url, "--advertise-client-urls", url, "--listen-peer-urls", "http://127.0.0.1:2380",
		"--client-cert-auth", "--trusted-ca-file", e.dir+"/ca.pem", "--cert-file", e.dir+"/cert.pem", "--key-file", e.dir+"/key.pem"); err != nil {
		return err
	}
	if e.ready {
		return nil
	}
	ctl := e.ctl(e.node, e.dir)
	err = until(ctx, func() error {
		_, err := ctl.run(ctx, "get", "any")
		return err
	})
	for _, step := range []string{"user add " + etcdRoot, "user grant-role root root", "auth enable"} {
		if err == nil {
			_, err = ctl.run(ctx, strings.Fields(step)...)
		}
	}
	e.ready = err == nil
	if err != nil {
		said, _ := os.ReadFile(e.node.ServiceLog("etcd"))
		err = fmt.Errorf("%w; etcd says:\n%s", err, said)
	}
	return err
}

// ctl is the administrator's, on a node that trusts it by the files in dir.
func (e *externalEtcd) ctl(node *lab.Node, dir string) etcdctl {
	c := etcdctl{node: node, endpoint: "https://" + e.endpoint(), authority: dir + "/ca.pem", cert: dir + "/cert.pem", key: dir + "/key.pem"}
	if e.ready {
		c.user = etcdRoot
	}
	return c
}

func (e *externalEtcd) data() string { return filepath.Join(e.dir, "data") }

// restore has etcd begin anew with a snapshot, a file on the host.
func (e *externalEtcd) restore(ctx context.Context, host *lab.Host, snapshot string) error {
	if _, err := e.node.StopService(ctx, "etcd", syscall.SIGKILL); err != nil {
		return err
	}
	raw, err := os.ReadFile(host.Root() + snapshot)
	if err != nil {
		return err
	}
	file := filepath.Join(e.dir, "snapshot")
	if err := errors.Join(os.WriteFile(file, raw, 0o600), os.RemoveAll(e.data())); err != nil {
		return err
	}
	if _, err := e.ctl(e.node, e.dir).run(ctx, "snapshot", "restore", file, "--data-dir", e.data()); err != nil {
		return err
	}
	return e.start(ctx)
}

// trust puts on a host what it needs for etcd: with "other" another authority,
// with "wrong" a password that is not its own.
func (e *externalEtcd) trust(host *lab.Host, how string) error {
	a, password := e.authority, etcdPassword
	switch how {
	case "other":
		var err error
		if a, err = newAuthority("another authority"); err != nil {
			return err
		}
	case "wrong":
		password = "of-nobody"
	}
	own, err := a.issue(host.Name(), netip.Addr{})
	if err != nil {
		return err
	}
	return writeFiles(host.Root()+hostpath.EtcdClientDir, map[string][]byte{
		"ca.pem": a.pem(), "cert.pem": own.certificate, "key.pem": own.key, "password": []byte(password + "\n"),
	})
}
