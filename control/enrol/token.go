package enrol

import (
	"crypto/sha256"
	"encoding/base32"
	"encoding/hex"
	"strings"

	"github.com/particle-net/particle/internal/fault"
)

// Fingerprint is the SHA-256 of an authority's certificate in DER. It names a
// cluster.
type Fingerprint [sha256.Size]byte

// String gives 64 lower-case hex digits.
func (f Fingerprint) String() string { return hex.EncodeToString(f[:]) }

// MarshalText writes what String gives.
func (f Fingerprint) MarshalText() ([]byte, error) { return []byte(f.String()), nil }

// UnmarshalText reads what MarshalText writes.
func (f *Fingerprint) UnmarshalText(text []byte) error {
	raw, err := hex.DecodeString(string(text))
	if err == nil && len(raw) != len(f) {
		err = hex.ErrLength
	}
	if err != nil {
		return err
	}
	copy(f[:], raw)
	return nil
}

// Token lets a host into a cluster. It is a secret as a whole.
type Token struct {
	Cluster Fingerprint
	Secret  string // 26 characters
}

const (
	tokenPrefix  = "particle-1-"
	secretBytes  = 16
	secretLength = 26 // in base 32
)

// secretText writes a secret in characters that survive any case, in a word
// that a double click selects.
func secretText(raw []byte) string {
	return strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(raw))
}

// String gives the token as people pass it on.
func (t Token) String() string { return tokenPrefix + t.Cluster.String() + "-" + t.Secret }

// ParseToken reads a token; space around it does not matter. The error never
// repeats the text.
func ParseToken(text string) (Token, error) {
	bad := fault.New("read token", "", "it is not of the form particle-1-HASH-SECRET",
		"copy it whole from `particle cluster token` on a host that serves the cluster")
	rest, ok := strings.CutPrefix(strings.ToLower(strings.TrimSpace(text)), tokenPrefix)
	if !ok {
		return Token{}, bad
	}
	var t Token
	var hash string
	hash, t.Secret, ok = strings.Cut(rest, "-")
	raw, err := base32.StdEncoding.WithPadding(base32.NoPadding).DecodeString(strings.ToUpper(t.Secret))
	if !ok || t.Cluster.UnmarshalText([]byte(hash)) != nil || err != nil || len(raw) != secretBytes || len(t.Secret) != secretLength {
		return Token{}, bad
	}
	return t, nil
}
