package addrguard_test

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/addrguard"
	"github.com/particle-net/particle/internal/netnstest"
	"github.com/particle-net/particle/topology"
)

// confined tells whether the guard acts on a process: with none, 0.0.0.0 is bound.
func (b *box) confined(addr string) bool {
	b.t.Helper()
	s := b.bound(udp, "0.0.0.0:0")
	defer s.close()
	_, foreign := b.at(udp, "10.77.99.99:0")
	return foreign == unix.EADDRNOTAVAIL && b.canBind(addr)
}

func (b *box) canBind(ip string) bool { _, err := b.at(udp, join(ip, 0)); return err == 0 }

func (b *box) refused() unix.Errno {
	b.t.Helper()
	return b.do(Call{Name: "socket", Family: unix.AF_INET, Type: udp}).Err
}

func TestStrangers(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	network := h.network(1, v4)
	other := tenant(t, v4) // protected by nobody
	h.box(network, 1, v4)  // attaches the programs
	cgroup := h.top + "/stranger"
	h.cgroup(cgroup)
	stranger := h.start(cgroup, h.spaces[network])
	expect(t, "a socket of nobody's", stranger.refused(), unix.EPERM)
	expect(t, "an IPv6 socket of nobody's", stranger.do(Call{Name: "socket", Family: unix.AF_INET6, Type: tcp}).Err, unix.EPERM)
	if total, err := h.Totals(); err != nil || total.StrangersDenied != 2 {
		t.Errorf("totals %+v, %v; want 2 strangers denied", total, err)
	}
	outside := h.start(cgroup, other)
	expect(t, "in a namespace without protection", outside.canBind("10.77.0.9"), true)

	// The same process is somebody from the moment Admit returns.
	id, err := h.Admit(t.Context(), cgroup, identityOf(network, 9, v4))
	if err != nil {
		t.Fatal(err)
	}
	expect(t, "admitted", stranger.confined("10.77.0.9"), true)
	kept := stranger.socket(unix.AF_INET, udp)
	for range 2 { // gone is success
		if err := h.Expel(id); err != nil {
			t.Fatal(err)
		}
	}
	expect(t, "a socket after Expel", stranger.refused(), unix.EPERM)
	expect(t, "one from before", kept.do(Call{Name: "bind", FD: kept.fd, Addr: "0.0.0.0:0"}).Err, 0)
	expect(t, "its address", ipOf(t, kept.name()), "0.0.0.0")
	if err := h.Unprotect(t.Context(), network); err != nil {
		t.Fatal(err)
	}
	expect(t, "after Unprotect", stranger.canBind("10.77.0.1"), true)
}

func TestExempt(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	one, two := h.network(1, v4), h.network(2, v4)
	cgroup := h.top + "/helper"
	h.cgroup(cgroup)
	if _, err := h.Admit(t.Context(), cgroup, addrguard.Identity{Exempt: true}); err != nil {
		t.Fatal(err)
	}
	a := h.box(one, 1, v4)
	for _, network := range []int{1, 2} {
		helper := h.start(cgroup, h.spaces[networkID(network)])
		expect(t, "any address", helper.canBind("10.77.3.3"), true)
		expect(t, "raw sockets", helper.do(Call{Name: "socket", Family: unix.AF_INET, Type: unix.SOCK_RAW, Proto: 1}).Err, 0)
	}
	// A resolver for all, on an address that is nobody's.
	h.spaces[one].Run("ip", "route", "add", "local", "169.254.0.53", "dev", "lo")
	resolver := h.start(cgroup, h.spaces[one]).bound(udp, "169.254.0.53:53")
	seen, back := exchange(t, "resolver", a.socket(unix.AF_INET, udp), resolver, "169.254.0.53:53")
	expect(t, "the client", ipOf(t, seen), "10.77.0.1")
	expect(t, "the resolver", back, "169.254.0.53:53")
	_ = two
}

func TestCgroups(t *testing.T) {
	t.Parallel()
	h, second := newHost(t), ""
	network := h.network(1, v4)
	for _, path := range []string{"", "/a", "/a/b", "/a/b/c", "/a/b/c/d"} {
		if path != "" {
			h.cgroup(h.top + path)
		}
	}
	second = h.top + "x"
	h.cgroup(second)
	h.cgroup(second + "/a")
	deep := h.admitted(h.top+"/a/b", identityOf(network, 1, v4))
	expect(t, "below a parent", deep.confined("10.77.0.1"), true)
	expect(t, "in a cgroup of its own making", h.start(h.top+"/a/b/c/d", h.spaces[network]).confined("10.77.0.1"), true)
	expect(t, "above it", h.start(h.top+"/a", h.spaces[network]).refused(), unix.EPERM)
	expect(t, "before the second anchor", h.start(second+"/a", h.spaces[network]).canBind("10.77.0.7"), true)
	expect(t, "at the second anchor", h.admitted(second+"/a", identityOf(network, 2, v4)).confined("10.77.0.2"), true)

	top := h.top + "y"
	h.cgroup(top)
	expect(t, "its own anchor", h.admitted(top, identityOf(network, 3, v4)).confined("10.77.0.3"), true)

	for _, path := range []string{"/", "", "relative", "/../../docker/x", h.top + "/../x"} {
		if _, err := h.Admit(t.Context(), path, identityOf(network, 4, v4)); err == nil {
			t.Errorf("cgroup %q was admitted", path)
		}
	}
	if _, err := h.Admit(t.Context(), h.top+"/missing", identityOf(network, 4, v4)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing cgroup: %v", err)
	}
}

func TestNamespaceOfItsOwn(t *testing.T) {
	t.Parallel()
	onKernels(t, func(t *testing.T, h *host) {
		network := h.network(1, v4)
		a, b := h.box(network, 1, v4), h.box(network, 2, v4)
		a.socket(unix.AF_INET, udp).close() // the programs know where to look for its container
		s := sock{a, a.must(Call{Name: "unshare", Family: unix.AF_INET, Type: udp}).N}
		expect(t, "bind", s.do(Call{Name: "bind", FD: s.fd, Addr: "0.0.0.0:5000"}).Err, 0)
		expect(t, "getsockname", s.name(), "0.0.0.0:5000")
		expect(t, "send", s.send("127.0.0.1:5000", "to itself"), 0)
		text, from := s.received("in a namespace of its own")
		expect(t, "text", text, "to itself")
		expect(t, "from", from, "127.0.0.1:5000")

		// A port on all addresses is private all the same.
		u, p := a.autobound(unix.AF_INET, udp)
		stray := b.socket(unix.AF_INET, udp)
		expect(t, "send to nobody's address", stray.send(joined("10.77.0.9", p), "stray"), 0)
		expect(t, "send to the own address", stray.send(joined("10.77.0.1", p), "mine"), 0)
		text, _ = u.received("the own datagram")
		expect(t, "what arrives", text, "mine")
		l, p := a.autobound(unix.AF_INET, tcp)
		client := b.socket(unix.AF_INET, tcp)
		client.must(Call{Name: "patience", FD: client.fd, Value: 100})
		expect(t, "connect to nobody's address", client.connect(joined("10.77.0.9", p)), unix.EINPROGRESS)
		dial(t, b, l, joined("10.77.0.1", p))
	})
}

func TestAdmitted(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	want := map[topology.CgroupID]addrguard.Identity{}
	for n, families := range []int{v4, v6, v4 | v6} {
		network := h.network(n+1, families)
		for i := 1; i <= 2; i++ {
			id := identityOf(network, 255*n+i, families)
			id.Raw = i == 2
			want[h.admittedID(id)] = id
		}
	}
	want[h.admittedID(addrguard.Identity{Exempt: true})] = addrguard.Identity{Exempt: true}
	check := func() {
		t.Helper()
		got, err := h.Admitted()
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, got, cmp.Comparer(func(a, b addrguard.Identity) bool { return a == b })); d != "" {
			t.Error(d)
		}
	}
	check()
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	h.open() // another process reads the same
	check()
	for _, bad := range []addrguard.Identity{
		{}, {Identity: topology.Identity{Network: networkID(1)}}, identityOf(networkID(1), 0, v4), identityOf(networkID(1), 1, 0), identityOf(networkID(9), 1, v4),
		{Identity: topology.Identity{Network: networkID(1), Slot: 1, IPv6: identityOf("", 1, v4).IPv4}},
	} {
		if _, err := h.Admit(t.Context(), h.top, bad); err == nil {
			t.Errorf("%+v was admitted", bad)
		}
	}
}

// A container that has its host's addresses (--network container:X) leaves them to
// it when it goes, whichever process admitted the two.
func TestGuestLeavesItsHostsAddresses(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	network := h.network(1, v4|v6)
	a, b := h.box(network, 1, v4|v6), h.box(network, 2, v4|v6)
	s := a.listening("[::]:80")
	for path, again := range map[string]func(){"/guest": func() {}, "/guest-of-another": h.open} {
		h.cgroup(h.top + path)
		guest := h.admitted(h.top+path, identityOf(network, 1, v4|v6))
		again()
		if err := h.Expel(guest.id); err != nil {
			t.Fatal(err)
		}
		if !unmet(t, b, "[fd00:77::1]:80") {
			dial(t, b, s, "[fd00:77::1]:80")
		}
		if !unmet(t, a, "[::1]:80") {
			dial(t, a, s, "[::1]:80")
		}
	}
	if err := h.Expel(a.id); err != nil {
		t.Fatal(err)
	}
	expect(t, "the address of nobody", b.socket(unix.AF_INET6, tcp).connect("[fd00:77::1]:80"), unix.ECONNREFUSED)
}

// Another identity is that of sockets made from then on; nothing leads to the
// addresses from before.
func TestAdmitAgain(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	network := h.network(1, v4|v6)
	a, b := h.box(network, 1, v4|v6), h.box(network, 2, v4|v6)
	again := [3]int{unix.SOL_SOCKET, unix.SO_REUSEADDR, 1}
	for n := 1; n <= 3; n += 2 {
		id, err := h.Admit(t.Context(), a.cgroup, identityOf(network, n, v4|v6))
		if err != nil || id != a.id {
			t.Fatalf("id %d, %v; want %d", id, err, a.id)
		}
		s := a.listening("[::]:80", again)
		for _, addr := range []string{fmt.Sprintf("10.77.0.%d:80", n), fmt.Sprintf("[fd00:77::%d]:80", n)} {
			if !unmet(t, b, addr) {
				dial(t, b, s, addr)
			}
		}
		s.close()
	}
	s := a.listening("[::]:80", again)
	for _, old := range []string{"10.77.0.1:80", "[fd00:77::1]:80"} {
		family := unix.AF_INET
		if old[0] == '[' {
			family = unix.AF_INET6
		}
		expect(t, "the address from before", b.socket(family, tcp).connect(old), unix.ECONNREFUSED)
	}
	if !unmet(t, b, "[fd00:77::3]:80") {
		dial(t, b, s, "[fd00:77::3]:80")
	}

	// Nor does the old IPv6 address lead to who has the old IPv4 address now.
	heir := identityOf(network, 1, v4|v6)
	heir.IPv6 = netip.MustParseAddr("fd00:77::9")
	h.cgroup(h.top + "/heir")
	c := h.admitted(h.top+"/heir", heir)
	theirs := c.listening("[::]:81")
	if !unmet(t, b, "[fd00:77::9]:81") {
		dial(t, b, theirs, "[fd00:77::9]:81")
	}
	client := b.socket(unix.AF_INET6, tcp)
	client.must(Call{Name: "patience", FD: client.fd, Value: 1000})
	expect(t, "the address from before", client.connect("[fd00:77::1]:81"), unix.ECONNREFUSED)
}

// A network whose namespace was lost has another, and the record of the old goes.
func TestNamespaceMadeAnew(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	network := h.network(1, v4)
	h.box(network, 1, v4)
	old := h.spaces[network]
	h.network(1, v4)
	expect(t, "the new one", h.start(h.top, h.spaces[network]).refused(), unix.EPERM)
	expect(t, "admitted to it", h.box(network, 2, v4).confined("10.77.0.2"), true)
	expect(t, "the old one", h.start(h.top, old).canBind("10.77.0.1"), true)
	expect(t, "programs on devices", len(h.pinned("device-")), map[bool]int{true: 1}[devicesSince(t)])
}

func (h *host) pinned(prefix string) (names []string) {
	h.t.Helper()
	for name := range h.programs() {
		if strings.HasPrefix(name, prefix) {
			names = append(names, name)
		}
	}
	return names
}

// admittedID admits a cgroup without a process.
func (h *host) admittedID(id addrguard.Identity) topology.CgroupID {
	h.t.Helper()
	cgroup := filepath.Join(h.top, "e"+id.IPv4.String()+id.IPv6.String())
	h.cgroup(cgroup)
	cg, err := h.Admit(h.t.Context(), cgroup, id)
	if err != nil {
		h.t.Fatal(err)
	}
	return cg
}

func TestThousandEntries(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	network := h.network(1, v4|v6)
	ids := make([]topology.CgroupID, 1000)
	for n := range ids {
		ids[n] = h.admittedID(identityOf(network, n+1, v4|v6))
	}
	all, err := h.Admitted()
	if err != nil || len(all) != len(ids) {
		t.Fatalf("%d admitted, %v; want %d", len(all), err, len(ids))
	}
	last := h.start(filepath.Join(h.top, "e10.77.3.232fd00:77::3e8"), h.spaces[network])
	expect(t, "the last", last.confined("10.77.3.232"), true)
	for _, id := range ids {
		if err := h.Expel(id); err != nil {
			t.Fatal(err)
		}
	}
	if all, err := h.Admitted(); err != nil || len(all) != 0 {
		t.Errorf("%d left, %v", len(all), err)
	}
}

func TestCleanup(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	expect(t, "in force before there is a network", addrguard.InForce(h.opts.Pins), false)
	network := h.network(1, v4)
	a := h.box(network, 1, v4)
	expect(t, "guarded", a.confined("10.77.0.1"), true)
	expect(t, "in force", addrguard.InForce(h.opts.Pins), true)
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	expect(t, "with nobody there", a.confined("10.77.0.1"), true)
	for range 2 {
		if err := addrguard.Cleanup(t.Context(), h.opts); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(h.opts.Pins); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the directory of the pins is still there: %v", err)
	}
	expect(t, "after Cleanup", a.canBind("10.77.0.2"), true)
	expect(t, "in force after Cleanup", addrguard.InForce(h.opts.Pins), false)
}

// A directory on a BPF file system of somebody else's is left there.
func TestPinsInAnothersMount(t *testing.T) {
	t.Parallel()
	dir := netnstest.RunDir(t)
	if err := unix.Mount("bpf", dir, "bpf", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, 0) })
	opts := addrguard.Options{Pins: filepath.Join(dir, "particle"), Cgroups: cgroups(t), Spaces: spaces{}}
	g, err := addrguard.Open(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "particle", "layout-1", "containers")); err != nil {
		t.Error(err)
	}
	if err := errors.Join(g.Close(), addrguard.Cleanup(t.Context(), opts)); err != nil {
		t.Error(err)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil || st.Type != unix.BPF_FS_MAGIC {
		t.Errorf("the mount is gone: type %x, %v", st.Type, err)
	}
	if _, err := os.Stat(opts.Pins); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("left behind: %v", err)
	}
}
