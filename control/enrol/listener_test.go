package enrol

import (
	"net/netip"
	"testing"
)

// The hosts of a link have addresses of one network, by IPv6, and may all ask at the same
// moment. A stranger there, who can have any of its addresses, leaves room for other networks.
func TestManyHostsOfOneLink(t *testing.T) {
	b := Bound(nil).(*bounded)
	link := netip.MustParseAddr("2001:db8::1")
	var in []netip.Addr
	for from := link; len(in) < 2*maxConns; from = from.Next() {
		if !b.enter(from) {
			break
		}
		in = append(in, from)
	}
	if len(in) != maxConns/2 {
		t.Errorf("%d hosts of one link are heard, want %d", len(in), maxConns/2)
	}
	each := 0
	for other := netip.MustParseAddr("2001:db8:0:1::1"); b.enter(other); each++ {
		in = append(in, other)
	}
	if each != maxConnsEach {
		t.Errorf("a host of another link has %d connections, want %d", each, maxConnsEach)
	}
	for _, from := range in {
		b.leave(from)
	}
	if b.all != 0 || len(b.open) != 0 || len(b.near) != 0 {
		t.Errorf("left: %+v", b)
	}
}
