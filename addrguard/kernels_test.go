package addrguard_test

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/internal/netnstest"
)

// The guard needs Linux 6.1. Later ones give it programs on devices and hooks of
// unix sockets; what docs/limits.md says of those before is tested there.
func devicesSince(t testing.TB) bool { t.Helper(); return netnstest.Since(t, 6, 6) }
func unixSince(t testing.TB) bool    { t.Helper(); return netnstest.Since(t, 6, 7) }

// checkLacks fails a guard that does without more than its kernel lacks, or that
// does not say so; devices tells whether there are programs on them.
func checkLacks(t testing.TB, lacks []error, devices bool) {
	t.Helper()
	want := map[string]bool{}
	if !devices {
		want["use Linux 6.6 or later"] = true
	}
	if !unixSince(t) {
		want["use Linux 6.7 or later"] = true
	}
	for _, err := range lacks {
		var f *fault.Error
		if !errors.As(err, &f) || !want[f.Fix] {
			t.Error(err)
			continue
		}
		delete(want, f.Fix)
	}
	for fix := range want {
		t.Errorf("no word of what is lacking: %s", fix)
	}
}

// unmet tests what becomes of a client of such a server where no program on a device
// hands it what comes for its IPv6 address: "Servers for both families on the wildcard
// have IPv4 alone." It reports false where the client is to be served.
func unmet(t testing.TB, from *box, addr string) bool {
	t.Helper()
	ip := netip.MustParseAddrPort(addr).Addr()
	if devicesSince(t) || !ip.Is6() || ip.Is4In6() {
		return false
	}
	expect(t, "connect to "+addr+" of a server for both families", from.socket(unix.AF_INET6, tcp).connect(addr), unix.ECONNREFUSED)
	return true
}

// unanswered tests the same of a datagram, be it to a server for both families or
// the answer to such a socket: the kernel says that nobody is there.
func unanswered(t testing.TB, client sock, addr string) {
	t.Helper()
	expect(t, "connect to "+addr, client.connect(addr), 0)
	expect(t, "send to "+addr, client.send("", "x"), 0)
	eventually(t, "the answer that nobody is there", func() bool { return client.send("", "x") == unix.ECONNREFUSED })
}

// echoed tests that an echo request of a socket that is not connected is answered.
// Without programs on devices its source is wrong: "Pings of other addresses than
// 127.0.0.1 and ::1 fail or have no answer."
func echoed(t testing.TB, from *box, family int, to string) {
	t.Helper()
	who, err := pinger(from, family).echo(join(to, 0))
	if devicesSince(t) {
		expect(t, "ping "+to, fmt.Sprint(who, err), fmt.Sprint(to, unix.Errno(0)))
	} else if err != unix.EPERM && err != unix.ETIMEDOUT {
		t.Errorf("ping %s: %s %v, want no answer", to, who, err)
	}
}
