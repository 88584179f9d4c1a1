package addrguard_test

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"net/rpc"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/addrguard"
	"github.com/particle-net/particle/internal/netnstest"
	"github.com/particle-net/particle/topology"
)

// cgroups is where the version 2 hierarchy is mounted.
func cgroups(t testing.TB) string {
	t.Helper()
	for _, path := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		var st unix.Statfs_t
		if unix.Statfs(path, &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC {
			return path
		}
	}
	netnstest.Require(t, false, "a mounted cgroup v2")
	return ""
}

// boundary is a count that makes names of cgroups unique in this process.
var boundary atomic.Int64

// host is one guard with the namespaces it may enter.
type host struct {
	*addrguard.Guard
	t      testing.TB
	opts   addrguard.Options
	spaces spaces
	top    string // a cgroup of this test at the top of the hierarchy
}

type spaces map[topology.NetworkID]*netnstest.Namespace

func (s spaces) Within(id topology.NetworkID, fn func() error) (err error) {
	ns, ok := s[id]
	if !ok {
		return errors.New("no such network")
	}
	ns.Do(func() { err = fn() })
	return err
}

// onKernels runs a test with all that this kernel gives, and without what Linux
// brought last.
func onKernels(t *testing.T, test func(*testing.T, *host)) {
	t.Helper()
	t.Run("now", func(t *testing.T) { t.Parallel(); test(t, newHost(t)) })
	t.Run("before 6.15", func(t *testing.T) { t.Parallel(); test(t, newHost(t, addrguard.Before615)) })
}

func newHost(t testing.TB, changes ...func(addrguard.Options) addrguard.Options) *host {
	t.Helper()
	h := &host{t: t, spaces: spaces{}, top: fmt.Sprintf("/ag%d-%d", os.Getpid(), boundary.Add(1))}
	h.opts = addrguard.Options{Pins: filepath.Join(netnstest.RunDir(t), "bpf"), Cgroups: cgroups(t), Spaces: h.spaces}
	for _, change := range changes {
		h.opts = change(h.opts)
	}
	t.Cleanup(func() {
		if err := addrguard.Cleanup(t.Context(), h.opts); err != nil {
			t.Error(err)
		}
	})
	h.open()
	h.cgroup(h.top)
	t.Cleanup(func() { _ = h.Close() })
	return h
}

func (h *host) open() {
	h.t.Helper()
	var err error
	if h.Guard, err = addrguard.Open(h.t.Context(), h.opts); err != nil {
		h.t.Fatal(err)
	}
	checkLacks(h.t, h.Lacks(), devicesSince(h.t) && !addrguard.IsBefore66(h.opts))
}

// cgroup makes one that ends with the test.
func (h *host) cgroup(path string) {
	h.t.Helper()
	full := filepath.Join(h.opts.Cgroups, path)
	if err := os.Mkdir(full, 0o755); err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() {
		eventually(h.t, "the cgroup goes", func() bool { return !errors.Is(os.Remove(full), unix.EBUSY) })
	})
}

func eventually(t testing.TB, what string, done func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	deadline := time.Now().Add(10 * time.Second)
	for !done() {
		if time.Now().After(deadline) {
			t.Errorf("not within 10 s: %s", what)
			return
		}
		<-tick.C
	}
}

// families of a network's addresses.
const (
	v4 = 1 << iota
	v6
)

func networkID(n int) topology.NetworkID { return topology.NetworkID(fmt.Sprintf("%064x", n)) }

// network makes a tenant namespace as package overlay does, and protects it.
func (h *host) network(n, families int) topology.NetworkID {
	h.t.Helper()
	ns := tenant(h.t, families)
	h.spaces[networkID(n)] = ns
	if err := h.Protect(h.t.Context(), networkID(n), families&v6 != 0); err != nil {
		h.t.Fatal(err)
	}
	return networkID(n)
}

func tenant(t testing.TB, families int) *netnstest.Namespace {
	t.Helper()
	ns := netnstest.New(t)
	settings := []string{"ipv4/ip_unprivileged_port_start=0", "ipv4/ping_group_range=0 2147483647", "ipv6/ip_nonlocal_bind=1"}
	for _, s := range settings {
		name, value, _ := strings.Cut(s, "=")
		ns.Do(func() {
			if err := os.WriteFile("/proc/sys/net/"+name, []byte(value), 0); err != nil {
				t.Error(err)
			}
		})
	}
	ns.Run("ip", "route", "add", "unreachable", "127.0.0.11", "table", "local")
	if families&v4 != 0 {
		ns.Run("ip", "route", "add", "local", "10.77.0.0/16", "dev", "lo")
	}
	if families&v6 != 0 {
		ns.Run("ip", "-6", "route", "add", "local", "fd00:77::/64", "dev", "lo")
	}
	for _, p := range addrguard.Prefixes() {
		ns.Run("ip", "-6", "route", "add", "local", p.String(), "dev", "lo")
	}
	return ns
}

// box is a container: a process in a cgroup and a namespace.
type box struct {
	t      testing.TB
	client *rpc.Client
	cgroup string
	id     topology.CgroupID
	addr4  string
	addr6  string
	slot   topology.Slot
}

// identityOf is the n-th container's of a network.
func identityOf(network topology.NetworkID, n, families int) addrguard.Identity {
	id := addrguard.Identity{Identity: topology.Identity{Network: network, Slot: topology.Slot(n)}}
	if families&v4 != 0 {
		id.IPv4 = netip.AddrFrom4([4]byte{10, 77, byte(n >> 8), byte(n)})
	}
	if families&v6 != 0 {
		id.IPv6 = netip.MustParseAddr(fmt.Sprintf("fd00:77::%x", n))
	}
	return id
}

// box starts a container of a network and admits it.
func (h *host) box(network topology.NetworkID, n, families int) *box {
	h.t.Helper()
	cgroup := fmt.Sprintf("%s/c%d", h.top, boundary.Add(1))
	h.cgroup(cgroup)
	return h.admitted(cgroup, identityOf(network, n, families))
}

func (h *host) admitted(cgroup string, id addrguard.Identity) *box {
	h.t.Helper()
	cg, err := h.Admit(h.t.Context(), cgroup, id)
	if err != nil {
		h.t.Fatal(err)
	}
	b := h.start(cgroup, h.spaces[id.Network])
	b.id, b.slot = cg, id.Slot
	b.addr4, b.addr6 = id.IPv4.String(), id.IPv6.String()
	return b
}

// start runs a process in a cgroup and a namespace; nobody admits it.
func (h *host) start(cgroup string, ns *netnstest.Namespace) *box {
	h.t.Helper()
	dir, err := os.Open(filepath.Join(h.opts.Cgroups, cgroup))
	if err != nil {
		h.t.Fatal(err)
	}
	defer dir.Close()
	inside := exec.Command("/proc/self/exe")
	inside.Env = append(os.Environ(), insideEnv+"=1")
	inside.Stderr = os.Stderr
	inside.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	in, err := inside.StdinPipe()
	if err != nil {
		h.t.Fatal(err)
	}
	out, err := inside.StdoutPipe()
	if err != nil {
		h.t.Fatal(err)
	}
	ns.Do(func() { err = inside.Start() })
	if err != nil {
		h.t.Fatal(err)
	}
	b := &box{t: h.t, client: rpc.NewClient(pipe{out, in}), cgroup: cgroup}
	h.t.Cleanup(func() {
		_ = b.client.Close() // the process ends with its standard input
		_ = inside.Wait()
	})
	return b
}

type pipe struct {
	io.ReadCloser
	in io.WriteCloser
}

func (p pipe) Write(b []byte) (int, error) { return p.in.Write(b) }
func (p pipe) Close() error                { return errors.Join(p.in.Close(), p.ReadCloser.Close()) }

// do makes a system call; an error of the kernel is in the answer.
func (b *box) do(c Call) Answer {
	b.t.Helper()
	var a Answer
	if err := b.client.Call("Inside.Do", c, &a); err != nil {
		b.t.Fatal(err)
	}
	return a
}

// must is do for a call that has to succeed.
func (b *box) must(c Call) Answer {
	b.t.Helper()
	a := b.do(c)
	if a.Err != 0 {
		b.t.Fatalf("%+v: %v", c, a.Err)
	}
	return a
}

// sock is a socket of a container.
type sock struct {
	*box
	fd int
}

const (
	tcp = unix.SOCK_STREAM
	udp = unix.SOCK_DGRAM
)

func (b *box) socket(family, kind int, proto ...int) sock {
	b.t.Helper()
	c := Call{Name: "socket", Family: family, Type: kind}
	if len(proto) > 0 {
		c.Proto = proto[0]
	}
	return sock{b, b.must(c).N}
}

// at is a socket bound to an address, or the error that bind gave.
func (b *box) at(kind int, addr string, options ...[3]int) (sock, unix.Errno) {
	b.t.Helper()
	family := unix.AF_INET
	if strings.HasPrefix(addr, "[") {
		family = unix.AF_INET6
	}
	s := b.socket(family, kind)
	for _, o := range options {
		s.must(Call{Name: "setsockopt", FD: s.fd, Proto: o[0], Opt: o[1], Value: o[2]})
	}
	return s, s.do(Call{Name: "bind", FD: s.fd, Addr: addr}).Err
}

// bound is at for an address that can be bound.
func (b *box) bound(kind int, addr string, options ...[3]int) sock {
	b.t.Helper()
	s, err := b.at(kind, addr, options...)
	if err != 0 {
		b.t.Fatalf("bind %s: %v", addr, err)
	}
	return s
}

// listening is a TCP server.
func (b *box) listening(addr string, options ...[3]int) sock {
	b.t.Helper()
	s := b.bound(tcp, addr, options...)
	s.must(Call{Name: "listen", FD: s.fd})
	return s
}

var v6only = [3]int{unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1}

func (s sock) connect(addr string) unix.Errno {
	s.t.Helper()
	return s.do(Call{Name: "connect", FD: s.fd, Addr: addr}).Err
}

func (s sock) name() string { s.t.Helper(); return s.must(Call{Name: "getsockname", FD: s.fd}).Addr }
func (s sock) peer() string { s.t.Helper(); return s.must(Call{Name: "getpeername", FD: s.fd}).Addr }

// accept gives the connection and the peer's address as accept tells it.
func (s sock) accept() (sock, string) {
	s.t.Helper()
	a := s.must(Call{Name: "accept", FD: s.fd})
	return sock{s.box, a.N}, a.Addr
}

// send sends a datagram, or on a connected socket if to is empty.
func (s sock) send(to, text string) unix.Errno {
	s.t.Helper()
	return s.do(Call{Name: "send", FD: s.fd, Addr: to, Text: text}).Err
}

// receive gives the text and from whom it came.
func (s sock) receive() (text, from string) {
	s.t.Helper()
	a := s.must(Call{Name: "receive", FD: s.fd})
	return a.Text, a.Addr
}

// received is receive in a test that goes on without.
func (s sock) received(what string) (text, from string) {
	s.t.Helper()
	a := s.do(Call{Name: "receive", FD: s.fd})
	if a.Err != 0 {
		s.t.Errorf("%s: receive: %v", what, a.Err)
	}
	return a.Text, a.Addr
}

func (s sock) close() { s.t.Helper(); s.must(Call{Name: "close", FD: s.fd}) }

// port is the number at the end of an address.
func port(t testing.TB, addr string) string {
	t.Helper()
	ap, err := netip.ParseAddrPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprint(ap.Port())
}

func expect[T comparable](t testing.TB, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s: %v, want %v", what, got, want)
	}
}
