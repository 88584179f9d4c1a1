package shim

import (
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/particle-net/particle/internal/holder"
	"github.com/particle-net/particle/internal/runtimeapi"
)

// A container whose system calls are answered is so from its first process on, as are
// those that join it; its addresses are told before it starts, and forgotten.
func TestSupervised(t *testing.T) {
	w := newWorld(t)
	p := w.plugin()
	place := w.placement()
	place.Supervised = true
	p.answer(place, "")
	p.claimed = &runtimeapi.Addresses{Namespace: place.Namespace, IPv4: netip.MustParseAddr("10.77.0.9"),
		Loopback4: netip.MustParseAddr("127.0.1.0"), Loopback6: netip.MustParseAddr("fdb9::1")}
	t.Cleanup(w.endHolder)
	w.container(webID, "jobs", `"jobs":null`, "")
	w.container(sideID, "container:"+webID, "", "")
	w.bundle(sideID, w.spec(webID, "", `{"type":"network","path":"`+w.path("netns/"+network)+`"}`))
	const label = `"net.particle.guard":"seccomp"`
	if r := w.create(webID); r.code != 0 || !strings.Contains(w.read("moby/"+webID+"/config.json"), label) {
		t.Fatalf("%+v\n%s", r, w.read("moby/"+webID+"/config.json"))
	}
	pid, start, _ := running(t)
	w.state(webID, pid, start, append(w.owner(), annotationGuard+"="+guardSeccomp)...)
	if r := w.run(nil, "--root", w.path("root"), "start", webID); r.code != 0 {
		t.Fatalf("%+v", r)
	}
	want := `{"namespace":"` + place.Namespace + `","ipv4":"10.77.0.9","loopback4":"127.0.1.0","loopback6":"fdb9::1"}`
	if diff := cmp.Diff(want, w.read("holder/"+webID)); diff != "" {
		t.Errorf("told: -want +got\n%s", diff)
	}
	if r := w.create(sideID); r.code != 0 || !strings.Contains(w.read("moby/"+sideID+"/config.json"), label) {
		t.Errorf("a joiner: %+v\n%s", r, w.read("moby/"+sideID+"/config.json"))
	}
	// The runtime finds itself under the filter; the script makes no call that waits.
	if n := filters(t, w.run([]string{"RUNC_FILTERS=1"}, "--root", w.path("root"), "exec", webID, "true").stdout); n == 0 {
		t.Error("exec: no filter")
	}
	if r := w.run(nil, "--root", w.path("root"), "delete", "--force", webID); r.code != 0 {
		t.Fatalf("%+v", r)
	}
	if _, err := holder.Count(w.path("holder")); err != nil {
		t.Error(err)
	}
	if text := w.list("holder"); strings.Contains(text, webID) {
		t.Errorf("left: %s", text)
	}
}

// A guard that was changed between create and start is none: the one begins with the
// first process, the other when the address is claimed.
func TestChangedGuard(t *testing.T) {
	w := newWorld(t)
	p := w.plugin()
	w.container(webID, "jobs", `"jobs":null`, "")
	addresses := &runtimeapi.Addresses{Namespace: "/n"}
	for _, c := range []struct {
		claimed *runtimeapi.Addresses
		labels  []string
		ok      bool
	}{
		{nil, nil, true},
		{addresses, nil, false},
		{nil, []string{annotationGuard + "=" + guardSeccomp}, false},
	} {
		pid, start, _ := running(t)
		p.mu.Lock()
		p.claimed = c.claimed
		p.mu.Unlock()
		w.state(webID, pid, start, append(w.owner(), c.labels...)...)
		r := w.run(nil, "--root", w.path("root"), "start", webID)
		if c.ok != (r.code == 0) || !c.ok && !strings.Contains(r.stderr, "the address guard of its network was changed meanwhile; start it again") {
			t.Errorf("claimed %v, created with %v: %+v", c.claimed, c.labels, r)
		}
	}
}

func (w *world) endHolder() {
	for {
		held, err := holder.Count(w.path("holder"))
		if err != nil {
			w.t.Error(err)
			return
		}
		if len(held) > 0 {
			continue // the kernel tells it of the end of processes in a moment
		}
		if err := holder.End(w.path("holder")); err == nil {
			return
		}
	}
}

func (w *world) list(dir string) string {
	entries, err := os.ReadDir(w.path(dir))
	if err != nil {
		w.t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return strings.Join(names, " ")
}
