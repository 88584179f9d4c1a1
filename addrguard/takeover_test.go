package addrguard_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/addrguard"
	"github.com/particle-net/particle/topology"
)

// stop ends hammer.
var stop atomic.Bool

// hammer tries, until halt, what the guard denies, and what it rewrites. The
// answer tells how often, and how often the guard was not there.
func hammer(c Call, a *Answer) error {
	for !stop.Load() {
		fd, err := unix.Socket(unix.AF_INET, udp|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		foreign, err := sockaddr(c.Addr)
		if err != nil {
			return err
		}
		if unix.Bind(fd, foreign) == nil {
			a.Text += "bound a neighbour's address; "
		}
		if unix.Bind(fd, &unix.SockaddrInet4{}) != nil || unix.Sendto(fd, nil, 0, &unix.SockaddrInet4{Port: 9, Addr: [4]byte{10, 77, 0, 9}}) != nil {
			a.Text += "lost its own; "
		}
		if name, err := unix.Getsockname(fd); err != nil || !strings.HasPrefix(show(name), "0.0.0.0:") {
			a.Text += "has name " + show(name) + "; "
		}
		_ = unix.Close(fd)
		a.N++
	}
	return nil
}

// programs are the ids of those that run, by the name of the link.
func (h *host) programs() map[string]uint32 {
	h.t.Helper()
	dir := filepath.Join(h.opts.Pins, "layout-1")
	entries, err := os.ReadDir(dir)
	if err != nil {
		h.t.Fatal(err)
	}
	ids := map[string]uint32{}
	for _, e := range entries {
		if !strings.Contains(e.Name(), "-") {
			continue
		}
		pinned, err := link.LoadPinnedLink(filepath.Join(dir, e.Name()), nil)
		if err != nil {
			h.t.Fatal(err)
		}
		info, err := pinned.Info()
		if err != nil {
			h.t.Fatal(err)
		}
		ids[e.Name()] = uint32(info.Program)
		_ = pinned.Close()
	}
	return ids
}

// A new version of the plugin takes over from one that was killed: what is in the
// kernel stays, and the programs change without a moment in which none runs.
func TestTakeOver(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	network := h.network(1, v4)
	a, b := h.box(network, 1, v4), h.box(network, 2, v4)
	server := a.bound(udp, "0.0.0.0:53")
	var hammered Answer
	done := b.client.Go("Inside.Do", Call{Name: "hammer", Addr: "10.77.0.1:0"}, &hammered, nil)
	for range 5 {
		before := h.programs()
		if err := h.Guard.Close(); err != nil {
			t.Fatal(err)
		}
		expect(t, "nobody holds it", b.confined("10.77.0.2"), true)
		expect(t, "a stranger", h.start(h.top, h.spaces[network]).refused(), unix.EPERM)
		// As if the version before had not known of marks.
		if err := os.Remove(filepath.Join(h.opts.Pins, "layout-1", "senders")); err != nil {
			t.Fatal(err)
		}
		h.open()
		after := h.programs()
		expect(t, "links", len(after), len(before))
		for name, id := range before {
			if after[name] == id || after[name] == 0 {
				t.Errorf("%s runs program %d, as before", name, id)
			}
		}
	}
	b.must(Call{Name: "halt"})
	<-done.Done
	if done.Error != nil || hammered.Text != "" || hammered.N == 0 || hammered.Err != 0 {
		t.Errorf("%d tries, %v %v: %s", hammered.N, done.Error, hammered.Err, hammered.Text)
	}
	n, err := h.Counters(b.id)
	if err != nil || n.BindsDenied < uint64(hammered.N) {
		t.Errorf("counters %+v, %v; want %d binds denied", n, err, hammered.N)
	}
	// Sockets from before, and the records, are as they were.
	exchange(t, "old server", b.socket(unix.AF_INET, udp), server, "10.77.0.1:53")
	if p := h.Protected(); len(p) != 1 || p[0] != network {
		t.Errorf("protected: %v", p)
	}
	expect(t, "a new one", h.box(network, 3, v4).confined("10.77.0.3"), true)
	if err := h.Unprotect(t.Context(), network); err != nil {
		t.Fatal(err)
	}
	expect(t, "after Unprotect", b.canBind("10.77.0.1"), true)
}

// Who unmounts the pins takes the guard from all containers that run. It is there again
// when it is looked at next, with all that was known.
func TestUnmountedPins(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	network := h.network(1, v4)
	a, b := h.box(network, 1, v4), h.box(network, 2, v4)
	before := h.programs()
	if err := unix.Unmount(h.opts.Pins, unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the programs go with the pins", func() bool { return b.canBind("10.77.0.1") })
	if err := h.Protect(t.Context(), network, false); err != nil {
		t.Fatal(err)
	}
	after := h.programs()
	expect(t, "links", len(after), len(before))
	for name := range before {
		if after[name] == 0 {
			t.Errorf("%s is not there again", name)
		}
	}
	expect(t, "one that runs", b.confined("10.77.0.2"), true)
	expect(t, "a stranger", h.start(h.top, h.spaces[network]).refused(), unix.EPERM)
	exchange(t, "a server", b.socket(unix.AF_INET, udp), a.bound(udp, "0.0.0.0:53"), "10.77.0.1:53")
	expect(t, "a new one", h.box(network, 3, v4).confined("10.77.0.3"), true)
	// What the next version takes over is all of it.
	if err := h.Guard.Close(); err != nil {
		t.Fatal(err)
	}
	h.open()
	expect(t, "after another start", b.confined("10.77.0.2"), true)
}

// pinAs pins a link under a name with program replaced instead, if it is one of that
// program.
func (h *host) pinAs(name, program, other string) {
	h.t.Helper()
	rest, ok := strings.CutSuffix(name, "-"+program)
	if !ok {
		return
	}
	dir := filepath.Join(h.opts.Pins, "layout-1")
	pinned, err := link.LoadPinnedLink(filepath.Join(dir, name), nil)
	if err != nil {
		h.t.Fatal(err)
	}
	defer pinned.Close()
	if err := pinned.Pin(filepath.Join(dir, rest+"-"+other)); err != nil {
		h.t.Fatal(err)
	}
}

// What hangs on nothing any more, and what this version does not know, goes.
func TestTakeOverClears(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	network := h.network(1, v4)
	a := h.box(network, 1, v4)
	gone := h.top + "gone"
	if err := os.Mkdir(h.opts.Cgroups+gone, 0o755); err != nil {
		t.Fatal(err)
	}
	id, err := h.Admit(t.Context(), gone, identityOf(network, 2, v4))
	if err != nil {
		t.Fatal(err)
	}
	want := h.programs()
	for name := range want {
		if !strings.Contains(name, cgroupName(id)) {
			h.pinAs(name, "bind4", "forgotten")
			if devicesSince(t) {
				h.pinAs(name, "bind6", "egress") // devices do its work
			}
			h.pinAs(name, "lo-steer", "lo-ping")
		}
		if strings.Contains(name, cgroupName(id)) {
			delete(want, name)
		}
	}
	if err := os.Remove(h.opts.Cgroups + gone); err != nil {
		t.Fatal(err)
	}
	if err := h.Guard.Close(); err != nil {
		t.Fatal(err)
	}
	h.open()
	if err := h.Protect(t.Context(), network, false); err != nil {
		t.Fatal(err)
	}
	have := h.programs()
	for name := range have {
		if _, ok := want[name]; !ok {
			t.Errorf("%s is still there", name)
		}
		delete(want, name)
	}
	if len(want) > 0 {
		t.Errorf("missing: %v", want)
	}
	expect(t, "guarded", a.confined("10.77.0.1"), true)
}

func cgroupName(id topology.CgroupID) string {
	return "anchor-" + fmt.Sprint(uint64(id)) + "-"
}

// Two processes may admit at once; each anchor gets its programs once.
func TestConcurrentGuards(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	other, err := addrguard.Open(t.Context(), h.opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = other.Close() })
	network := h.network(1, v4)
	errs := make(chan error)
	for n := range 20 {
		cgroup := h.top + "/" + fmt.Sprint(n)
		h.cgroup(cgroup)
		guard := []*addrguard.Guard{h.Guard, other}[n%2]
		go func() {
			_, err := guard.Admit(t.Context(), cgroup, identityOf(network, n+1, v4))
			errs <- err
		}()
	}
	for range 20 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	all, err := h.Admitted()
	if err != nil || len(all) != 20 {
		t.Errorf("%d admitted, %v", len(all), err)
	}
	expect(t, "guarded", h.start(h.top+"/19", h.spaces[network]).confined("10.77.0.20"), true)
}
