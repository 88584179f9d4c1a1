package membership

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/particle-net/particle/control"
	"github.com/particle-net/particle/control/enrol"
	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/internal/hostpath"
	"github.com/particle-net/particle/topology"
)

// External is an etcd that somebody else runs.
type External struct {
	Endpoints []string // URLs
	User      string   // empty without authentication
	// Dir may hold cert.pem with key.pem, and password. Certificates are read anew for
	// each connection. For https it must hold ca.pem, since the plugin's file system has
	// no authorities.
	Dir string
	// Encryption is what all hosts that use it are to have.
	Encryption topology.Encryption
}

// ParseEndpoints reads URLs that commas separate. An error tells nothing of what may be a
// password in them.
func ParseEndpoints(text string) ([]string, error) {
	var all []string
	for part := range strings.SplitSeq(text, ",") {
		u, err := url.Parse(strings.TrimSpace(part))
		var parsing *url.Error
		if errors.As(err, &parsing) {
			return nil, fmt.Errorf("it is not https://HOST:PORT: %w", parsing.Err)
		}
		if u.User != nil {
			return nil, errors.New("users have a setting of their own, PARTICLE_ETCD_USER, and passwords a file")
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
	text, err := os.ReadFile(ca)
	if err != nil {
		return nil, &fault.Error{Op: "read certificate", On: ca, Err: err, Fix: "put etcd's authority there, as PEM, also if it is a public one, and restart the plugin"}
	}
	c.TLS.RootCAs = x509.NewCertPool()
	if !c.TLS.RootCAs.AppendCertsFromPEM(text) {
		return nil, fault.New("read certificate", ca, "there is none in the file", "put etcd's authority there, as PEM")
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

// external is the etcd by which this host is in a cluster; nil if it is not.
func (m *Membership) external() *External {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.extern
}

// useExternal has the host be in the cluster of those that use External.
func (m *Membership) useExternal() error {
	m.mu.Lock()
	m.extern = m.o.External
	m.mu.Unlock()
	c, err := m.o.External.connection()
	if err == nil {
		c.Secret, err = m.place.secret(c.Encryption)
	}
	if err == nil {
		m.deliver(c)
	}
	return err
}

// unheeded says why External is set and not in force; nil if it is, or is not set.
// Two clusters at once would not do: what the host has of one would be told to the
// other.
func (m *Membership) unheeded() error {
	if m.o.External == nil || m.external() != nil {
		return nil
	}
	const op = "use the etcd of PARTICLE_ETCD"
	empty := "empty it (`" + hostpath.WithoutEtcd() + "`)"
	if m.state() != nil {
		return fault.New(op, "", "this host is in a cluster of particle's own, and stays in it", empty+", or run `particle cluster leave` and restart the plugin")
	}
	return fault.New(op, "", "this host has left its cluster since the plugin was started", empty+", or restart the plugin for the host to use it")
}

// What a host with External is told to do otherwise depends on these.
const (
	opToken   = "show token"
	opRecover = "recover the cluster's store"
)

// refuseExternal is the answer to what only makes sense with a store of ours.
func (m *Membership) refuseExternal(op string) error {
	if m.o.External == nil || m.state() != nil {
		return nil
	}
	fix := "set PARTICLE_ETCD on each host instead, or empty it first: `" + hostpath.WithoutEtcd() + "`"
	switch op {
	case opToken:
		fix = "set PARTICLE_ETCD on the host that is to join: it needs no token"
	case opRecover:
		fix = "recover etcd with its own commands; the hosts tell it what it lacks then"
	}
	return fault.New(op, "", "PARTICLE_ETCD names an etcd that is not particle's own, and the hosts that use it are the cluster", fix)
}

// leaveExternal gives up this host's part. It is in no cluster from then on, until the
// plugin starts again.
func (m *Membership) leaveExternal(ctx context.Context, o LeaveOptions) (Left, error) {
	left := Left{External: true}
	if !o.Force {
		if err := m.checkBusy(ctx); err != nil {
			return Left{}, err
		}
	}
	if m.o.Leaving != nil {
		left.Untold = m.o.Leaving(ctx)
	}
	if left.Untold != nil && !o.Force {
		return Left{}, &fault.Error{Op: "leave the cluster", Err: left.Untold, Fix: "try again when etcd answers, or use --force and then `particle cluster remove` for this host on another one"}
	}
	m.mu.Lock()
	m.extern, m.broken = nil, nil
	m.mu.Unlock()
	err := m.place.forgetSecret()
	m.deliver(nil)
	return left, err
}

// removeExternal gives up what another host had. Only an administrator of etcd can keep
// that one from coming back, so it must be silent.
func (m *Membership) removeExternal(ctx context.Context, ref string) (Removed, error) {
	const op = "remove host"
	var known []enrol.Host
	if m.o.Known != nil {
		known = m.o.Known()
	}
	h, err := hostNamed(known, ref)
	if err != nil {
		return Removed{}, err
	}
	if h.ID == m.node {
		return Removed{}, fault.New(op, h.Name, "it is this one", "run `particle cluster leave`")
	}
	if m.o.Removing != nil {
		err = m.o.Removing(ctx, h.ID)
	}
	if errors.Is(err, control.ErrAlive) {
		err = &fault.Error{Op: op, On: h.Name, Err: control.ErrAlive,
			Fix: "run `particle cluster leave` there; or take its user or certificate from etcd, and run this again half a minute after that"}
	}
	return Removed{Name: h.Name}, err
}
