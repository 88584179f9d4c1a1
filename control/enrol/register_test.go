package enrol

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"
)

// many gives the host so many certificates, as if it had renewed again and again.
func (d *desk) many(n int) {
	d.t.Helper()
	h := Host{ID: member, Name: said.Name, Address: said.Address, Port: said.Port}
	for i := range n {
		h.Certificates = append(h.Certificates, Certificate{Serial: fmt.Sprintf("%x", 1+i), NotAfter: time.Now().Add(day)})
	}
	if _, err := d.register.Enter(d.t.Context(), h); err != nil {
		d.t.Fatal(err)
	}
}

// A host is removed, and enters anew, however many certificates it has. Connections end
// when the last are revoked, and not before.
func TestManyCertificatesAreRevoked(t *testing.T) {
	for _, n := range []int{1, atOnce, atOnce + 1, 3 * atOnce, 3*atOnce + 1} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			d := newDesk(t)
			d.many(n)
			if err := d.register.Remove(t.Context(), member, true); err != nil {
				t.Fatal(err)
			}
			if _, err := d.register.Host(t.Context(), member); !errors.Is(err, ErrNotEnrolled) {
				t.Errorf("the host's entry: %v", err)
			}
			list, err := d.register.Revoked(t.Context())
			if err != nil || len(list) != n {
				t.Errorf("%d are revoked of %d: %v", len(list), n, err)
			}
			cut := slices.DeleteFunc(list, func(r Revoked) bool { return !r.Cut })
			latest := slices.ContainsFunc(cut, func(r Revoked) bool { return r.Serial == fmt.Sprintf("%x", n) })
			if want := (n-1)%atOnce + 1; len(cut) != want || !latest {
				t.Errorf("connections end with %d, and not with the %d latest", len(cut), want)
			}
		})
	}
	d := newDesk(t)
	d.many(3 * atOnce)
	h, err := d.register.Host(t.Context(), member)
	h.Certificates = []Certificate{CertificateOf(d.issue(0))}
	if _, again := d.register.Enter(t.Context(), h); err != nil || again != nil {
		t.Fatal(err, again)
	}
	if list, err := d.register.Revoked(t.Context()); err != nil || len(list) != 3*atOnce || len(d.certificates()) != 1 {
		t.Errorf("%d are revoked of %d, the host has %d: %v", len(list), 3*atOnce, len(d.certificates()), err)
	}
}

// Two servers give the same host a certificate, of what each has read: the later one may
// not revoke what the earlier one gave.
func TestEntryThatAnotherServerChanged(t *testing.T) {
	d := newDesk(t)
	d.many(1)
	read, err := d.register.Host(t.Context(), member)
	if err != nil {
		t.Fatal(err)
	}
	first, second := read, read
	first.Certificates = append(slices.Clone(read.Certificates), CertificateOf(d.issue(0)))
	second.Certificates = append(slices.Clone(read.Certificates), CertificateOf(d.issue(0)))
	first, err = d.register.Enter(t.Context(), first)
	if err != nil {
		t.Fatal(err)
	}
	for name, late := range map[string]Host{"read before": second, "never read": {ID: member, Name: said.Name}} {
		if _, err := d.register.Enter(t.Context(), late); !errors.Is(err, ErrChanged) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if list, err := d.register.Revoked(t.Context()); err != nil || len(list) > 0 || len(d.certificates()) != 2 {
		t.Errorf("%d are revoked, the host has %d: %v", len(list), len(d.certificates()), err)
	}
	first.Version = "2"
	if _, err := d.register.Enter(t.Context(), first); err != nil {
		t.Errorf("what was entered, once more: %v", err)
	}
}
