package enrol

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"time"

	"github.com/particle-net/particle/internal/fault"
)

// ErrRemoved is the cause when the cluster does not know the caller any more.
var ErrRemoved = errors.New("this host was removed from the cluster")

// ErrEncrypted is the cause when the caller has not said that it can encrypt.
var ErrEncrypted = errors.New("the cluster's hosts encrypt what they send each other, and this one has not said that it can")

// skewLimit is how much two clocks may differ before people are told.
const skewLimit = 5 * time.Minute

// Join asks a server for membership. The server is believed if its certificate
// was signed by the authority that the token names; that authority's
// certificate is returned too, as PEM.
func Join(ctx context.Context, server netip.AddrPort, t Token, req JoinRequest) (*Admission, []byte, error) {
	var authority []byte
	config := &tls.Config{
		MinVersion: tls.VersionTLS13,
		// The authority is not known yet: verify compares its hash and then does
		// all that is left out here.
		InsecureSkipVerify: true,
		VerifyConnection: func(s tls.ConnectionState) (err error) {
			authority, err = verify(s.PeerCertificates, t.Cluster)
			return err
		},
	}
	req.Secret = t.Secret
	var a Admission
	if err := post(ctx, config, call{server, pathJoin, req, &a}); err != nil {
		return nil, nil, err
	}
	return &a, authority, nil
}

// verify checks a chain that ends with the authority of the given hash.
func verify(chain []*x509.Certificate, cluster Fingerprint) ([]byte, error) {
	for _, root := range chain {
		if Fingerprint(sha256.Sum256(root.Raw)) != cluster {
			continue
		}
		roots := x509.NewCertPool()
		roots.AddCert(root)
		_, err := chain[0].Verify(x509.VerifyOptions{Roots: roots, DNSName: ServerName})
		return toPEM("CERTIFICATE", root.Raw), err
	}
	return nil, errOtherCluster
}

var errOtherCluster = errors.New("the server belongs to another cluster than the token")

// Caller is a host that has a certificate.
type Caller struct {
	TLS   *tls.Config // carries it
	Hello Hello
}

// Renew asks for a new certificate. Cause: ErrRemoved, ErrTooEarly.
func (c Caller) Renew(ctx context.Context, server netip.AddrPort, request []byte) (*Admission, error) {
	var a Admission
	return &a, post(ctx, c.TLS, call{server, pathRenew, memberRequest{Hello: c.Hello, Request: request}, &a})
}

// State asks for the servers and the time. Cause: ErrRemoved.
func (c Caller) State(ctx context.Context, server netip.AddrPort) (State, error) {
	var s State
	return s, post(ctx, c.TLS, call{server, pathState, memberRequest{Hello: c.Hello}, &s})
}

// Leave ends membership: the certificate is worth nothing afterwards. Cause:
// ErrRemoved if it was not worth anything before.
func (c Caller) Leave(ctx context.Context, server netip.AddrPort) error {
	return post(ctx, c.TLS, call{server, pathLeave, memberRequest{Hello: c.Hello}, &struct{}{}})
}

type call struct {
	server netip.AddrPort
	path   string
	body   any
	answer any
}

func post(ctx context.Context, config *tls.Config, c call) error {
	raw, err := json.Marshal(c.body)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+c.server.String()+c.path, bytes.NewReader(raw))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	// One connection for one request: proxies of the environment have no part in
	// what hosts of a cluster say to each other.
	transport := &http.Transport{TLSClientConfig: config, DisableKeepAlives: true}
	defer transport.CloseIdleConnections()
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return explainDial(c.server, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxBody))
	if err != nil {
		return explainDial(c.server, err)
	}
	if resp.StatusCode != http.StatusOK {
		return refused(resp, body)
	}
	if err := json.Unmarshal(body, c.answer); err != nil {
		return &fault.Error{Op: "ask the cluster", On: c.server.String(), Err: err, Fix: "install the same version of particle on all hosts"}
	}
	return nil
}

func refused(resp *http.Response, body []byte) error {
	var r refusal
	if err := json.Unmarshal(body, &r); err != nil || r.Cause == "" {
		r.Cause = "it answered " + resp.Status
	}
	cause := errors.New(r.Cause)
	switch resp.StatusCode {
	case http.StatusGone:
		cause = ErrRemoved
	case http.StatusPreconditionFailed:
		cause = ErrEncrypted
	case http.StatusTooEarly:
		cause = &told{r.Cause, ErrTooEarly}
	}
	return &fault.Error{Op: "ask the cluster", On: resp.Request.URL.Host, Err: cause, Fix: r.Fix}
}

// told is what a server says, in its own words, and the cause that it stands for.
type told struct {
	text  string
	cause error
}

func (t *told) Error() string { return t.text }

func (t *told) Unwrap() error { return t.cause }

func explainDial(server netip.AddrPort, err error) error {
	f := &fault.Error{Op: "reach the cluster", On: server.String(), Err: err,
		Fix: fmt.Sprintf("check the address, that `particle cluster status` is well there, and that TCP ports %d to %d are open between the hosts", server.Port(), server.Port()+2)}
	var invalid x509.CertificateInvalidError
	switch {
	case errors.Is(err, errOtherCluster):
		f.Err, f.Fix = errOtherCluster, "take address and token from the same host"
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		f.Fix = "compare the clocks of both hosts (`date -u`) and set the wrong one"
	}
	return f
}

// Skew tells that this host's clock differs too much from a server's; nil if it
// does not.
func Skew(server, own time.Time) error {
	d := own.Sub(server)
	if d.Abs() < skewLimit {
		return nil
	}
	word := "ahead of"
	if d < 0 {
		word = "behind"
	}
	return fault.New("compare clocks", "", fmt.Sprintf("this host's clock is %s %s the cluster's", d.Abs().Round(time.Second), word),
		"let a time service set the clocks of both (chrony or systemd-timesyncd)")
}
