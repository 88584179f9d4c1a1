package addrguard_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/topology"
)

// slice makes one of systemd's, with a service of the host in it.
func (h *host) slice() (slice, service string) {
	slice = h.top + ".slice"
	h.cgroup(slice)
	h.cgroup(slice + "/ssh.service")
	return slice, slice + "/ssh.service"
}

// idOf is a cgroup's.
func (h *host) idOf(cgroup string) topology.CgroupID {
	h.t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(h.opts.Cgroups+cgroup, &st); err != nil {
		h.t.Fatal(err)
	}
	return topology.CgroupID(st.Ino)
}

// hanging are the programs that hang on a cgroup.
func (h *host) hanging(id topology.CgroupID) map[string]bool {
	h.t.Helper()
	found := map[string]bool{}
	for name := range h.programs() {
		if program, ok := strings.CutPrefix(name, cgroupName(id)); ok {
			found[program] = true
		}
	}
	return found
}

// A slice of systemd's holds services of the host beside containers: these have no more
// of the guard than that they get no socket in a container's namespace.
// "Where systemd makes the cgroups of containers, services of the host in the same slice
// pay for one program when they make a socket."
func TestSlices(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	network := h.network(1, v4)
	slice, service := h.slice()
	for n, scope := range []string{"/docker-1.scope", "/docker-2.scope"} {
		h.cgroup(slice + scope)
		b := h.admitted(slice+scope, identityOf(network, n+1, v4))
		expect(t, "guarded in "+scope, b.confined(b.addr4), true)
		name := unixSocket(b, unix.SOCK_STREAM)
		name.must(Call{Name: "bind", FD: name.fd, Addr: "@" + scope})
		name.must(Call{Name: "listen", FD: name.fd})
	}
	gate := h.hanging(h.idOf(slice))
	expect(t, "programs on the slice", len(gate), 1)
	expect(t, "the one for socket(2)", gate["sock_create"], true)
	anchor := h.hanging(h.idOf(slice + "/docker-1.scope"))
	expect(t, "a program on the container", anchor["bind4"], true)
	expect(t, "that of the slice on the container", anchor["sock_create"], false)
	expect(t, "a service in the container's namespace", h.start(service, h.spaces[network]).refused(), unix.EPERM)
	// "(where systemd makes the cgroups, the former alone"
	expect(t, "a service and a container's name", unixSocket(h.start(service, h.spaces[network]), unix.SOCK_STREAM).connect("@/docker-1.scope"), 0)
	expect(t, "a service elsewhere", h.start(service, tenant(t, v4)).canBind("10.77.0.1"), true)

	// A slice may lie in another, and something that is none in a slice.
	h.cgroup(slice + "/deep.slice")
	h.cgroup(slice + "/deep.slice/docker")
	h.cgroup(slice + "/deep.slice/docker/3")
	deep := h.admitted(slice+"/deep.slice/docker/3", identityOf(network, 3, v4))
	expect(t, "guarded deep below", deep.confined("10.77.0.3"), true)
	expect(t, "programs on the slice in between", len(h.hanging(h.idOf(slice+"/deep.slice"))), 0)
	expect(t, "on what is no slice", h.hanging(h.idOf(slice + "/deep.slice/docker"))["bind4"], true)
}

// Versions that attached everything to the slice are taken over from without a moment
// in which a container is not guarded, and what it holds too much goes.
func TestTakeOverOfSlices(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	network := h.network(1, v4)
	slice, service := h.slice()
	scope := slice + "/docker-1.scope"
	h.cgroup(scope)
	b := h.admitted(scope, identityOf(network, 1, v4))
	id, top := h.idOf(scope), h.idOf(slice)
	want := h.hanging(id)
	dir := filepath.Join(h.opts.Pins, "layout-1")
	for program := range want {
		h.hangOn(slice, filepath.Join(dir, cgroupName(id)+program), filepath.Join(dir, cgroupName(top)+program))
		if err := os.Remove(filepath.Join(dir, cgroupName(id)+program)); err != nil {
			t.Fatal(err)
		}
	}
	expect(t, "guarded by the version before", b.confined("10.77.0.1"), true)
	if err := h.Guard.Close(); err != nil {
		t.Fatal(err)
	}
	h.open()
	for program := range want {
		expect(t, program+" on the container", h.hanging(id)[program], true)
	}
	expect(t, "programs on the slice", len(h.hanging(top)), 1)
	expect(t, "guarded", b.confined("10.77.0.1"), true)
	expect(t, "a stranger", h.start(service, h.spaces[network]).refused(), unix.EPERM)
}

// hangOn attaches the program of a link to a cgroup and pins the new link.
func (h *host) hangOn(cgroup, from, to string) {
	h.t.Helper()
	old, err := link.LoadPinnedLink(from, nil)
	if err != nil {
		h.t.Fatal(err)
	}
	defer old.Close()
	info, err := old.Info()
	if err != nil {
		h.t.Fatal(err)
	}
	prog, err := ebpf.NewProgramFromID(info.Program)
	if err != nil {
		h.t.Fatal(err)
	}
	defer prog.Close()
	at, err := os.Open(h.opts.Cgroups + cgroup)
	if err != nil {
		h.t.Fatal(err)
	}
	defer at.Close()
	made, err := link.AttachRawLink(link.RawLinkOptions{Target: int(at.Fd()), Program: prog, Attach: ebpf.AttachType(info.Cgroup().AttachType)})
	if err != nil {
		h.t.Fatal(err)
	}
	defer made.Close()
	if err := made.Pin(to); err != nil {
		h.t.Fatal(err)
	}
}

// Containers come and go: nothing of one that is gone stays, and one that was expelled
// before its processes ended stays guarded with the sockets that it has.
func TestScopesLeave(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	network := h.network(1, v4)
	slice, _ := h.slice()
	var ids []topology.CgroupID
	for n, name := range []string{"/docker-1.scope", "/docker-2.scope"} {
		path := h.opts.Cgroups + slice + name
		if err := os.Mkdir(path, 0o755); err != nil {
			t.Fatal(err)
		}
		id, err := h.Admit(t.Context(), slice+name, identityOf(network, n+1, v4))
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, id)
	}
	h.cgroup(slice + "/docker-3.scope")
	stays := h.admitted(slice+"/docker-3.scope", identityOf(network, 3, v4))
	socket := stays.socket(unix.AF_INET, tcp)
	for _, id := range append([]topology.CgroupID{stays.id}, ids[0]) {
		if err := h.Expel(id); err != nil {
			t.Fatal(err)
		}
	}
	expect(t, "bind of a neighbour's address by one that was expelled", stays.do(Call{Name: "bind", FD: socket.fd, Addr: "10.77.0.2:80"}).Err, unix.EPERM)
	for _, name := range []string{"/docker-1.scope", "/docker-2.scope"} {
		if err := os.Remove(h.opts.Cgroups + slice + name); err != nil {
			t.Fatal(err)
		}
	}
	if err := h.Expel(ids[1]); err != nil {
		t.Fatal(err)
	}
	for _, id := range ids {
		expect(t, "programs of one that is gone", len(h.hanging(id)), 0)
	}
}
