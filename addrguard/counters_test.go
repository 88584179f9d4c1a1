package addrguard_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/addrguard"
)

// Each verdict is counted once for each time that it is given, for the container and
// for the host.
func TestCounters(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	network := h.network(1, v4|v6)
	a, b := h.box(network, 1, v4|v6), h.box(network, 2, v4|v6)
	before := a.counters(h)
	expect(t, "counters of one that did nothing", before, addrguard.Counters{})

	server := a.listening("[::]:80")
	b.client6(t, "[fd00:77::1]:80", server)
	forged := a.socket(unix.AF_INET, udp)
	// Different numbers, so that none can stand for another.
	for n := range 5 {
		if n >= 1 {
			expect(t, "a raw socket", a.do(Call{Name: "socket", Family: unix.AF_INET, Type: unix.SOCK_RAW, Proto: unix.IPPROTO_UDP}).Err, unix.EPERM)
		}
		if n >= 2 {
			expect(t, "a forged source", forged.do(Call{Name: "send", FD: forged.fd, Addr: "10.77.0.2:9", Source: "10.77.0.2", Text: "x"}).Err, unix.EADDRNOTAVAIL)
		}
		if n >= 3 {
			expect(t, "connect to a neighbour's loopback", a.socket(unix.AF_INET, tcp).connect("127.0.2.1:80"), unix.ENETUNREACH)
		}
		_, err := a.at(tcp, "10.77.0.2:0")
		expect(t, "bind a neighbour's address", err, unix.EADDRNOTAVAIL)
	}

	want := addrguard.Counters{BindsRewritten: 1, SocketsDenied: 4, SourcesDenied: 3, ConnectsDenied: 2, BindsDenied: 5}
	if devicesSince(t) {
		want.Steered = 1
	}
	if diff := cmp.Diff(want, a.counters(h)); diff != "" {
		t.Errorf("counters (-want +got):\n%s", diff)
	}
	total, err := h.Totals()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, total); diff != "" {
		t.Errorf("totals (-want +got):\n%s", diff)
	}
}

func (b *box) counters(h *host) addrguard.Counters {
	b.t.Helper()
	c, err := h.Counters(b.id)
	if err != nil {
		b.t.Fatal(err)
	}
	return c
}

// client6 connects to a server over IPv6, where the kernel gives it that.
func (b *box) client6(t *testing.T, to string, server sock) {
	t.Helper()
	if !devicesSince(t) {
		return
	}
	expect(t, "connect to "+to, b.socket(unix.AF_INET6, tcp).connect(to), 0)
	server.accept()
}
