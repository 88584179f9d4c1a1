package enrol

import (
	"errors"
	"strings"
	"testing"
	"time"
)

// A host that asks while it is removed stays removed: it is not taken for one that the
// store has lost, and is given no certificate.
func TestRemovedWhileItAsks(t *testing.T) {
	for path, age := range map[string]time.Duration{pathState: 0, pathRenew: hostLife - day} {
		t.Run(path, func(t *testing.T) {
			d := newDesk(t)
			if _, err := d.join(); err != nil {
				t.Fatal(err)
			}
			shown := d.issue(age)
			h, err := d.register.Host(t.Context(), member)
			if err != nil {
				t.Fatal(err)
			}
			h.Certificates = []Certificate{CertificateOf(shown)}
			if _, err := d.register.Enter(t.Context(), h); err != nil {
				t.Fatal(err)
			}
			d.register.kv.KV = &between{KV: d.register.kv.KV, key: revokedPrefix, happen: func() {
				if err := d.register.Remove(t.Context(), member, true); err != nil {
					t.Error(err)
				}
			}}
			// That it is told who serves, which it knew a moment before, is no harm.
			if _, err := d.answer(path, memberRequest{Hello: said, Request: mustRequest(t)}, shown); path == pathRenew && !errors.Is(err, ErrChanged) {
				t.Errorf("the removed host was answered: %v", err)
			}
			if h, err := d.register.Host(t.Context(), member); !errors.Is(err, ErrNotEnrolled) {
				t.Errorf("the removed host is back: %+v, %v", h, err)
			}
			if err := d.works(shown); err == nil || !strings.Contains(err.Error(), ErrRemoved.Error()) {
				t.Errorf("when it asks again: %v", err)
			}
		})
	}
}
