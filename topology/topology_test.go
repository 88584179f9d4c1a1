package topology_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/particle-net/particle/topology"
)

func TestParseIDs(t *testing.T) {
	good := strings.Repeat("0123456789abcdef", 4)
	for _, s := range []string{good, good[:12]} {
		if id, err := topology.ParseNetworkID(s); err != nil || string(id) != s {
			t.Errorf("ParseNetworkID(%q) = %q, %v", s, id, err)
		}
	}
	for _, s := range []string{"", "abc", strings.ToUpper(good), good + "0", "../" + good[:20], good[:20] + "/x"} {
		if _, err := topology.ParseNetworkID(s); err == nil {
			t.Errorf("ParseNetworkID(%q) accepted it", s)
		}
		if _, err := topology.ParseContainerID(s); err == nil {
			t.Errorf("ParseContainerID(%q) accepted it", s)
		}
		if _, err := topology.ParseEndpointID(s); err == nil {
			t.Errorf("ParseEndpointID(%q) accepted it", s)
		}
	}
}

func TestParseVNI(t *testing.T) {
	for _, s := range []string{"1", "16777215"} {
		if _, err := topology.ParseVNI(s); err != nil {
			t.Errorf("ParseVNI(%q): %v", s, err)
		}
	}
	for _, s := range []string{"", "0", "-1", "16777216", "x", "4294967297"} {
		if v, err := topology.ParseVNI(s); err == nil {
			t.Errorf("ParseVNI(%q) = %d, want an error", s, v)
		}
	}
}

// Every uplink has a link of its own inside the range, and no two overlap.
func TestUplinksAreDisjoint(t *testing.T) {
	seen := map[netip.Addr]int{}
	for i := range topology.MaxUplinks + 1 {
		u, err := topology.NewUplink("abc", min(i, topology.MaxUplinks-1), 1500)
		if err != nil {
			t.Fatal(err)
		}
		if u.Host6.IsValid() || u.Tenant6.IsValid() || u.Inside().Host6.IsValid() {
			t.Fatalf("uplink %d has IPv6 unasked: %v", i, u)
		}
		u = u.WithIPv6()
		if i == topology.MaxUplinks {
			u = u.Inside()
		}
		for a, within := range map[netip.Addr]netip.Prefix{
			u.Host.Addr(): topology.UplinkRange, u.Tenant.Addr(): topology.UplinkRange,
			u.Host6.Addr(): topology.UplinkRange6, u.Tenant6.Addr(): topology.UplinkRange6,
		} {
			if !within.Contains(a) {
				t.Fatalf("uplink %d: %s is outside %s", i, a, within)
			}
			if j, dup := seen[a]; dup {
				t.Fatalf("uplinks %d and %d share %s", j, i, a)
			}
			seen[a] = i
		}
		if u.Host.Masked() != u.Tenant.Masked() || u.Host6.Masked() != u.Tenant6.Masked() {
			t.Fatalf("uplink %d: its ends are not on one link: %v", i, u)
		}
	}
	for _, i := range []int{-1, topology.MaxUplinks} {
		if _, err := topology.NewUplink("abc", i, 1500); err == nil {
			t.Errorf("index %d accepted", i)
		}
	}
}

func TestWireGuardAddresses(t *testing.T) {
	id := topology.NodeID("0123456789abcdef0123456789abcdef")
	got, err := topology.WireGuardAddress(id)
	if want := "fd91:9a00:bcf:123:4567:89ab:cdef:123"; err != nil || got.String() != want || !topology.WireGuardRange.Contains(got) {
		t.Errorf("WireGuardAddress(%s) = %s, %v, want %s", id, got, err, want)
	}
	for _, bad := range []topology.NodeID{"", id[:30], "zz" + id[2:]} {
		if got, err := topology.WireGuardAddress(bad); err == nil {
			t.Errorf("WireGuardAddress(%q) = %s", bad, got)
		}
	}
}

func TestEncryptedUnderlay(t *testing.T) {
	address := netip.MustParseAddr("fd91:9a00:bcf::1")
	for vtep, mtu := range map[string]int{"192.0.2.1": 1440, "2001:db8::1": 1420} {
		u := topology.Underlay{VTEP: netip.MustParseAddr(vtep), MTU: 1500, Port: 4789}
		if got, want := u.Encrypted(address), (topology.Underlay{VTEP: address, MTU: mtu, Port: 4789}); got != want || got.Overhead() != 70 {
			t.Errorf("over %s: %+v, want %+v", vtep, got, want)
		}
	}
}
