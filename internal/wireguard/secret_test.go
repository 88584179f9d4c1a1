package wireguard_test

import (
	"fmt"
	"testing"

	"github.com/particle-net/particle/internal/wireguard"
	"github.com/particle-net/particle/topology"
)

func TestKeys(t *testing.T) {
	secret, err := wireguard.NewSecret()
	if err != nil {
		t.Fatal(err)
	}
	again, err := wireguard.ParseSecret(secret.Reveal())
	if err != nil || again.Public() != secret.Public() || again.Bytes() != secret.Bytes() {
		t.Errorf("the key is another when it was written and read: %v", err)
	}
	for _, text := range []string{fmt.Sprint(secret), fmt.Sprintf("%+v", secret), fmt.Sprintf("%#v", secret), fmt.Sprint(&secret)} {
		if text != "(secret)" {
			t.Errorf("a private key prints %s", text)
		}
	}
	// RFC 7748 section 6.1
	alice, err := wireguard.ParseSecret("dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=")
	if want := "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo="; err != nil || alice.Public().String() != want {
		t.Errorf("public key %s, %v, want %s", alice.Public(), err, want)
	}
	var key topology.WireGuardKey
	if err := key.UnmarshalText([]byte(alice.Public().String())); err != nil || key != alice.Public() {
		t.Errorf("public key %s, %v", key, err)
	}
	for _, bad := range []string{"", "AAAA", alice.Public().String() + "AAAA", "!"} {
		if err := key.UnmarshalText([]byte(bad)); err == nil {
			t.Errorf("%q is taken for a key", bad)
		}
		if _, err := wireguard.ParseSecret(bad); err == nil {
			t.Errorf("%q is taken for a private key", bad)
		}
	}
}
