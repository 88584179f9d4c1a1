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
	// anew: the file was damaged, and is as good as none until the store has told.
	anew bool
}

// readRevocations reads the file. Without it nobody could ask the store on this host, which
// has what was in it: to give up the cluster's only server for that would cost far more than
// that who was removed is heard for a moment.
func readRevocations(s *serving) (*revocations, error) {
	v := &revocations{s: s, all: map[string]enrol.Revoked{}}
	raw, err := os.ReadFile(s.files.revoked())
	var list *x509.RevocationList
	if err == nil {
		list, err = x509.ParseRevocationList(raw)
	}
	if err != nil {
		s.log.WithError(err).WithField("file", s.files.revoked()).Error("the list of revoked certificates is damaged; it is made anew of what the store has")
		v.anew = true
		if failed := v.write(); failed != nil {
			return nil, &fault.Error{Op: "read the list of revoked certificates", On: s.files.revoked(), Err: errors.Join(err, failed),
				Fix: "make the directory writable, or room on its disk, and restart the plugin"}
		}
		return v, nil
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
	cut := v.anew // whoever has come meanwhile
	for _, r := range list {
		if _, ok := v.all[r.Serial]; !ok {
			v.all[r.Serial] = r
			fresh = append(fresh, r.Serial)
			cut = cut || r.Cut
		}
	}
	if len(fresh) == 0 {
		v.anew = false
		return nil
	}
	if err := v.write(); err != nil {
		for _, serial := range fresh {
			delete(v.all, serial) // the next attempt writes it
		}
		return err
	}
	v.anew = false
	if cut {
		v.s.store.Restart() // etcd looks at the list for new connections alone
	}
	return nil
}

// write puts all on disk. v.mu is held.
func (v *revocations) write() error {
	all := make([]enrol.Revoked, 0, len(v.all))
	for _, r := range v.all {
		all = append(all, r)
	}
	der, err := v.s.authority.Revocations(all, time.Now())
	if err != nil {
		return err
	}
	return writeFile(v.s.files.revoked(), der)
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
