package topology

import (
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"net/netip"
)

// Encryption is how a cluster protects what its hosts send each other for
// containers.
type Encryption string

const (
	// Plain is no encryption.
	Plain Encryption = ""
	// ByWireGuard is that of the kernel's WireGuard.
	ByWireGuard Encryption = "wireguard"
)

// ParseEncryption accepts a name, or nothing for Plain.
func ParseEncryption(s string) (Encryption, error) {
	if e := Encryption(s); e == Plain || e == ByWireGuard {
		return e, nil
	}
	return Plain, fmt.Errorf("encryption %q is not %s", s, ByWireGuard)
}

// WireGuardRange is where the hosts of an encrypted cluster have their tunnel
// addresses: a unique local prefix whose global id was drawn at random (RFC 4193
// section 3.2). No link but WireGuard's carries it, so that a packet to one of its
// addresses leaves a host encrypted or not at all.
var WireGuardRange = netip.MustParsePrefix("fd91:9a00:0bcf::/48")

// WireGuardAddress is a host's in an encrypted cluster: the first 80 bits of its
// id, which are random, behind the range's prefix.
func WireGuardAddress(id NodeID) (netip.Addr, error) {
	addr := WireGuardRange.Addr().As16()
	if len(id) != 32 {
		return netip.Addr{}, fmt.Errorf("host id %q is not 32 lower-case hex digits", id)
	}
	_, err := hex.Decode(addr[6:], []byte(id[:20]))
	return netip.AddrFrom16(addr), err
}

// WireGuardKey is a public key.
type WireGuardKey [32]byte

// String is what `wg show` prints.
func (k WireGuardKey) String() string { return base64.StdEncoding.EncodeToString(k[:]) }

// MarshalText implements encoding.TextMarshaler.
func (k WireGuardKey) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (k *WireGuardKey) UnmarshalText(text []byte) error {
	raw, err := base64.StdEncoding.Strict().DecodeString(string(text))
	if err != nil || len(raw) != len(k) {
		return fmt.Errorf("a WireGuard key is 32 bytes in base64")
	}
	*k = WireGuardKey(raw)
	return nil
}

// WireGuardPeer is another host's end.
type WireGuardPeer struct {
	Address  netip.Addr // of WireGuardRange
	Key      WireGuardKey
	Endpoint netip.AddrPort // where its encrypted packets go to; invalid if it is not known
}

// Encrypted is what VXLAN travels over if WireGuard goes between, whose end has
// the address.
func (u Underlay) Encrypted(address netip.Addr) Underlay {
	// Outer IP header, UDP, and WireGuard's header and authentication tag.
	overhead := 20 + 8 + 32
	if u.VTEP.Is6() {
		overhead += 20
	}
	return Underlay{VTEP: address, MTU: u.MTU - overhead, Port: u.Port}
}
