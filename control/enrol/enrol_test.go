package enrol

import (
	"crypto/x509"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"
)

func TestToken(t *testing.T) {
	a, err := NewAuthority(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	token, err := a.Token(TokenInfo{Nonce: []byte("one")})
	if err != nil {
		t.Fatal(err)
	}
	again, err := ParseToken("  " + strings.ToUpper(token.String()) + "\n")
	if err != nil || again != token || token.Cluster != a.Fingerprint() {
		t.Errorf("%v is read as %v, %v", token, again, err)
	}
	key, err := a.Key()
	if err != nil {
		t.Fatal(err)
	}
	same, err := ReadAuthority(a.Certificate(), key)
	if err != nil {
		t.Fatal(err)
	}
	for nonce, equal := range map[string]bool{"one": true, "two": false} {
		if other, err := same.Token(TokenInfo{Nonce: []byte(nonce)}); err != nil || (other == token) != equal {
			t.Errorf("nonce %s: %v, %v", nonce, other, err)
		}
	}
	text := token.String()
	for _, bad := range []string{"", "particle-1-", text[:len(text)-1], text + "a", strings.Replace(text, "-1-", "-2-", 1), text[:20] + text[22:], text[:len(text)-1] + "!"} {
		if _, err := ParseToken(bad); err == nil || len(bad) > 20 && strings.Contains(err.Error(), bad) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if _, err := ReadAuthority(a.Certificate(), mustKey(t)); err == nil {
		t.Error("the key of another is taken")
	}
}

func mustKey(t *testing.T) []byte {
	t.Helper()
	key, _, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func FuzzParseToken(f *testing.F) {
	f.Add("particle-1-" + strings.Repeat("0", 64) + "-" + strings.Repeat("a", 26))
	f.Fuzz(func(t *testing.T, text string) {
		token, err := ParseToken(text)
		if err != nil {
			return
		}
		if again, err := ParseToken(token.String()); err != nil || again != token {
			t.Errorf("%q: %v, %v", text, again, err)
		}
	})
}

// Only a server's certificate passes for a server, at the time it is good for.
func TestVerify(t *testing.T) {
	now := time.Now()
	a, err := NewAuthority(now)
	if err != nil {
		t.Fatal(err)
	}
	other, err := NewAuthority(now)
	if err != nil {
		t.Fatal(err)
	}
	_, request, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	chain := func(by *Authority, server bool, at time.Time) []*x509.Certificate {
		_, cert, err := by.Issue(request, Subject{Node: "n", Address: netip.MustParseAddr("192.0.2.1"), Server: server}, at)
		if err != nil {
			t.Fatal(err)
		}
		return []*x509.Certificate{cert, a.cert}
	}
	for name, c := range map[string]struct {
		chain []*x509.Certificate
		good  bool
	}{
		"a server":                      {chain(a, true, now), true},
		"a server whose clock is ahead": {chain(a, true, now.Add(23*time.Hour)), true},
		"far ahead":                     {chain(a, true, now.Add(25*time.Hour)), false},
		"expired":                       {chain(a, true, now.Add(-366*24*time.Hour)), false},
		"a member":                      {chain(a, false, now), false},
		"another's":                     {chain(other, true, now), false},
		"without the authority":         {chain(a, true, now)[:1], false},
	} {
		if _, err := verify(c.chain, a.Fingerprint()); (err == nil) != c.good {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := verify(chain(a, true, now), other.Fingerprint()); !errors.Is(err, errOtherCluster) {
		t.Error(err)
	}
}

// The clock was years ahead when the cluster was made, and has been set right since: what
// its authority signs from then on is good. A clock that was never set makes none.
func TestAuthorityOfAnotherTime(t *testing.T) {
	a, err := NewAuthority(time.Now().Add(2 * hostLife))
	if err != nil {
		t.Fatal(err)
	}
	_, cert, err := a.Issue(mustRequest(t), Subject{Node: member, Name: "h1", Address: said.Address, Server: true}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := verify([]*x509.Certificate{cert, a.cert}, a.Fingerprint()); err != nil {
		t.Error(err)
	}
	if _, err := NewAuthority(time.Unix(9, 0)); err == nil || !strings.Contains(err.Error(), "this host's clock says 1970-01-01T00:00:09Z") {
		t.Errorf("an authority of 1970: %v", err)
	}
}

func TestSkew(t *testing.T) {
	now := time.Now()
	for d, text := range map[time.Duration]string{time.Minute: "", -4 * time.Minute: "", 10 * time.Minute: "10m0s ahead of", -6 * time.Minute: "6m0s behind"} {
		err := Skew(now, now.Add(d))
		if (err == nil) != (text == "") || err != nil && !strings.Contains(err.Error(), text) {
			t.Errorf("%v: %v", d, err)
		}
	}
}

func TestLimiter(t *testing.T) {
	l := newLimiter()
	now := time.Now()
	one, near, far := netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2"), netip.MustParseAddr("2001:db8:1::1")
	for range maxFailures {
		if !l.allow(one, now) {
			t.Fatal("refused too early")
		}
		l.failed(one, now)
	}
	if l.allow(one, now) || l.allow(near, now) || !l.allow(far, now) || !l.allow(one, now.Add(failureSpan+time.Second)) {
		t.Error("it is the wrong ones that are slowed down")
	}
}
