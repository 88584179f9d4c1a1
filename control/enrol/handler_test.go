package enrol

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/particle-net/particle/control/controltest/etcdtest"
	"github.com/particle-net/particle/topology"
)

func TestMain(m *testing.M) { etcdtest.Main(m) }

// desk is a server's enrolment with a store, whose servers it makes up.
type desk struct {
	*Handler
	t        *testing.T
	register *Register
	lost     error         // in place of the list of servers
	ahead    time.Duration // the clock
}

func newDesk(t *testing.T) *desk {
	t.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{etcdtest.Start(t, etcdtest.Current).Endpoint()}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	a, err := NewAuthority(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	log := logrus.New()
	log.SetOutput(io.Discard)
	d := &desk{t: t, register: NewRegister(c)}
	d.Handler = NewHandler(a, d, d, logrus.NewEntry(log))
	d.now = func() time.Time { return time.Now().Add(d.ahead) }
	return d
}

func (d *desk) Register(context.Context) (*Register, error) { return d.register, nil }
func (d *desk) Servers(context.Context) ([]Host, error)     { return nil, d.lost }
func (d *desk) Admit(context.Context, Host) (string, error) { return "", nil }
func (d *desk) Dismiss(context.Context, Host) error         { return nil }
func (d *desk) Has(string) bool                             { return false }
func (d *desk) Refresh(context.Context) error               { return nil }
func (d *desk) answer(path string, body any, c *x509.Certificate) (*Admission, error) {
	d.t.Helper()
	raw, err := json.Marshal(body)
	if err != nil {
		d.t.Fatal(err)
	}
	r := httptest.NewRequest("POST", path, strings.NewReader(string(raw)))
	r.RemoteAddr = "192.0.2.2:9"
	if c != nil {
		r.TLS = &tls.ConnectionState{VerifiedChains: [][]*x509.Certificate{{c}}}
	}
	got, err := d.serve(d.t.Context(), r)
	a, _ := got.(*Admission)
	return a, err
}

const member = topology.NodeID("0123456789abcdef0123456789abcdef")

var said = Hello{Name: "h2", Address: netip.MustParseAddr("192.0.2.2"), Port: 7790}

// join has the host join, with the token.
func (d *desk) join() (*Admission, error) {
	d.t.Helper()
	return d.joinAs(JoinRequest{ID: member, Name: said.Name, Address: said.Address, Port: said.Port})
}

// joinAs has any host join, with the token.
func (d *desk) joinAs(req JoinRequest) (*Admission, error) {
	d.t.Helper()
	info, err := d.register.TokenInfo(d.t.Context(), TokenLife)
	if err != nil {
		d.t.Fatal(err)
	}
	if req.Secret, err = d.authority.secret(info.Nonce); err != nil {
		d.t.Fatal(err)
	}
	req.Request = mustRequest(d.t)
	return d.answer(pathJoin, req, nil)
}

// Addresses of hosts come and go. Only at a server's nobody else may be, and a server at
// nobody's.
func TestSameAddress(t *testing.T) {
	d := newDesk(t)
	if _, err := d.join(); err != nil {
		t.Fatal(err)
	}
	other := JoinRequest{ID: "1" + member[1:], Name: "h4", Address: said.Address, Port: 7790}
	if _, err := d.joinAs(other); err != nil {
		t.Errorf("a host that has the former address of another: %v", err)
	}
	server := JoinRequest{ID: "2" + member[1:], Name: "s", Address: said.Address, Port: 7790, Server: true}
	for _, want := range []string{"at the same address", "particle cluster remove h2", "particle cluster join"} {
		if _, err := d.joinAs(server); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("a server at the address of hosts: %v, want %q", err, want)
		}
	}
	server.Address = netip.MustParseAddr("192.0.2.9")
	if _, err := d.joinAs(server); err != nil {
		t.Fatal(err)
	}
	late := JoinRequest{ID: "3" + member[1:], Name: "late", Address: server.Address, Port: 7790}
	for _, want := range []string{"at the same address", "particle cluster remove s", "particle cluster leave"} {
		if _, err := d.joinAs(late); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("a host at the address of a server: %v, want %q", err, want)
		}
	}
}

// A host that says that it has another address is known there; a server's stays.
func TestAddressIsTold(t *testing.T) {
	d := newDesk(t)
	if _, err := d.join(); err != nil {
		t.Fatal(err)
	}
	shown := d.issue(0)
	for _, server := range []bool{false, true} {
		h, err := d.register.Host(t.Context(), member)
		if err != nil {
			t.Fatal(err)
		}
		h.Server = server
		h.Certificates = append(h.Certificates, CertificateOf(shown))
		if _, err := d.register.Enter(t.Context(), h); err != nil {
			t.Fatal(err)
		}
		hello := said
		hello.Address = h.Address.Next()
		if _, err := d.answer(pathState, memberRequest{Hello: hello}, shown); err != nil {
			t.Fatal(err)
		}
		after, err := d.register.Host(t.Context(), member)
		if err != nil || (after.Address == hello.Address) == server {
			t.Errorf("server: %t, had %s, said %s, has %s, %v", server, h.Address, hello.Address, after.Address, err)
		}
	}
}

// A server that others have recovered the store without serves it no more, and has a
// server's certificate still. It does not become one by being upgraded meanwhile.
func TestFormerServerIsUpgraded(t *testing.T) {
	d := newDesk(t)
	a, err := d.joinAs(JoinRequest{ID: member, Name: said.Name, Address: said.Address, Port: said.Port, Server: true, Version: "1"})
	if err != nil {
		t.Fatal(err)
	}
	h, err := d.register.Host(t.Context(), member)
	if err != nil || !h.Server {
		t.Fatalf("%+v, %v", h, err)
	}
	h.Server = false
	if _, err := d.register.Enter(t.Context(), h); err != nil {
		t.Fatal(err)
	}
	hello := said
	hello.Version = "2"
	if _, err := d.answer(pathState, memberRequest{Hello: hello}, mustParse(t, a.Certificate)); err != nil {
		t.Fatal(err)
	}
	if h, err = d.register.Host(t.Context(), member); err != nil || h.Server || h.Version != "2" {
		t.Errorf("it is %+v, %v", h, err)
	}
}

func (d *desk) renew(shown *x509.Certificate) (*Admission, error) {
	d.t.Helper()
	return d.answer(pathRenew, memberRequest{Hello: said, Request: mustRequest(d.t)}, shown)
}

// issue makes a certificate of the host's as one of so long ago.
func (d *desk) issue(age time.Duration) *x509.Certificate {
	d.t.Helper()
	_, cert, err := d.authority.Issue(mustRequest(d.t), Subject{Node: member, Name: said.Name, Address: said.Address}, d.now().Add(-age))
	if err != nil {
		d.t.Fatal(err)
	}
	return cert
}

// certificates are those that the register has of the host.
func (d *desk) certificates() []Certificate {
	d.t.Helper()
	h, err := d.register.Host(d.t.Context(), member)
	if err != nil {
		d.t.Fatal(err)
	}
	return h.Certificates
}

func (d *desk) revoked(c *x509.Certificate) bool {
	d.t.Helper()
	is, err := d.register.isRevoked(d.t.Context(), CertificateOf(c).Serial)
	if err != nil {
		d.t.Fatal(err)
	}
	return is
}

func mustRequest(t *testing.T) []byte {
	t.Helper()
	_, request, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	return request
}

func mustParse(t *testing.T, text []byte) *x509.Certificate {
	t.Helper()
	cert, err := parseCertificate(text)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

const day = 24 * time.Hour

// A certificate is renewed when it is due by the server's clock, however often and early
// the host asks; who has lost the answer is given another after a while.
func TestRenewalIsBounded(t *testing.T) {
	d := newDesk(t)
	admitted, err := d.join()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.renew(mustParse(t, admitted.Certificate)); !errors.Is(err, ErrTooEarly) || !strings.Contains(err.Error(), "the server's clock says") {
		t.Errorf("a fresh certificate: %v", err)
	}
	for name, c := range map[string]struct {
		age time.Duration
		due bool
	}{"half its life": {180 * day, false}, "two days early": {241 * day, false}, "an hour early": {243*day - time.Hour, true}} {
		if err := mayRenew(Host{Certificates: []Certificate{CertificateOf(d.issue(c.age))}}, CertificateOf(d.issue(c.age)), d.now()); (err == nil) != c.due {
			t.Errorf("%s: %v", name, err)
		}
	}
	due := d.issue(300 * day)
	if _, err := d.renew(due); err != nil {
		t.Fatal(err)
	}
	had := len(d.certificates())
	for range 3 {
		if _, err := d.renew(due); !errors.Is(err, ErrTooEarly) || !strings.Contains(err.Error(), "was given its latest at") {
			t.Errorf("the answer came to nothing: %v", err)
		}
	}
	if n := len(d.certificates()); n != had {
		t.Errorf("the register has %d certificates, and had %d", n, had)
	}
	d.ahead = renewalPause + time.Minute
	if _, err := d.renew(due); err != nil {
		t.Errorf("an hour later: %v", err)
	}
}

// A server's own certificates are bounded likewise; that the register does not know the
// one in force yet is no reason to wait.
func TestServerRenewsItself(t *testing.T) {
	d := newDesk(t)
	if _, err := d.join(); err != nil {
		t.Fatal(err)
	}
	own := Host{ID: member, Name: said.Name, Address: said.Address, Server: true, Certificates: []Certificate{CertificateOf(d.issue(300 * day))}}
	if _, err := d.authority.Renew(t.Context(), d.register, own, mustRequest(t)); err != nil {
		t.Fatal(err)
	}
	if _, err := d.authority.Renew(t.Context(), d.register, own, mustRequest(t)); !errors.Is(err, ErrTooEarly) {
		t.Errorf("at once again: %v", err)
	}
	if n := len(d.certificates()); n != 3 {
		t.Errorf("the register has %d certificates: that of join, the one in force and the latest are 3", n)
	}
}

// What a server says of a renewal that is too early arrives with its cause.
func TestTooEarlyArrives(t *testing.T) {
	d := newDesk(t)
	admitted, err := d.join()
	if err != nil {
		t.Fatal(err)
	}
	shown := mustParse(t, admitted.Certificate)
	raw, err := json.Marshal(memberRequest{Hello: said, Request: mustRequest(t)})
	if err != nil {
		t.Fatal(err)
	}
	r, w := httptest.NewRequest("POST", pathRenew, strings.NewReader(string(raw))), httptest.NewRecorder()
	r.TLS = &tls.ConnectionState{VerifiedChains: [][]*x509.Certificate{{shown}}}
	d.ServeHTTP(w, r)
	resp := w.Result()
	resp.Request = r
	if err := refused(resp, w.Body.Bytes()); !errors.Is(err, ErrTooEarly) || !strings.Contains(err.Error(), "date -u") {
		t.Error(err)
	}
}

// works tells whether the host is taken for one of the cluster's by a certificate.
func (d *desk) works(c *x509.Certificate) error {
	d.t.Helper()
	_, err := d.answer(pathState, memberRequest{Hello: said}, c)
	return err
}

// A host that joins again goes on with the certificate that it has until it shows the one
// that it was given: the answer may never have arrived.
func TestFormerCertificateOutlivesLostAnswer(t *testing.T) {
	d := newDesk(t)
	admitted, err := d.join()
	if err != nil {
		t.Fatal(err)
	}
	former := mustParse(t, admitted.Certificate)
	d.lost = errors.New("no answer")
	for range 4 {
		if _, err := d.join(); !errors.Is(err, d.lost) {
			t.Fatal(err)
		}
	}
	d.lost = nil
	if err := d.works(former); err != nil {
		t.Errorf("after answers that were lost: %v", err)
	}
	if n := len(d.certificates()); n != 2 {
		t.Errorf("the host has %d certificates: the former and the latest are 2", n)
	}
	if admitted, err = d.join(); err != nil {
		t.Fatal(err)
	}
	latest := mustParse(t, admitted.Certificate)
	if err := d.works(latest); err != nil || d.revoked(latest) {
		t.Errorf("the latest: %v", err)
	}
	if list := d.certificates(); !d.revoked(former) || len(list) != 1 || !list[0].same(CertificateOf(latest)) {
		t.Errorf("the answer arrived, and the host has %+v", list)
	}
}

// Who knows the token cannot bring back what a removed host had.
func TestRemovedHostJoinsWithoutItsCertificates(t *testing.T) {
	d := newDesk(t)
	admitted, err := d.join()
	if err != nil {
		t.Fatal(err)
	}
	former := mustParse(t, admitted.Certificate)
	if err := d.register.Remove(t.Context(), member, true); err != nil {
		t.Fatal(err)
	}
	if _, err := d.join(); err != nil {
		t.Fatal(err)
	}
	if err := d.works(former); err == nil || !strings.Contains(err.Error(), ErrRemoved.Error()) {
		t.Errorf("with the certificate of the removed host: %v", err)
	}
	if list := d.certificates(); len(list) != 1 || list[0].same(CertificateOf(former)) {
		t.Errorf("the host has %+v", list)
	}
}
