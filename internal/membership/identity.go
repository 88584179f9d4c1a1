package membership

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"os"
	"sync/atomic"
	"time"

	"github.com/particle-net/particle/control/enrol"
	"github.com/particle-net/particle/internal/fault"
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

// load reads the certificate from its files.
func (id *identity) load() error {
	cert, err := tls.LoadX509KeyPair(id.files.certificate(), id.files.key())
	if err != nil {
		return &fault.Error{Op: "read certificate", On: id.files.certificate(), Err: err, Fix: "leave the cluster with --force and join again"}
	}
	id.own.Store(&cert)
	return nil
}

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
