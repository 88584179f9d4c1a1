package overlay_test

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/particle-net/particle/overlay"
	"github.com/particle-net/particle/topology"
)

func TestUnderlay(t *testing.T) {
	t.Parallel()
	link := func(name, mtu string, addrs ...string) [][]string {
		setup := [][]string{{"link", "add", name, "mtu", mtu, "type", "bridge"}}
		for _, a := range addrs {
			add := append([]string{"address", "add"}, strings.Fields(a)...)
			setup = append(setup, append(add, "dev", name, "nodad"))
		}
		return append(setup, []string{"link", "set", name, "up"})
	}
	two := append(link("eth0", "1400", "192.0.2.1/24"), link("eth1", "9000", "198.51.100.1/24", "2001:db8::1/64")...)
	with := func(setup [][]string, more ...[]string) [][]string {
		return append(setup[:len(setup):len(setup)], more...)
	}
	for name, c := range map[string]struct {
		setup [][]string
		want  string // the tunnel address asked for
		vtep  string
		mtu   int
	}{
		"none":                  {vtep: "", mtu: 1500},
		"only loopback":         {setup: [][]string{{"address", "add", "192.0.2.9/32", "dev", "lo"}}, mtu: 1500},
		"first address":         {setup: two, vtep: "192.0.2.1", mtu: 1400},
		"asked for":             {setup: two, want: "198.51.100.1", vtep: "198.51.100.1", mtu: 9000},
		"asked for v6":          {setup: two, want: "2001:db8::1", vtep: "2001:db8::1", mtu: 9000},
		"default route":         {setup: with(two, []string{"route", "add", "default", "via", "198.51.100.9"}), vtep: "198.51.100.1", mtu: 9000},
		"source of the default": {setup: with(two, []string{"address", "add", "198.51.100.3/24", "dev", "eth1"}, []string{"route", "add", "default", "via", "198.51.100.9", "src", "198.51.100.3"}), vtep: "198.51.100.3", mtu: 9000},
		"better metric": {setup: with(two, []string{"route", "add", "default", "via", "192.0.2.9", "metric", "200"},
			[]string{"route", "add", "default", "via", "198.51.100.9", "metric", "100"}), vtep: "198.51.100.1", mtu: 9000},
		"v6 alone": {setup: link("eth0", "1500", "2001:db8::1/64"), vtep: "2001:db8::1", mtu: 1500},
		"v4 before the default route of v6": {setup: with(append(link("eth0", "1400", "192.0.2.1/24"), link("eth1", "1500", "2001:db8::1/64")...),
			[]string{"-6", "route", "add", "default", "via", "2001:db8::9"}), vtep: "192.0.2.1", mtu: 1400},
		"better metric added first": {setup: with(two, []string{"route", "add", "default", "via", "198.51.100.9", "metric", "100"},
			[]string{"route", "add", "default", "via", "192.0.2.9", "metric", "200"}), vtep: "198.51.100.1", mtu: 9000},
		"link down":        {setup: with(two, []string{"link", "set", "eth0", "down"}), vtep: "198.51.100.1", mtu: 9000},
		"docker's":         {setup: append(link("docker0", "1500", "172.17.0.1/16"), link("br-0123456789ab", "1500", "172.18.0.1/16")...), mtu: 1500},
		"host on a bridge": {setup: with(link("br-lan", "1500", "192.0.2.1/24"), []string{"route", "add", "default", "via", "192.0.2.9"}), vtep: "192.0.2.1", mtu: 1500},
		"loopback asked for": {setup: with(two, []string{"address", "add", "192.0.2.9/32", "dev", "lo"}, []string{"-6", "route", "add", "default", "via", "2001:db8::9"},
			[]string{"route", "add", "default", "nexthop", "via", "192.0.2.7", "nexthop", "via", "198.51.100.7"}), want: "192.0.2.9", vtep: "192.0.2.9", mtu: 1400},
		"loopback asked for without a default route": {setup: with(two, []string{"link", "set", "lo", "up"}, []string{"address", "add", "2001:db8:1::9/128", "dev", "lo"}),
			want: "2001:db8:1::9", vtep: "2001:db8:1::9", mtu: 1500},
		"loopback is the source of the default": {setup: with(two, []string{"address", "add", "192.0.2.9/32", "dev", "lo"},
			[]string{"route", "add", "default", "via", "198.51.100.7", "src", "192.0.2.9"}), vtep: "192.0.2.9", mtu: 9000},
		"deprecated alone":         {setup: link("eth0", "1400", "2001:db8::1/64 preferred_lft 0"), vtep: "2001:db8::1", mtu: 1400},
		"deprecated beside others": {setup: with(link("eth0", "1400", "2001:db8::1/64 preferred_lft 0", "2001:db8::2/64"), []string{"-6", "route", "add", "default", "via", "2001:db8::9", "src", "2001:db8::1"}), vtep: "2001:db8::2", mtu: 1400},
		"link-local no use":        {setup: link("eth0", "1500", "169.254.7.7/16"), mtu: 1500},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newMachine(t, "")
			for _, args := range c.setup {
				m.Run("ip", args...)
			}
			var want netip.Addr
			if c.want != "" {
				want = netip.MustParseAddr(c.want)
			}
			got, err := m.Underlay(t.Context(), want)
			expected := topology.Underlay{MTU: c.mtu, Port: 4789}
			if c.vtep != "" {
				expected.VTEP = netip.MustParseAddr(c.vtep)
			}
			if err != nil || got != expected {
				t.Errorf("Underlay(%v) = %+v, %v; want %+v", want, got, err, expected)
			}
		})
	}
}

func TestUnderlayThatIsNotHere(t *testing.T) {
	t.Parallel()
	m := newMachine(t, "192.0.2.1/24", func(o *overlay.Options) { o.Port = 8472 })
	if _, err := m.Underlay(t.Context(), netip.MustParseAddr("192.0.2.2")); err == nil {
		t.Error("an address of no link was taken")
	}
	got, err := m.Underlay(t.Context(), netip.Addr{})
	if err != nil || got.Port != 8472 {
		t.Errorf("Underlay() = %+v, %v; want port 8472", got, err)
	}
}

func TestRouted(t *testing.T) {
	t.Parallel()
	m := newMachine(t, "192.0.2.1/24")
	for _, args := range [][]string{
		{"route", "add", "default", "via", "192.0.2.9"},
		{"route", "add", "10.7.0.0/16", "via", "192.0.2.9"},
		{"route", "add", "blackhole", "10.8.0.0/16"},
		{"address", "add", "fe80::7/64", "dev", "eth0", "nodad"},
		{"-6", "route", "add", "fd00:5::/64", "dev", "eth0"},
	} {
		m.Run("ip", args...)
	}
	got, err := m.Routed(t.Context())
	var all []string
	for _, r := range got {
		all = append(all, r.Prefix.String()+" "+r.Link)
	}
	slices.Sort(all)
	if want := []string{"10.7.0.0/16 eth0", "192.0.2.0/24 eth0", "fd00:5::/64 eth0"}; err != nil || !slices.Equal(all, want) {
		t.Errorf("got %q, %v; want %q", all, err, want)
	}
}
