package membership

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/topology"
)

// External is an etcd that somebody else runs.
type External struct {
	Endpoints []string // URLs
	User      string   // empty without authentication
	// Dir may hold ca.pem, cert.pem with key.pem, and password. Certificates are
	// read anew for each connection.
	Dir string
	// Encryption is what all hosts that use it are to have.
	Encryption topology.Encryption
}

// ParseEndpoints reads URLs that commas separate.
func ParseEndpoints(text string) ([]string, error) {
	var all []string
	for part := range strings.SplitSeq(text, ",") {
		u, err := url.Parse(strings.TrimSpace(part))
		if err != nil {
			return nil, err
		}
		if u.Scheme != "https" && u.Scheme != "http" || u.Port() == "" {
			return nil, fmt.Errorf("%q is not https://HOST:PORT", part)
		}
		all = append(all, u.Scheme+"://"+u.Host)
	}
	return all, nil
}

func (x External) connection() (*Connection, error) {
	c := &Connection{Endpoints: x.Endpoints, User: x.User, Encryption: x.Encryption}
	if x.User != "" {
		password, err := os.ReadFile(filepath.Join(x.Dir, "password"))
		if err != nil {
			return nil, &fault.Error{Op: "read the password of etcd user", On: x.User, Err: err, Fix: "write it to that file on the host, readable for root alone"}
		}
		c.Password = strings.TrimRight(string(password), "\r\n")
	}
	if !strings.HasPrefix(x.Endpoints[0], "https:") {
		return c, nil
	}
	c.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
	ca := filepath.Join(x.Dir, "ca.pem")
	switch text, err := os.ReadFile(ca); {
	case errors.Is(err, fs.ErrNotExist): // the system's authorities
	case err != nil:
		return nil, &fault.Error{Op: "read certificate", On: ca, Err: err}
	default:
		c.TLS.RootCAs = x509.NewCertPool()
		if !c.TLS.RootCAs.AppendCertsFromPEM(text) {
			return nil, fault.New("read certificate", ca, "there is none in the file", "put etcd's authority there, as PEM")
		}
	}
	cert, key := filepath.Join(x.Dir, "cert.pem"), filepath.Join(x.Dir, "key.pem")
	if _, err := os.Stat(cert); errors.Is(err, fs.ErrNotExist) {
		return c, nil
	}
	load := func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		pair, err := tls.LoadX509KeyPair(cert, key)
		return &pair, err
	}
	if _, err := load(nil); err != nil {
		return nil, &fault.Error{Op: "read certificate", On: cert, Err: err, Fix: "put certificate and key there, as PEM"}
	}
	c.TLS.GetClientCertificate = load
	return c, nil
}
