// Package wireguard is a host's own end of the tunnels to the others. What all
// hosts know of each other is in package topology, which particle-runtime loads
// with each container, and which therefore does not compute keys.
package wireguard

import (
	"crypto/ecdh"
	"crypto/rand"
	"encoding/base64"
	"net/netip"

	"github.com/particle-net/particle/topology"
)

// End is this host's end of the tunnels to all others.
type End struct {
	Address netip.Addr // of topology.WireGuardRange
	Secret  Secret
	Port    uint16 // UDP
	MTU     int    // bytes
}

// Secret is a private key. It does not print.
type Secret struct{ key *ecdh.PrivateKey }

// NewSecret draws one.
func NewSecret() (Secret, error) {
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	return Secret{key}, err
}

// ParseSecret reads what Reveal gave.
func ParseSecret(text string) (Secret, error) {
	var raw topology.WireGuardKey // it is written alike
	if err := raw.UnmarshalText([]byte(text)); err != nil {
		return Secret{}, err
	}
	key, err := ecdh.X25519().NewPrivateKey(raw[:])
	return Secret{key}, err
}

// String keeps the key out of logs.
func (s Secret) String() string { return "(secret)" }

// GoString does likewise.
func (s Secret) GoString() string { return s.String() }

// Valid tells a key from none.
func (s Secret) Valid() bool { return s.key != nil }

// Reveal is the key as `wg genkey` prints it.
func (s Secret) Reveal() string { return base64.StdEncoding.EncodeToString(s.key.Bytes()) }

// Bytes are the key itself.
func (s Secret) Bytes() [32]byte { return [32]byte(s.key.Bytes()) }

// Public is the key that others know the host by.
func (s Secret) Public() topology.WireGuardKey {
	return topology.WireGuardKey(s.key.PublicKey().Bytes())
}
