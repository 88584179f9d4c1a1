package enrol

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/particle-net/particle/internal/fault"
)

const (
	// renewAt is the part of a certificate's life that is left when it is renewed.
	renewAt = 3
	// renewalPause is between two certificates of one host. A host that cannot keep what
	// it is given asks again and again, and all stay in the register for as long as they
	// are good; one whose answer was lost has months left, and can wait.
	renewalPause = time.Hour
)

// ErrTooEarly is the cause when a host asks for another certificate and needs none yet.
var ErrTooEarly = errors.New("it is too early for another certificate")

// Due tells whether a certificate is to be renewed.
func (c Certificate) Due(now time.Time) bool {
	return c.NotAfter.Sub(now) <= (hostLife+backdate)/renewAt
}

// issued is when a certificate was given, by the clock of the server that gave it.
func (c Certificate) issued() time.Time { return c.NotAfter.Add(-hostLife) }

// mayRenew says why a host is given no other certificate in place of the one it shows,
// which the register has.
func mayRenew(h Host, shown Certificate, now time.Time) error {
	const soon = "the host asks again by itself within two hours; if it goes on, see whether it can write to /var/lib/particle"
	latest := h.Certificates[len(h.Certificates)-1]
	switch {
	case !shown.Due(now.Add(backdate)): // a host whose clock is a little ahead asks a little early
		return tooEarly(h, fmt.Sprintf("this one is good until %s, and the server's clock says %s", stamp(shown.NotAfter), stamp(now)),
			"compare the clocks of both hosts (`date -u`) and set the wrong one")
	case now.Sub(latest.issued()).Abs() < renewalPause: // ahead: another server's clock
		return tooEarly(h, "the host was given its latest at "+stamp(latest.issued()), soon)
	}
	return nil
}

func tooEarly(h Host, why, fix string) error {
	return &fault.Error{Op: "renew certificate", On: h.Name, Err: fmt.Errorf("%w: %s", ErrTooEarly, why), Fix: fix}
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// renewal is what a host asks for that has a certificate.
type renewal struct {
	host    Host // as the register has it
	shown   Certificate
	request []byte
}

func (h *Handler) renew(ctx context.Context, register *Register, r renewal) (*Admission, error) {
	a, err := h.authority.admit(r, h.now())
	switch {
	case errors.Is(err, ErrTooEarly):
		return nil, &denied{http.StatusTooEarly, err}
	case err != nil:
		return nil, &denied{http.StatusBadRequest, err}
	}
	// Before the register notes a certificate that would not be handed out.
	if a.Servers, err = h.store.Servers(ctx); err != nil {
		return nil, err
	}
	a.Host, err = register.Enter(ctx, a.Host)
	return a, err
}

// admit gives the host another certificate, if it may have one. The register is to note
// it.
func (a *Authority) admit(r renewal, now time.Time) (*Admission, error) {
	if err := mayRenew(r.host, r.shown, now); err != nil {
		return nil, err
	}
	certificate, cert, err := a.Issue(r.request, r.host.Subject(), now)
	if err != nil {
		return nil, err
	}
	r.host.Certificates = append(r.host.Certificates, CertificateOf(cert))
	return &Admission{Certificate: certificate, Host: r.host}, nil
}

// Renew gives a server a new certificate, which it can sign itself. The host's one
// certificate is that in force. Cause: ErrTooEarly.
func (a *Authority) Renew(ctx context.Context, register *Register, h Host, request []byte) (*Admission, error) {
	shown := h.Certificates[0]
	known, err := register.Host(ctx, h.ID)
	if err != nil && !errors.Is(err, ErrNotEnrolled) {
		return nil, err
	}
	if err == nil {
		h = known
	}
	if !slices.ContainsFunc(h.Certificates, shown.same) {
		h.Certificates = append(h.Certificates, shown)
	}
	admission, err := a.admit(renewal{h, shown, request}, time.Now())
	if err != nil {
		return nil, err
	}
	admission.Host, err = register.Enter(ctx, admission.Host)
	return admission, err
}
