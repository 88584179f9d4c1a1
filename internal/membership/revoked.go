package membership

import (
	"context"
	"crypto/x509"
	"errors"
	"os"
	"sync"
	"time"

	"github.com/particle-net/particle/control/enrol"
	"github.com/particle-net/particle/internal/fault"
)

// revocations is the list that the store's server on this host looks at. A store
// that has lost its contents does not make valid again what is on it, and is told of it:
// other servers come, which know nothing else.
type revocations struct {
	s *serving

	mu  sync.Mutex // guards what follows, and the file
	all map[string]enrol.Revoked
}

func readRevocations(s *serving) (*revocations, error) {
	v := &revocations{s: s, all: map[string]enrol.Revoked{}}
	raw, err := os.ReadFile(s.files.revoked())
	var list *x509.RevocationList
	if err == nil {
		list, err = x509.ParseRevocationList(raw)
	}
	if err != nil {
		return nil, &fault.Error{Op: "read the list of revoked certificates", On: s.files.revoked(), Err: err, Fix: "leave the cluster with --force and join again"}
	}
	for _, e := range list.RevokedCertificateEntries {
		serial := e.SerialNumber.Text(16)
		v.all[serial] = enrol.Revoked{Certificate: enrol.Certificate{Serial: serial}, At: e.RevocationTime}
	}
	return v, nil
}

// Has implements enrol.Revocations.
func (v *revocations) Has(serial string) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	_, ok := v.all[serial]
	return ok
}

// Refresh implements enrol.Revocations. New connections are checked against the
// list when it returns.
func (v *revocations) Refresh(ctx context.Context) error {
	register := v.s.client.Register()
	list, err := register.Revoked(ctx)
	if err != nil {
		return err
	}
	// A store that takes no writes is heard all the same.
	return errors.Join(register.Revoke(ctx, v.beyond(list)), v.take(list))
}

// take has the store's server on this host refuse what the store lists.
func (v *revocations) take(list []enrol.Revoked) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	var fresh []string
	cut := false
	for _, r := range list {
		if _, ok := v.all[r.Serial]; !ok {
			v.all[r.Serial] = r
			fresh = append(fresh, r.Serial)
			cut = cut || r.Cut
		}
	}
	if len(fresh) == 0 {
		return nil
	}
	all := make([]enrol.Revoked, 0, len(v.all))
	for _, r := range v.all {
		all = append(all, r)
	}
	der, err := v.s.authority.Revocations(all, time.Now())
	if err == nil {
		err = writeFile(v.s.files.revoked(), der)
	}
	if err != nil {
		for _, serial := range fresh {
			delete(v.all, serial) // the next attempt writes it
		}
		return err
	}
	if cut {
		v.s.store.Restart() // etcd looks at the list for new connections alone
	}
	return nil
}

// beyond gives what is on the list and not on the store's.
func (v *revocations) beyond(list []enrol.Revoked) (more []enrol.Revoked) {
	told := make(map[string]bool, len(list))
	for _, r := range list {
		told[r.Serial] = true
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	for serial, r := range v.all {
		if !told[serial] {
			more = append(more, r)
		}
	}
	return more
}
