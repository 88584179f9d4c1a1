package enrol

import (
	"context"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/topology"
)

// MaxServers is how many hosts may serve the store. More would not make it safer
// in practice, and each write slower.
const MaxServers = 3

// Store is what enrolment needs of the cluster's store.
type Store interface {
	// Register fails if the store is not ready, nor comes to be within seconds.
	Register(context.Context) (*Register, error)
	// Servers lists the hosts whose store answers for itself.
	Servers(context.Context) ([]Host, error)
	// Admit makes a host one of the store's servers, and tells who all are in
	// etcd's form; it may be repeated.
	Admit(context.Context, Host) (initialCluster string, err error)
	// Dismiss undoes it; not there is success.
	Dismiss(context.Context, Host) error
}

// Handler answers at the enrolment port of a server.
type Handler struct {
	Encryption topology.Encryption // of the cluster; hosts that cannot are not let in

	authority *Authority
	store     Store
	revoked   Revocations
	log       *logrus.Entry
	limit     limiter
	told      limiter       // of what is logged
	checking  chan struct{} // full while a secret is compared
	now       func() time.Time
}

// Revocations is this server's own list of revoked certificates.
type Revocations interface {
	// Has tells whether a certificate is on it, whatever the store says.
	Has(serial string) bool
	// Refresh brings it up to date with the store.
	Refresh(context.Context) error
}

// NewHandler makes one. Its listener must check the certificate of a client that
// shows one, and must insist on none.
func NewHandler(a *Authority, s Store, r Revocations, log *logrus.Entry) *Handler {
	return &Handler{
		authority: a, store: s, revoked: r, log: log, now: time.Now,
		limit: newLimiter(), told: newLimiter(), checking: make(chan struct{}, 1),
	}
}

// requestLimit bounds the work for one request.
const requestLimit = 15 * time.Second

// EnterLimit bounds the time from a server's admission to its entry in the register. One
// that is not entered by then is nobody's, and has not been told that it may start.
const EnterLimit = 3 * time.Second

// ServeHTTP implements http.Handler.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), requestLimit)
	defer cancel()
	answer, err := h.serve(ctx, r)
	if err == nil {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(answer) // nobody is left to tell if it does not arrive
		return
	}
	status := http.StatusInternalServerError
	var d *denied
	if errors.As(err, &d) {
		status = d.status
	}
	h.tell(r, err)
	text := refusal{Cause: err.Error()}
	var f *fault.Error
	if errors.As(err, &f) {
		whole := *f
		whole.Fix = ""
		text = refusal{Cause: whole.Error(), Fix: f.Fix}
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(text)
}

// tell logs a refusal, and not all of one address: anybody can bring them about.
func (h *Handler) tell(r *http.Request, err error) {
	from, now := remote(r), h.now()
	if !h.told.allow(from, now) {
		return
	}
	h.told.failed(from, now)
	h.log.WithError(err).WithFields(logrus.Fields{"from": r.RemoteAddr, "path": r.URL.Path}).Warn("enrolment refused")
}

// denied gives an error its HTTP status.
type denied struct {
	status int
	err    error
}

func (d *denied) Error() string { return d.err.Error() }

func (d *denied) Unwrap() error { return d.err }

func deny(status int, cause, fix string) error {
	return &denied{status, &fault.Error{Op: "join", Err: errors.New(cause), Fix: fix}}
}

func (h *Handler) serve(ctx context.Context, r *http.Request) (any, error) {
	if r.Method != http.MethodPost {
		return nil, deny(http.StatusMethodNotAllowed, "only POST is answered here", "")
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, maxRequest+1))
	if err != nil {
		return nil, err
	}
	if len(body) > maxRequest {
		return nil, deny(http.StatusRequestEntityTooLarge, fmt.Sprintf("the request is longer than %d bytes", maxRequest), sameVersion)
	}
	if r.URL.Path == pathJoin {
		var req JoinRequest
		if err := json.Unmarshal(body, &req); err != nil {
			return nil, deny(http.StatusBadRequest, err.Error(), sameVersion)
		}
		return h.join(ctx, remote(r), req)
	}
	var req memberRequest
	if err := json.Unmarshal(body, &req); err != nil {
		return nil, deny(http.StatusBadRequest, err.Error(), sameVersion)
	}
	host, register, err := h.caller(ctx, r, req.Hello)
	if err != nil {
		return nil, err
	}
	switch r.URL.Path {
	case pathRenew:
		return h.renew(ctx, register, renewal{host, CertificateOf(r.TLS.VerifiedChains[0][0]), req.Request})
	case pathState:
		servers, err := h.store.Servers(ctx)
		return State{Servers: servers, Now: h.now().UTC()}, err
	case pathLeave:
		return struct{}{}, h.leave(ctx, register, host)
	}
	return nil, deny(http.StatusNotFound, "no such path: "+r.URL.Path, sameVersion)
}

const sameVersion = "install the same version of particle on all hosts"

func remote(r *http.Request) netip.Addr {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	addr, err := netip.ParseAddr(host)
	if err != nil {
		return netip.Addr{}
	}
	return addr.Unmap()
}

func (h *Handler) join(ctx context.Context, from netip.Addr, req JoinRequest) (*Admission, error) {
	if err := h.mayTry(from); err != nil {
		return nil, err
	}
	register, err := h.store.Register(ctx)
	if err != nil {
		return nil, &denied{http.StatusServiceUnavailable, err}
	}
	if err := h.try(ctx, register, from, req.Secret); err != nil {
		return nil, err
	}
	host, err := h.vet(ctx, register, req)
	if err != nil {
		return nil, err
	}
	a := &Admission{Encryption: h.Encryption}
	certificate, cert, err := h.authority.Issue(req.Request, host.Subject(), h.now())
	if err != nil {
		return nil, &denied{http.StatusBadRequest, err}
	}
	a.Certificate, host.Certificates = certificate, append(host.Certificates, CertificateOf(cert))
	if host.Server {
		if a.AuthorityKey, err = h.authority.Key(); err != nil {
			return nil, err
		}
		if a.InitialCluster, err = h.store.Admit(ctx, host); err != nil {
			return nil, err
		}
	}
	entering, cancel := context.WithTimeout(ctx, EnterLimit)
	defer cancel()
	if a.Host, err = register.Enter(entering, host); err != nil {
		return nil, err
	}
	if a.Servers, err = h.store.Servers(ctx); err != nil {
		return nil, err
	}
	h.log.WithFields(logrus.Fields{"host": host.Name, "id": host.ID.Short(), "address": host.Address.String(), "server": host.Server}).Info("host joined the cluster")
	return a, nil
}

func (h *Handler) mayTry(from netip.Addr) error {
	if h.limit.allow(from, h.now()) {
		return nil
	}
	return deny(http.StatusTooManyRequests, "too many attempts from "+from.String(), "wait a minute and try again")
}

// try checks the secret of who may try. One at a time is: those that come at once would
// all have found that none had failed yet, and each is a write to the store.
func (h *Handler) try(ctx context.Context, register *Register, from netip.Addr, secret string) error {
	select {
	case h.checking <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-h.checking }()
	if err := h.mayTry(from); err != nil {
		return err
	}
	err := h.checkSecret(ctx, register, secret)
	var d *denied
	if errors.As(err, &d) {
		h.limit.failed(from, h.now())
	}
	return err
}

func (h *Handler) checkSecret(ctx context.Context, register *Register, secret string) error {
	info, err := register.TokenInfo(ctx, TokenLife)
	if err != nil {
		return err
	}
	want, err := h.authority.secret(info.Nonce)
	if err != nil {
		return err
	}
	if subtle.ConstantTimeCompare([]byte(want), []byte(secret)) != 1 {
		return deny(http.StatusForbidden, "the token is wrong, or was changed since it was given out",
			"take it from `particle cluster token` on a host that serves the cluster")
	}
	if info.Expired(h.now()) {
		return deny(http.StatusForbidden, "the token has expired at "+info.Expires.UTC().Format(time.RFC3339),
			"run `particle cluster token` on a host that serves the cluster for a new one")
	}
	return nil
}

// vet decides whether a host that knows the secret can be let in beside those
// that are. One of them that joins again, from the same address, keeps its certificates
// for now; one that was removed has none to keep.
func (h *Handler) vet(ctx context.Context, register *Register, req JoinRequest) (Host, error) {
	id, err := topology.ParseNodeID(string(req.ID))
	if err != nil || !req.Address.IsValid() || req.Name == "" {
		return Host{}, deny(http.StatusBadRequest, "the request lacks the host's id, name or address", sameVersion)
	}
	if h.Encryption != topology.Plain && !slices.Contains(req.Encryptions, h.Encryption) {
		return Host{}, deny(http.StatusPreconditionFailed, ErrEncrypted.Error(), sameVersion)
	}
	all, err := register.Hosts(ctx)
	if err != nil {
		return Host{}, err
	}
	host := Host{ID: id, Name: req.Name, Address: req.Address, Port: req.Port, Server: req.Server, Version: req.Version, Joined: h.now().UTC()}
	servers := 0
	for _, other := range all {
		switch {
		case other.ID == id && other.Address != req.Address:
			return Host{}, deny(http.StatusConflict, fmt.Sprintf("the cluster has a host %s with the same id %s at %s", other.Name, id.Short(), other.Address),
				"if this host is a copy of that one, remove /var/lib/particle/node and restart its plugin; if it is that one with another address, run `particle cluster remove "+other.Name+"` on a server first")
		case other.ID != id && other.Address == req.Address && (other.Server || req.Server):
			return Host{}, occupied(other)
		case other.ID == id && other.Server && !req.Server:
			return Host{}, deny(http.StatusConflict, "this host served the cluster's store and has not left it", "join with --server, or run `particle cluster remove "+other.Name+"` on another server first")
		case other.ID == id:
			host.Certificates, host.revision = supersede(other.Certificates), other.revision
		case other.Server:
			servers++
		}
	}
	if req.Server && servers >= MaxServers {
		return Host{}, deny(http.StatusConflict, fmt.Sprintf("%d hosts serve the store already", servers), "join without --server")
	}
	return host, nil
}

// occupied refuses an address at which servers are reached, and another host is known. Of
// a host that is no server it is used for nothing, and may be one that the host has had:
// such have none to themselves.
func occupied(other Host) error {
	elsewhere := "run `particle cluster join` there with --address, which tells the cluster"
	if other.Server {
		elsewhere = "run `particle cluster leave` there, and join it again"
	}
	return deny(http.StatusConflict, fmt.Sprintf("the cluster has a host %s (%s) at the same address %s", other.Name, other.ID.Short(), other.Address),
		"if it was replaced by this one, run `particle cluster remove "+other.Name+"` on a server first; if it lives (see `particle cluster status`) and has another address by now, "+
			elsewhere+"; otherwise choose another with --address")
}

// caller gives the host that a request's certificate belongs to. One that the
// register does not know is entered again if nobody has removed it: the store
// has lost it. One that is no server may have another address by now, and any another name.
func (h *Handler) caller(ctx context.Context, r *http.Request, hello Hello) (Host, *Register, error) {
	if r.TLS == nil || len(r.TLS.VerifiedChains) == 0 {
		return Host{}, nil, deny(http.StatusUnauthorized, "the request carries no certificate of this cluster", "")
	}
	register, err := h.store.Register(ctx)
	if err != nil {
		return Host{}, nil, &denied{http.StatusServiceUnavailable, err}
	}
	cert := r.TLS.VerifiedChains[0][0]
	shown := CertificateOf(cert)
	// The entry first: a host that is taken out meanwhile has either changed it, or is on
	// the list by the time that this is asked for.
	host, err := register.Host(ctx, topology.NodeID(cert.Subject.CommonName))
	if err != nil && !errors.Is(err, ErrNotEnrolled) {
		return Host{}, nil, err
	}
	revoked, failed := register.isRevoked(ctx, shown.Serial)
	if failed != nil {
		return Host{}, nil, failed
	}
	if revoked || h.revoked.Has(shown.Serial) {
		return Host{}, nil, deny(http.StatusGone, ErrRemoved.Error(), "run `particle cluster leave --force` on it, then join it again")
	}
	known := slices.ContainsFunc(host.Certificates, shown.same)
	kept := settle(host.Certificates, shown)
	moved := !host.Server && hello.Address.IsValid() && hello.Address != host.Address
	if err == nil && known && !moved && host.Name == hello.Name && host.Version == hello.Version && len(kept) == len(host.Certificates) {
		return host, register, nil
	}
	if err != nil {
		host = Host{ID: topology.NodeID(cert.Subject.CommonName), Joined: h.now().UTC()}
	}
	host.Name, host.Address, host.Port, host.Version = hello.Name, hello.Address, hello.Port, hello.Version
	if host.Certificates = kept; !known {
		// Otherwise the register knows better: who recovers the store takes servers out of
		// it, which keep their certificates.
		host.Server = slices.Contains(cert.DNSNames, ServerName)
		host.Certificates = append(host.Certificates, shown)
	}
	host, err = register.Enter(ctx, host)
	return host, register, err
}

func (h *Handler) leave(ctx context.Context, register *Register, host Host) error {
	if host.Server {
		if err := h.store.Dismiss(ctx, host); err != nil {
			return err
		}
	}
	if err := register.Remove(ctx, host.ID, false); err != nil {
		return err
	}
	h.log.WithFields(logrus.Fields{"host": host.Name, "id": host.ID.Short()}).Info("host left the cluster")
	return h.revoked.Refresh(ctx)
}
