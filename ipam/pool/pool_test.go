package pool_test

import (
	"errors"
	"math/big"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/ipam/pool"
)

var byAddr = cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})

func open(t testing.TB, subnet, ipRange string) *pool.Pool {
	t.Helper()
	cfg := pool.Config{Subnet: netip.MustParsePrefix(subnet)}
	if ipRange != "" {
		cfg.Range = netip.MustParsePrefix(ipRange)
	}
	p, err := pool.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func addrs(texts ...string) []netip.Addr {
	var out []netip.Addr
	for _, s := range texts {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

// drain takes addresses until the pool is exhausted.
func drain(t testing.TB, p *pool.Pool) []netip.Addr {
	t.Helper()
	var out []netip.Addr
	for {
		addr, err := p.Any()
		if errors.Is(err, pool.ErrExhausted) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, addr)
	}
}

func TestAnyGivesEveryAddressOfTheRange(t *testing.T) {
	for _, c := range []struct {
		name, subnet, ipRange string
		want                  []netip.Addr
	}{
		{"IPv4 without network and broadcast", "10.9.0.0/29", "", addrs("10.9.0.1", "10.9.0.2", "10.9.0.3", "10.9.0.4", "10.9.0.5", "10.9.0.6")},
		{"IPv4 /30", "10.9.0.0/30", "", addrs("10.9.0.1", "10.9.0.2")},
		{"IPv4 /31 is a link, RFC 3021", "10.9.0.0/31", "", addrs("10.9.0.0", "10.9.0.1")},
		{"IPv4 /32", "10.9.0.7/32", "", addrs("10.9.0.7")},
		{"host bits are ignored", "10.9.0.3/30", "", addrs("10.9.0.1", "10.9.0.2")},
		{"range in the middle keeps its ends", "10.9.0.0/24", "10.9.0.64/30", addrs("10.9.0.64", "10.9.0.65", "10.9.0.66", "10.9.0.67")},
		{"range at the start", "10.9.0.0/24", "10.9.0.0/30", addrs("10.9.0.1", "10.9.0.2", "10.9.0.3")},
		{"range at the end", "10.9.0.0/24", "10.9.0.252/30", addrs("10.9.0.252", "10.9.0.253", "10.9.0.254")},
		{"range of one", "10.9.0.0/24", "10.9.0.9/32", addrs("10.9.0.9")},
		{"end of the IPv4 space", "255.255.255.252/30", "", addrs("255.255.255.253", "255.255.255.254")},
		{"end of the IPv4 space, /31", "255.255.255.254/31", "", addrs("255.255.255.254", "255.255.255.255")},
		{"IPv6 without subnet-router anycast, RFC 4291", "fd00::/126", "", addrs("fd00::1", "fd00::2", "fd00::3")},
		{"IPv6 /127 is a link, RFC 6164", "fd00::/127", "", addrs("fd00::", "fd00::1")},
		{"IPv6 /128", "fd00::7/128", "", addrs("fd00::7")},
		{"IPv6 range in a huge subnet", "fd00::/8", "fd00:1::/127", addrs("fd00:1::", "fd00:1::1")},
		{"end of the IPv6 space", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffc/126", "", addrs("ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffd", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := open(t, c.subnet, c.ipRange)
			if got := p.Free(); got.Cmp(big.NewInt(int64(len(c.want)))) != 0 {
				t.Errorf("Free() = %s before the first, want %d", got, len(c.want))
			}
			if diff := cmp.Diff(c.want, drain(t, p), byAddr); diff != "" {
				t.Errorf("addresses (-want +got):\n%s", diff)
			}
			if p.Free().Sign() != 0 || p.Used() != len(c.want) {
				t.Errorf("exhausted pool has Free %s, Used %d", p.Free(), p.Used())
			}
		})
	}
}

func TestNewRefuses(t *testing.T) {
	prefix := netip.MustParsePrefix
	for _, c := range []struct {
		name string
		cfg  pool.Config
	}{
		{"no subnet", pool.Config{}},
		{"invalid subnet", pool.Config{Subnet: netip.PrefixFrom(netip.MustParseAddr("10.0.0.0"), 33)}},
		{"IPv4 written as IPv6", pool.Config{Subnet: prefix("::ffff:10.0.0.0/120")}},
		{"range elsewhere", pool.Config{Subnet: prefix("10.0.0.0/24"), Range: prefix("10.0.1.0/25")}},
		{"range wider than the subnet", pool.Config{Subnet: prefix("10.0.0.0/24"), Range: prefix("10.0.0.0/16")}},
		{"range of the other family", pool.Config{Subnet: prefix("10.0.0.0/8"), Range: prefix("fd00::/64")}},
		{"invalid range", pool.Config{Subnet: prefix("10.0.0.0/8"), Range: netip.PrefixFrom(netip.MustParseAddr("10.0.0.0"), 40)}},
		{"range is the network address", pool.Config{Subnet: prefix("10.0.0.0/24"), Range: prefix("10.0.0.0/32")}},
		{"range is the broadcast address", pool.Config{Subnet: prefix("10.0.0.0/24"), Range: prefix("10.0.0.255/32")}},
		{"range is the anycast address", pool.Config{Subnet: prefix("fd00::/64"), Range: prefix("fd00::/128")}},
	} {
		if _, err := pool.New(c.cfg); !errors.Is(err, pool.ErrConfig) {
			t.Errorf("%s: New: %v, want ErrConfig", c.name, err)
		}
	}
}

func TestConfigIsNormalised(t *testing.T) {
	got := open(t, "10.9.0.7/24", "10.9.0.70/26").Config()
	if got.Subnet.String() != "10.9.0.0/24" || got.Range.String() != "10.9.0.64/26" {
		t.Errorf("Config() = %v", got)
	}
	if got := open(t, "10.9.0.7/24", "").Config(); got.Range.String() != "10.9.0.0/24" {
		t.Errorf("without a range, Config() = %v", got)
	}
}

func TestTakeRefuses(t *testing.T) {
	for _, c := range []struct {
		subnet, addr string
		want         error
	}{
		{"10.9.0.0/24", "10.9.0.0", pool.ErrReserved},
		{"10.9.0.0/24", "10.9.0.255", pool.ErrReserved},
		{"10.9.0.0/24", "10.9.1.0", pool.ErrOutside},
		{"10.9.0.0/24", "fd00::1", pool.ErrOutside},
		{"10.9.0.0/24", "::ffff:10.9.0.1", pool.ErrOutside},
		{"10.9.0.0/24", "10.9.0.5", pool.ErrTaken},
		{"10.9.0.0/31", "10.9.0.0", nil},
		{"10.9.0.0/31", "10.9.0.1", nil},
		{"10.9.0.0/24", "10.9.0.254", nil},
		{"fd00::/64", "fd00::", pool.ErrReserved},
		{"fd00::/64", "fd00::ffff:ffff:ffff:ffff", nil},
		{"fd00::/64", "fd00::1%eth0", pool.ErrOutside},
		{"fd00::/127", "fd00::", nil},
	} {
		p := open(t, c.subnet, "")
		if c.want == pool.ErrTaken {
			if err := p.Take(netip.MustParseAddr(c.addr)); err != nil {
				t.Fatal(err)
			}
		}
		if err := p.Take(netip.MustParseAddr(c.addr)); !errors.Is(err, c.want) {
			t.Errorf("%s: Take(%s): %v, want %v", c.subnet, c.addr, err, c.want)
		}
	}
	p := open(t, "10.9.0.0/24", "")
	if err := p.Take(netip.Addr{}); !errors.Is(err, pool.ErrOutside) {
		t.Errorf("Take of no address: %v", err)
	}
	if p.Release(netip.Addr{}) || p.Held(netip.Addr{}) {
		t.Error("no address is held")
	}
}

func TestTakenAddressAheadIsSteppedOver(t *testing.T) {
	p := open(t, "10.9.0.0/29", "")
	for _, a := range addrs("10.9.0.2", "10.9.0.3", "10.9.0.6") {
		if err := p.Take(a); err != nil {
			t.Fatal(err)
		}
	}
	// Released before Any came to it: it has been used, so it waits.
	p.Release(netip.MustParseAddr("10.9.0.3"))
	if diff := cmp.Diff(addrs("10.9.0.1", "10.9.0.4", "10.9.0.5", "10.9.0.3"), drain(t, p), byAddr); diff != "" {
		t.Errorf("addresses (-want +got):\n%s", diff)
	}
}

func TestOldestReleasedComesBackFirst(t *testing.T) {
	p := open(t, "10.9.0.0/29", "")
	drain(t, p)
	for _, a := range addrs("10.9.0.4", "10.9.0.1", "10.9.0.6", "10.9.0.2") {
		if !p.Release(a) {
			t.Fatalf("Release(%s) = false", a)
		}
		if p.Release(a) {
			t.Fatalf("second Release(%s) = true", a)
		}
	}
	// Taken by name while waiting, then released: it goes to the end.
	four := netip.MustParseAddr("10.9.0.4")
	if err := p.Take(four); err != nil {
		t.Fatal(err)
	}
	p.Release(four)
	// Taken by name and kept: it does not come.
	if err := p.Take(netip.MustParseAddr("10.9.0.6")); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(addrs("10.9.0.1", "10.9.0.2", "10.9.0.4"), drain(t, p), byAddr); diff != "" {
		t.Errorf("addresses (-want +got):\n%s", diff)
	}
}

func TestOutsideTheRange(t *testing.T) {
	p := open(t, "10.9.0.0/24", "10.9.0.64/31")
	far := netip.MustParseAddr("10.9.0.9")
	if err := p.Take(far); err != nil {
		t.Fatal(err)
	}
	if p.Used() != 1 || p.Free().Int64() != 2 {
		t.Errorf("Used %d, Free %s; want 1 and 2", p.Used(), p.Free())
	}
	if !p.Release(far) || p.Release(far) || p.Held(far) || p.Used() != 0 {
		t.Error("Release of an address outside the range does not free it once")
	}
	if diff := cmp.Diff(addrs("10.9.0.64", "10.9.0.65"), drain(t, p), byAddr); diff != "" {
		t.Errorf("addresses (-want +got):\n%s", diff)
	}
}

func TestHugePoolCostsNothing(t *testing.T) {
	p := open(t, "fd00::/8", "")
	want, _ := new(big.Int).SetString("1329227995784915872903807060280344575", 10) // 2^120 - 1
	if got := p.Free(); got.Cmp(want) != 0 {
		t.Errorf("Free() = %s, want %s", got, want)
	}
	if err := p.Take(netip.MustParseAddr("fdff:ffff::1")); err != nil {
		t.Fatal(err)
	}
	for _, want := range addrs("fd00::1", "fd00::2") {
		if got, err := p.Any(); err != nil || got != want {
			t.Errorf("Any() = %s, %v, want %s", got, err, want)
		}
	}
}

func TestRestore(t *testing.T) {
	p := open(t, "10.9.0.0/24", "10.9.0.0/29")
	err := p.Restore(
		addrs("10.9.0.3", "10.9.0.200", "10.9.0.3", "10.9.0.0", "192.0.2.1"),
		addrs("10.9.0.5", "10.9.0.201", "10.9.0.2", "10.9.0.3", "10.9.0.5", "10.9.0.0"))
	if !errors.Is(err, pool.ErrReserved) || !errors.Is(err, pool.ErrOutside) || errors.Is(err, pool.ErrTaken) {
		t.Errorf("Restore: %v, want the reserved and the foreign address and nothing else", err)
	}
	inUse, released := p.Snapshot()
	if diff := cmp.Diff(addrs("10.9.0.3", "10.9.0.200"), inUse, byAddr); diff != "" {
		t.Errorf("in use (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(addrs("10.9.0.5", "10.9.0.2"), released, byAddr); diff != "" {
		t.Errorf("released (-want +got):\n%s", diff)
	}
	if got := drain(t, p); !slices.Equal(got, addrs("10.9.0.1", "10.9.0.4", "10.9.0.6", "10.9.0.7", "10.9.0.5", "10.9.0.2")) {
		t.Errorf("after Restore, Any gives %v", got)
	}
}

func TestRefusalsTellARemedy(t *testing.T) {
	full := open(t, "10.9.0.7/32", "")
	drain(t, full)
	_, exhausted := full.Any()
	_, config := pool.New(pool.Config{})
	none, err := pool.NewDefaults(pool.Cut{}, pool.Cut{})
	if err != nil {
		t.Fatal(err)
	}
	_, noSubnet := none.Next(true, nil)
	for cause, err := range map[error]error{
		pool.ErrExhausted: exhausted,
		pool.ErrTaken:     full.Take(netip.MustParseAddr("10.9.0.7")),
		pool.ErrOutside:   full.Take(netip.MustParseAddr("10.9.0.8")),
		pool.ErrReserved:  open(t, "10.9.0.0/24", "").Take(netip.MustParseAddr("10.9.0.0")),
		pool.ErrConfig:    config,
		pool.ErrNoSubnet:  noSubnet,
	} {
		var f *fault.Error
		if !errors.Is(err, cause) || !errors.As(err, &f) || f.Fix == "" || f.On == "" {
			t.Errorf("%v: got %q, want this cause, an object and a remedy", cause, err)
		}
	}
}
