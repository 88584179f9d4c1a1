package dns_test

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	particledns "github.com/particle-net/particle/dns"
)

func TestParseResolvConf(t *testing.T) {
	addrs := func(texts ...string) []netip.Addr {
		var out []netip.Addr
		for _, s := range texts {
			out = append(out, netip.MustParseAddr(s))
		}
		return out
	}
	for _, c := range []struct {
		name, text string
		want       particledns.Config
	}{
		{"empty", "", particledns.Config{}},
		{"systemd-resolved", "# stub\nnameserver 127.0.0.53\noptions edns0 trust-ad\nsearch lan\n",
			particledns.Config{Servers: addrs("127.0.0.53"), Search: []string{"lan"}, Options: []string{"edns0", "trust-ad"}}},
		{"order, families and zone", "nameserver 192.0.2.1\nnameserver 2001:db8::1\nnameserver fe80::1%eth0",
			particledns.Config{Servers: addrs("192.0.2.1", "2001:db8::1", "fe80::1%eth0")}},
		{"blanks, tabs and carriage returns", "\tnameserver \t192.0.2.1 \r\n  search  a\tb \r\n",
			particledns.Config{Servers: addrs("192.0.2.1"), Search: []string{"a", "b"}}},
		{"comments", "; nameserver 192.0.2.9\n#nameserver 192.0.2.8\nnameserver 192.0.2.1 # main\nsearch a ; b\n",
			particledns.Config{Servers: addrs("192.0.2.1"), Search: []string{"a"}}},
		{"the last of search and domain counts", "search a b\ndomain c\n", particledns.Config{Search: []string{"c"}}},
		{"search after domain", "domain c d\nsearch a b\n", particledns.Config{Search: []string{"a", "b"}}},
		{"options add up", "options ndots:2\noptions rotate timeout:1", particledns.Config{Options: []string{"ndots:2", "rotate", "timeout:1"}}},
		{"IPv4 written as IPv6", "nameserver ::ffff:127.0.0.1", particledns.Config{Servers: addrs("127.0.0.1")}},
		{"not understood", "nameserver\nnameserver dns.example.org\nnameserver 192.0.2.256\nnameserver 1.2.3.4:53\nsortlist 10.0.0.0\nNAMESERVER 192.0.2.1\nnameserver192.0.2.1\nsearch\n",
			particledns.Config{}},
		{"binary", "\x00\xff\x00nameserver 1.1.1.1\x00\nnameserver 192.0.2.1\n\xfe", particledns.Config{Servers: addrs("192.0.2.1")}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := particledns.ParseResolvConf(strings.NewReader(c.text))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, got, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestParseResolvConfErrors(t *testing.T) {
	broken := errors.New("disk is broken")
	if _, err := particledns.ParseResolvConf(iotest.ErrReader(broken)); !errors.Is(err, broken) {
		t.Errorf("reader's error: %v", err)
	}
	if _, err := particledns.ParseResolvConf(strings.NewReader(strings.Repeat("x", 1<<20+1))); !errors.Is(err, particledns.ErrTooLarge) {
		t.Errorf("1 MiB and a byte: %v", err)
	}
	if _, err := particledns.ParseResolvConf(strings.NewReader(strings.Repeat("x", 1<<20))); err != nil {
		t.Errorf("1 MiB: %v", err)
	}
}

func TestLoopbackAndReachable(t *testing.T) {
	for addr, hostOnly := range map[string]bool{
		"127.0.0.53": true, "127.255.0.1": true, "::1": true, "0.0.0.0": true, "::": true,
		"::ffff:127.0.0.1": true, "fe80::1%eth0": true, "fe80::1": true,
		"192.0.2.1": false, "10.0.0.2": false, "169.254.169.253": false, "2001:db8::1": false, "fd00::53": false,
	} {
		c, err := particledns.ParseResolvConf(strings.NewReader("nameserver " + addr))
		if err != nil {
			t.Fatal(err)
		}
		if len(c.Loopback()) == 1 != hostOnly || len(c.Reachable()) == 1 == hostOnly {
			t.Errorf("%s: loopback %v, reachable %v", addr, c.Loopback(), c.Reachable())
		}
	}
}

func FuzzParseResolvConf(f *testing.F) {
	f.Add("# stub\nnameserver 127.0.0.53\nnameserver fe80::1%eth0\noptions edns0 trust-ad\nsearch lan corp\ndomain x\n")
	f.Add("nameserver ::ffff:1.2.3.4 ; x\r\n\x00\xff")
	f.Fuzz(func(t *testing.T, text string) {
		c, err := particledns.ParseResolvConf(strings.NewReader(text))
		if err != nil {
			return
		}
		if len(c.Loopback())+len(c.Reachable()) != len(c.Servers) {
			t.Errorf("loopback %v and reachable %v do not make %v", c.Loopback(), c.Reachable(), c.Servers)
		}
		// What was understood reads the same when written out again.
		var b strings.Builder
		for _, s := range c.Servers {
			if !s.IsValid() || s.Is4In6() {
				t.Errorf("server %q", s)
			}
			fmt.Fprintln(&b, "nameserver", s)
		}
		fmt.Fprintln(&b, "search", strings.Join(c.Search, " "))
		fmt.Fprintln(&b, "options", strings.Join(c.Options, " "))
		again, err := particledns.ParseResolvConf(strings.NewReader(b.String()))
		if err != nil || !slices.Equal(again.Servers, c.Servers) || !slices.Equal(again.Search, c.Search) || !slices.Equal(again.Options, c.Options) {
			t.Errorf("%q gives %v, written out and read again %v, %v", text, c, again, err)
		}
	})
}
