package attack

import (
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

func TestCasesAreApart(t *testing.T) {
	seen := map[string]bool{}
	for _, c := range Cases() {
		if seen[c.Name] {
			t.Errorf("two cases are called %s", c.Name)
		}
		seen[c.Name] = true
	}
}

// The victim's word decides, and only about the own token.
func TestTold(t *testing.T) {
	mistaken := func(peer netip.Addr) bool { return peer.String() != "10.0.0.2" }
	touches := []Touch{{"a", "10.0.0.9", "other"}, {"a", "::ffff:10.0.0.2", "mine"}}
	for _, c := range []struct {
		name    string
		v       verdict
		touches []Touch
		want    bool
	}{
		{"heard", verdict{token: "mine"}, touches, true},
		{"not heard", verdict{token: "lost"}, touches, false},
		{"known for who it is", verdict{token: "mine", judge: mistaken}, touches, false},
		{"taken for another", verdict{token: "mine", judge: mistaken}, append(touches, Touch{"b", "10.0.0.9", "mine"}), true},
	} {
		if got, detail := told(c.v, c.touches); got != c.want {
			t.Errorf("%s: %v (%s)", c.name, got, detail)
		}
	}
}

func TestUnlessForbidden(t *testing.T) {
	for err, success := range map[error]bool{nil: true, unix.EPERM: false, unix.EACCES: false, unix.EROFS: false, unix.EINVAL: true} {
		if got := unlessForbidden(err); got.success != success {
			t.Errorf("%v: %v", err, got.success)
		}
	}
}

// A header with its checksum sums up to all ones (RFC 1071).
func TestHeaderChecksum(t *testing.T) {
	h := header4(netip.MustParseAddr("192.168.0.1"), netip.MustParseAddr("192.168.0.199"), unix.IPPROTO_UDP, 95)
	var sum uint32
	for i := 0; i < len(h); i += 2 {
		sum += uint32(h[i])<<8 | uint32(h[i+1])
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	if sum != 0xffff {
		t.Errorf("the words of the header and its checksum sum up to %#x", sum)
	}
}
