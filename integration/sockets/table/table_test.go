package table

import (
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

func TestCasesAreApart(t *testing.T) {
	names := Names()
	if len(names) < 60 {
		t.Errorf("%d cases", len(names))
	}
	slices.Sort(names)
	if once := len(slices.Compact(names)); once != len(cases()) {
		t.Errorf("%d names for %d cases", once, len(cases()))
	}
	if last := firstPort + len(cases())*portsPerCase; last > 32768 {
		t.Errorf("ports up to %d meet those the kernel chooses", last)
	}
}

// What differs between containers does not show.
func TestShow(t *testing.T) {
	self := Party{netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("fd00::2")}
	peer := Party{netip.MustParseAddr("10.0.0.3"), netip.MustParseAddr("fd00::3")}
	tr := &trial{self: self, peer: peer, port: 9000}
	for _, c := range []struct {
		sa   unix.Sockaddr
		want string
	}{
		{&unix.SockaddrInet4{Addr: self.Four.As4(), Port: 9000}, "SELF:P0"},
		{&unix.SockaddrInet4{Addr: self.Four.As4(), Port: 40000}, "SELF:EPH"},
		{&unix.SockaddrInet6{Addr: self.Four.As16(), Port: 9001}, "::ffff:SELF:P1"},
		{&unix.SockaddrInet6{Addr: peer.Six.As16(), Port: 7001}, "[PEER6]:7001"},
		{&unix.SockaddrInet4{Port: 0}, "0.0.0.0:0"},
		{&unix.SockaddrInet6{Port: 81}, "[::]:81"},
		{nil, ""},
	} {
		if got := tr.show(c.sa); got != c.want {
			t.Errorf("%v is shown as %s, want %s", c.sa, got, c.want)
		}
	}
}

// After a failure nothing is done and noted any more, but for what may fail.
func TestFailureEndsACase(t *testing.T) {
	line, err := runOne(testCase{"x", func(t *trial) {
		t.try("socket of a strange family", func() { t.open(-1, 0, 0) })
		t.udp4().bind(t.in("SELF", 0)).named()
		t.tcp4().connect(nil).named()
	}}, 9000, Party{Four: netip.MustParseAddr("127.0.0.1")}, Party{})
	if err != nil {
		t.Fatal(err)
	}
	want := Line{Name: "x", Result: "connect", Errno: "EINVAL", Seen: []string{"socket of a strange family: EAFNOSUPPORT", "sockname SELF:EPH"}}
	if line.Result != want.Result || line.Errno != want.Errno || !slices.Equal(line.Seen, want.Seen) {
		t.Errorf("%+v, want %+v", line, want)
	}
}
