package integration

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
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
	"runtime"
	"syscall"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/control/controltest/etcdtest"
	"github.com/particle-net/particle/internal/hostpath"
	"github.com/particle-net/particle/internal/lab"
)

// externalEtcd is an etcd as an administrator runs it for others too: on the lab's
// node that is no host, with certificates for its clients and with users, of whom
// ours may use the keys of particle alone.
type externalEtcd struct {
	node      *lab.Node
	dir       string // in the lab's own: that node has the machine's files
	addr      netip.Addr
	authority authority
	ready     bool // users are there
}

const (
	etcdUser     = "particle"
	etcdPassword = "of-particle"
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
// etcd start|kill, etcd trust [other|wrong].
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
	case "trust":
		ts.Check(s.etcd.trust(s.bed.host, append(args[1:], "")[0]))
	default:
		ts.Fatalf("usage: etcd start|kill|trust [other|wrong]")
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

// start runs the distribution's etcd and, the first time, makes its users.
func (e *externalEtcd) start(ctx context.Context) error {
	program, err := lab.FindEtcd(ctx, lab.EtcdDebian, os.Stderr)
	if err != nil {
		return err
	}
	url := "https://" + e.endpoint()
	if err := e.node.StartService(ctx, "etcd", program, "--data-dir", e.dir+"/data",
		"--listen-client-urls", url, "--advertise-client-urls", url, "--listen-peer-urls", "http://127.0.0.1:2380",
		"--client-cert-auth", "--trusted-ca-file", e.dir+"/ca.pem", "--cert-file", e.dir+"/cert.pem", "--key-file", e.dir+"/key.pem"); err != nil {
		return err
	}
	if e.ready {
		return nil
	}
	err = until(ctx, func() error { return e.users(ctx) })
	e.ready = err == nil
	if err != nil {
		said, _ := os.ReadFile(e.node.ServiceLog("etcd"))
		err = fmt.Errorf("%w; etcd says:\n%s", err, said)
	}
	return err
}

// users makes ours with the least rights that do. The test itself is not in the
// node's network, and connects from within.
func (e *externalEtcd) users(ctx context.Context) error {
	own, err := e.authority.issue("administrator", netip.Addr{})
	if err != nil {
		return err
	}
	cert, err := tls.X509KeyPair(own.certificate, own.key)
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AddCert(e.authority.certificate)
	return etcdtest.Users{
		Endpoint: "https://" + e.endpoint(), TLS: &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12},
		Dial: func(ctx context.Context, addr string) (net.Conn, error) { return dialIn(ctx, e.node.NetNS(), addr) },
		Root: "of-root", User: etcdUser, Password: etcdPassword, Prefix: "/particle/v1/",
	}.Make(ctx)
}

// dialIn opens a connection in another network namespace.
func dialIn(ctx context.Context, netns, addr string) (net.Conn, error) {
	type result struct {
		conn net.Conn
		err  error
	}
	done := make(chan result, 1)
	go func() {
		runtime.LockOSThread() // unlocked only on its way back: else the thread ends
		conn, err := dialAway(ctx, netns, addr)
		done <- result{conn, err}
	}()
	r := <-done
	return r.conn, r.err
}

func dialAway(ctx context.Context, netns, addr string) (net.Conn, error) {
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, err
	}
	defer home.Close()
	away, err := os.Open(netns)
	if err != nil {
		return nil, err
	}
	defer away.Close()
	if err := unix.Setns(int(away.Fd()), unix.CLONE_NEWNET); err != nil {
		return nil, err
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	if back := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); back != nil {
		return conn, errors.Join(err, back)
	}
	runtime.UnlockOSThread()
	return conn, err
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
