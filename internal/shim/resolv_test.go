package shim

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/particle-net/particle/internal/runtimeapi"
)

func TestTenantResolvConf(t *testing.T) {
	resolver := netip.MustParseAddr("127.0.0.11")
	const local = "nameserver 127.0.0.53\n"
	for _, c := range []struct {
		name, docker, host string
		chosen             []string
		internal           bool
		resolver           netip.Addr
		want               string
	}{
		{"comments go, order stays", "# by Docker\nsearch a b\nnameserver 10.0.0.2\n;x\nnameserver 10.0.0.1\noptions ndots:0 edns0\n", "", nil, false, resolver,
			"nameserver 10.0.0.2\nnameserver 10.0.0.1\nsearch a b\noptions ndots:0 edns0\n"},
		{"repetitions go", "nameserver 10.0.0.2\nnameserver\t10.0.0.2 \noptions a\noptions  a\n", "", nil, false, resolver, "nameserver 10.0.0.2\noptions a\n"},
		{"loopback goes", "nameserver 127.0.0.11\nnameserver ::1\nnameserver 0.0.0.0\nnameserver ::ffff:127.0.0.1\nnameserver 10.0.0.2\n", "", nil, false, resolver, "nameserver 10.0.0.2\n"},
		{"only loopback", local + "options edns0\n", local, nil, false, resolver, "nameserver 127.0.0.11\noptions edns0\n"},
		{"only loopback, no resolver", local + "search x\n", local, nil, false, netip.Addr{}, "search x\n"},
		{"Docker's fallback", "nameserver 8.8.8.8\nnameserver 8.8.4.4\n", local, nil, false, resolver, "nameserver 127.0.0.11\n"},
		{"Docker's fallback with IPv6", "nameserver 8.8.8.8\nnameserver 8.8.4.4\nnameserver 2001:4860:4860::8888\nnameserver 2001:4860:4860::8844\n", "", nil, false, resolver, "nameserver 127.0.0.11\n"},
		{"Docker's fallback, no resolver", "nameserver 8.8.8.8\nnameserver 8.8.4.4\n", local, nil, false, netip.Addr{}, "nameserver 8.8.8.8\nnameserver 8.8.4.4\n"},
		{"the user's choice of the same", "nameserver 8.8.8.8\nnameserver 8.8.4.4\n", local, []string{"8.8.8.8"}, false, resolver, "nameserver 8.8.8.8\nnameserver 8.8.4.4\n"},
		{"the host's choice of the same", "nameserver 8.8.8.8\nnameserver 8.8.4.4\n", "nameserver 8.8.8.8\nnameserver 8.8.4.4\n", nil, false, resolver, "nameserver 8.8.8.8\nnameserver 8.8.4.4\n"},
		{"one of the two", "nameserver 8.8.8.8\n", local, nil, false, resolver, "nameserver 8.8.8.8\n"},
		{"internal", "nameserver 10.0.0.2\nsearch x\n", "", nil, true, resolver, "nameserver 127.0.0.11\nsearch x\n"},
		{"internal, no resolver", "nameserver 10.0.0.2\nsearch x\n", "", nil, true, netip.Addr{}, "search x\n"},
		{"internal, the user's choice", "nameserver 10.0.0.2\n", "", []string{"8.8.8.8", "10.0.0.2"}, true, resolver, "nameserver 10.0.0.2\n"},
		{"the container's own server", "nameserver 127.0.0.1\nnameserver 1.1.1.1\n", local, []string{"127.0.0.1", "1.1.1.1"}, false, resolver, "nameserver 127.0.0.1\nnameserver 1.1.1.1\n"},
		{"empty", "", "", nil, false, netip.Addr{}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := tenantResolvConf(parseResolvConf(c.docker), parseResolvConf(c.host), c.chosen,
				runtimeapi.Placement{Internal: c.internal, Resolver: c.resolver})
			if diff := cmp.Diff(c.want, string(got.text())); diff != "" {
				t.Fatalf("-want +got\n%s", diff)
			}
		})
	}
}

func FuzzResolvConf(f *testing.F) {
	f.Add("nameserver 127.0.0.53\nsearch a\n# x\noptions ndots:0\n", "nameserver ::1\n")
	f.Fuzz(func(t *testing.T, docker, host string) {
		place := runtimeapi.Placement{Resolver: netip.MustParseAddr("10.9.0.1")}
		got := tenantResolvConf(parseResolvConf(docker), parseResolvConf(host), nil, place)
		if len(got.servers) == 0 {
			t.Fatalf("%q left no server although there is a resolver", docker)
		}
		for _, server := range got.servers {
			if isLocal(server) {
				t.Fatalf("%q left %s", docker, server)
			}
		}
		again := parseResolvConf(string(got.text()))
		if diff := cmp.Diff(got.text(), again.text()); diff != "" {
			t.Fatalf("%q does not read back: %s", docker, diff)
		}
	})
}
