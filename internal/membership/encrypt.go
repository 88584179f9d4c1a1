package membership

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/internal/wireguard"
	"github.com/particle-net/particle/topology"
)

// canEncrypt says why this host cannot be in a cluster with that encryption.
func (m *Membership) canEncrypt(e topology.Encryption) error {
	if e == topology.Plain || m.o.CanEncrypt == nil {
		return nil
	}
	return m.o.CanEncrypt()
}

// key is the file of this host's key for WireGuard.
func (p place) key() string { return filepath.Join(p.state, "wireguard.key") }

// secret gives the key that an encrypted cluster takes, which it draws if there is
// none. It is this host's for as long as it is in the cluster. Whether the kernel can
// use it is not asked: a host that is in such a cluster stays in it, and sends
// nothing in plain.
func (p place) secret(e topology.Encryption) (wireguard.Secret, error) {
	if e == topology.Plain {
		return wireguard.Secret{}, nil
	}
	text, err := os.ReadFile(p.key())
	if err == nil {
		secret, err := wireguard.ParseSecret(string(text))
		if err != nil {
			return secret, &fault.Error{Op: "read this host's key", On: p.key(), Err: err, Fix: "remove the file and restart the plugin: another key is drawn, which the other hosts get to know"}
		}
		return secret, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return wireguard.Secret{}, err
	}
	secret, err := wireguard.NewSecret()
	if err != nil {
		return secret, err
	}
	return secret, writeFile(p.key(), []byte(secret.Reveal()))
}

// Encryption tells how this host's cluster encrypts, and this host's key for it, also
// where the host cannot take part in the cluster: what it sends to others must not leave
// in plain for that. With an error the key is not known, and nothing is to be sent.
func (m *Membership) Encryption() (e topology.Encryption, _ wireguard.Secret, err error) {
	r, err := m.place.now().read()
	switch {
	case r != nil: // it comes before External
		e = r.Encryption
	case err == nil && m.o.External != nil:
		e = m.o.External.Encryption
	case err != nil: // only a host of an encrypted cluster has a key
		if _, err = os.Stat(m.place.key()); errors.Is(err, fs.ErrNotExist) {
			return topology.Plain, wireguard.Secret{}, nil
		}
		if e = topology.ByWireGuard; err != nil {
			return e, wireguard.Secret{}, err
		}
	}
	secret, err := m.place.secret(e)
	return e, secret, err
}

// forgetSecret has the next cluster see another key.
func (p place) forgetSecret() error {
	if err := os.Remove(p.key()); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
