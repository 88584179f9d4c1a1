package membership

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"github.com/particle-net/particle/control/enrol"
	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/topology"
)

// identity is this host's certificate. Connections made after a renewal use the
// new one.
type identity struct {
	files files
	roots *x509.CertPool
	root  []byte // DER
	own   atomic.Pointer[tls.Certificate]
}

func openIdentity(f files) (*identity, error) {
	authority, err := os.ReadFile(f.authority())
	if err != nil {
		return nil, err
	}
	id := &identity{files: f, roots: x509.NewCertPool()}
	if !id.roots.AppendCertsFromPEM(authority) {
		return nil, fault.New("read certificate", f.authority(), "it is damaged", "leave the cluster with --force and join again")
	}
	id.root = pemBytes(authority)
	return id, id.load()
}

// certifyAnew gives a server another key and certificate, since what it has cannot be read.
// It has the authority's key, and may be the only one that could be asked.
func (m *Membership) certifyAnew(r record, why error) (*identity, error) {
	f := m.place.now()
	authority, err := readAuthority(f)
	if err != nil {
		return nil, why
	}
	key, request, err := enrol.NewKey()
	if err != nil {
		return nil, err
	}
	cert, _, err := authority.Issue(request, r.host(m.node).Subject(), time.Now())
	if err != nil {
		return nil, err
	}
	if err := errors.Join(writeFile(f.key(), key), writeFile(f.certificate(), cert)); err != nil {
		return nil, errors.Join(why, err)
	}
	m.o.Log.WithError(why).Error("this host's certificate was damaged; it has signed itself another")
	return openIdentity(f)
}

func readAuthority(f files) (*enrol.Authority, error) {
	cert, err := os.ReadFile(f.authority())
	if err != nil {
		return nil, err
	}
	key, err := os.ReadFile(f.authorityKey())
	if err != nil {
		return nil, err
	}
	return enrol.ReadAuthority(cert, key)
}

// load reads the certificate from its files.
func (id *identity) load() error {
	cert, err := id.read(id.files.certificate())
	if err != nil {
		return &fault.Error{Op: "read certificate", On: id.files.certificate(), Err: err, Fix: "leave the cluster with --force and join again"}
	}
	id.own.Store(&cert)
	return nil
}

func (id *identity) read(path string) (tls.Certificate, error) {
	return tls.LoadX509KeyPair(path, id.files.key())
}

// renewed puts a new certificate in force. The one before stays at hand: a clock that
// was wrong may have made it look as if it had ended.
func (id *identity) renewed(certificate []byte) error {
	former := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: id.own.Load().Certificate[0]})
	if err := writeFile(id.files.former(), former); err != nil {
		return err
	}
	if err := writeFile(id.files.certificate(), certificate); err != nil {
		return err
	}
	return id.load()
}

// belongs fails if the certificate is another host's: this one's id or its membership came
// from another disk. To servers it would be that host, and to the store this one.
func (id *identity) belongs(node topology.NodeID) error {
	named := topology.NodeID(id.own.Load().Leaf.Subject.CommonName)
	if named == node {
		return nil
	}
	return fault.New("read certificate", id.files.certificate(), fmt.Sprintf("it is of the host %s, and this one is %s", named.Short(), node.Short()),
		"give the host its file /var/lib/particle/node back and restart the plugin; or, if it is a copy of that host, run `particle cluster leave --force` and join again")
}

// good says whether the certificate in force is valid by this host's clock.
func (id *identity) good() bool { return valid(id.own.Load().Leaf) }

func valid(leaf *x509.Certificate) bool {
	now := time.Now()
	return now.After(leaf.NotBefore) && now.Before(leaf.NotAfter)
}

// choose puts the certificate in force that is valid by this host's clock, if one of
// the two is.
func (id *identity) choose() {
	for _, path := range []string{id.files.certificate(), id.files.former()} {
		if cert, err := id.read(path); err == nil && valid(cert.Leaf) {
			id.own.Store(&cert)
			return
		}
	}
}

// request asks for another certificate for the same key.
func (id *identity) request() ([]byte, error) {
	key, err := os.ReadFile(id.files.key())
	if err != nil {
		return nil, err
	}
	return enrol.RequestFor(key)
}

// noted is the certificate in force as the register has it.
func (id *identity) noted() enrol.Certificate { return enrol.CertificateOf(id.own.Load().Leaf) }

// life tells when the certificate begins and ends.
func (id *identity) life() (from, to time.Time) {
	leaf := id.own.Load().Leaf
	return leaf.NotBefore, leaf.NotAfter
}

// client is for connections to servers of the cluster, store and enrolment.
func (id *identity) client() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, RootCAs: id.roots, ServerName: enrol.ServerName,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return id.own.Load(), nil },
	}
}

// server is for the enrolment port: hosts that have no certificate yet come
// there too, and find the authority's in the chain.
func (id *identity) server() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: id.roots,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			own := id.own.Load()
			if own == nil {
				return nil, errors.New("no certificate")
			}
			chain := *own
			chain.Certificate = [][]byte{own.Certificate[0], id.root}
			return &chain, nil
		},
	}
}
