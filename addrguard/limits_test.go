package addrguard_test

import (
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// What docs/limits.md tells of a shared namespace:
//
//   - "`/proc/net`, `ss` and `netstat` show all containers' sockets."
//   - "One set of `net.*` settings holds for all containers."
//   - "IP_PKTINFO, IP_RECVERR and `/proc/net` show loopback addresses as the namespace
//     knows them (127.H.L.x, or the own address)."
func TestWhatIsShared(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	network := h.network(1, v4)
	a, b := h.box(network, 1, v4), h.box(network, 2, v4)
	b.listening("0.0.0.0:80")
	b.listening("127.0.0.1:81")
	list := a.must(Call{Name: "read", Text: "/proc/self/net/tcp"}).Text
	expect(t, "a neighbour's server is listed", strings.Contains(list, " 02004D0A:0050 "), true)
	expect(t, "so is that on its loopback", strings.Contains(list, "7F:0051 "), true)
	expect(t, "as 127.0.0.1", strings.Contains(list, " 0100007F:0051 "), false)

	const setting = "/proc/sys/net/ipv4/ip_default_ttl"
	h.spaces[network].Do(func() {
		if err := os.WriteFile(setting, []byte("77"), 0); err != nil {
			t.Error(err)
		}
	})
	for _, box := range []*box{a, b} {
		expect(t, "setting", strings.TrimSpace(box.must(Call{Name: "read", Text: setting}).Text), "77")
	}
}

// "A process that root of the host puts into a tenant namespace by hand is strict
// only below a cgroup that holds containers of particle networks."
func TestWhoIsPutIntoTheNamespace(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	network := h.network(1, v4)
	h.box(network, 1, v4)
	h.cgroup(h.top + "/stranger")
	h.cgroup(h.top + "-outside")
	below, outside := h.start(h.top+"/stranger", h.spaces[network]), h.start(h.top+"-outside", h.spaces[network])
	expect(t, "below an anchor", below.do(Call{Name: "socket", Family: unix.AF_INET, Type: tcp}).Err, unix.EPERM)
	expect(t, "elsewhere", outside.bound(tcp, "0.0.0.0:81").name(), "0.0.0.0:81")
}
