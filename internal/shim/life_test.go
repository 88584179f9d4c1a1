package shim

import (
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/particle-net/particle/internal/runtimeapi"
)

// running starts a program that lives until the test ends or kill is called.
func running(t *testing.T) (pid int, start uint64, kill func()) {
	t.Helper()
	cmd := exec.Command("cat")
	if _, err := cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	kill = func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
	t.Cleanup(kill)
	raw, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(cmd.Process.Pid), "stat"))
	if err != nil {
		t.Fatal(err)
	}
	start, err = strconv.ParseUint(strings.Fields(string(raw[strings.LastIndexByte(string(raw), ')')+1:]))[19], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return cmd.Process.Pid, start, kill
}

func TestStartClaims(t *testing.T) {
	w := newWorld(t)
	p := w.plugin()
	w.container(webID, "jobs", `"jobs":null`, "")
	w.state(webID, 7, 1, w.owner()...)
	w.host.Proc = w.path("proc")
	w.write("proc/7/cgroup", "1:name=systemd:/\n0::/docker/"+webID+"\n")
	w.write("proc/self/cgroup", "0::/system.slice\n")
	w.passed(w.run(nil, "--root", w.path("root"), "start", webID), "--root", w.path("root"), "start", webID)
	want := []runtimeapi.Request{{Claim: &runtimeapi.Claim{
		Container: webID, Name: "web", Network: network, Pid: 7, Cgroup: "/docker/" + webID, Hostname: "w1",
		Hosts: []runtimeapi.HostLine{
			{Addr: netip.MustParseAddr("127.0.0.1"), Names: []string{"localhost"}},
			{Addr: netip.MustParseAddr("10.77.0.9"), Names: []string{"w1"}},
		},
	}}}
	if diff := cmp.Diff(want, p.questions(), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
}

func TestStartOfAJoinerClaims(t *testing.T) {
	w := newWorld(t)
	p := w.plugin()
	w.container(webID, "jobs", `"jobs":null`, "")
	w.container(sideID, "container:"+webID, "", "")
	w.state(sideID, 7, 1, w.joiner()...)
	w.host.Proc = w.path("proc")
	w.write("proc/7/cgroup", "0::/docker/"+sideID+"\n")
	w.write("proc/self/cgroup", "0::/system.slice\n")
	w.passed(w.run(nil, "--root", w.path("root"), "start", sideID), "--root", w.path("root"), "start", sideID)
	want := []runtimeapi.Request{{Claim: &runtimeapi.Claim{
		Container: sideID, Name: "web", Network: network, Pid: 7, Cgroup: "/docker/" + sideID, Hostname: "w1", Join: webID,
		Hosts: []runtimeapi.HostLine{},
	}}}
	if diff := cmp.Diff(want, p.questions()); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
}

// One that earlier versions put into the namespace would run unclaimed.
func TestStartOfAnIncompleteJoinerFails(t *testing.T) {
	w := newWorld(t)
	p := w.plugin()
	pid, start, _ := running(t)
	w.state(sideID, pid, start)
	w.write("root/"+sideID+"/exec.fifo", "")
	r := w.run(nil, "--root", w.path("root"), "start", sideID)
	if want := "start container bbbb456789ab: it was created by another version of particle-runtime; start it again"; r.code != 1 || !strings.Contains(r.stderr, want) {
		t.Errorf("%+v", r)
	}
	if waitingEnds(t, &state{pid: pid, start: start}, true) || len(p.questions()) != 0 {
		t.Error("its process was left, or the plugin asked")
	}
}

func TestStartFailsWithTheClaim(t *testing.T) {
	w := newWorld(t)
	w.container(webID, "jobs", `"jobs":null`, "")
	w.state(webID, os.Getpid(), 1, w.owner()...)
	start := func() result {
		return w.run(nil, "--log", w.path("log.json"), "--log-format", "json", "--root", w.path("root"), "start", webID)
	}
	if r := start(); r.code != 1 || !strings.HasPrefix(w.logged(), "start container web: its network is a particle network, and the particle plugin does not answer: ") {
		t.Errorf("without the plugin: %+v", r)
	}
	w.plugin().answer(w.placement(), "address 10.77.0.9: held by another container; remove that")
	if r := start(); r.code != 1 || w.logged() != "start container web: address 10.77.0.9: held by another container; remove that" {
		t.Errorf("%+v", r)
	}
}

// The process that waits for the start is ended with it; one that runs is not.
func TestStartEndsWhatItFails(t *testing.T) {
	w := newWorld(t)
	w.container(webID, "jobs", `"jobs":null`, "")
	pid, start, _ := running(t)
	w.state(webID, pid, start, w.owner()...)
	s := &state{pid: pid, start: start}
	for _, waits := range []bool{false, true} {
		if waits {
			w.write("root/"+webID+"/exec.fifo", "")
		}
		if r := w.run(nil, "--root", w.path("root"), "start", webID); r.code != 1 {
			t.Fatalf("%+v", r)
		}
		if alive := waitingEnds(t, s, waits); alive == waits {
			t.Errorf("waits %v: alive %v", waits, alive)
		}
	}
}

// waitingEnds reports whether the process lives; if it must end, it waits for
// the zombie that the signal leaves.
func waitingEnds(t *testing.T, s *state, must bool) bool {
	t.Helper()
	if !must {
		return s.alive("/proc")
	}
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	for range 1000 {
		if !s.alive("/proc") {
			return false
		}
		<-ticker.C
	}
	return true
}

func TestStartOfOthersAsksNobody(t *testing.T) {
	w := newWorld(t)
	p := w.plugin()
	w.write("root/"+webID+"/state.json", `{"init_process_pid":1,"config":{"namespaces":[{"type":"NEWNET"}]}}`)
	for _, id := range []string{webID, "none", "../root/" + webID} {
		w.passed(w.run(nil, "--root", w.path("root"), "start", id), "--root", w.path("root"), "start", id)
	}
	if got := p.questions(); len(got) != 0 {
		t.Errorf("the plugin was asked %+v", got)
	}
}

// What cannot be read may be ours: it neither starts nor gets another process.
func TestUnreadableIsNotPassed(t *testing.T) {
	w := newWorld(t)
	unreadable := func(path string) {
		if err := errors.Join(os.RemoveAll(w.path(path)), os.MkdirAll(w.path(path), 0o755)); err != nil {
			t.Fatal(err)
		}
	}
	unreadable("root/" + webID + "/state.json")
	for _, command := range []string{"start", "exec"} {
		if r := w.run(nil, "--root", w.path("root"), command, webID); r.code == 0 || !strings.Contains(r.stderr, "is a directory") {
			t.Errorf("%s: %+v", command, r)
		}
	}
	w.container(webID, "jobs", `"jobs":null`, "")
	unreadable("moby/" + webID + "/config.json")
	if r := w.create(webID); r.code != 1 || !strings.Contains(r.stderr, "is a directory") {
		t.Errorf("create: %+v", r)
	}
}

func TestCgroup(t *testing.T) {
	w := newWorld(t)
	h := &Host{Proc: w.path("proc")}
	for _, c := range []struct{ own, process, want string }{
		{"1:cpu:/a\n0::/\n", "1:cpu:/docker/x\n0::/docker/x\n", "/docker/x"},
		{"0::/system.slice/docker.service\n", "0::/system.slice/docker-x.scope\n", "/system.slice/docker-x.scope"},
		{"0::/system.slice/docker.service\n", "1:cpu:/docker/x\n0::/system.slice/docker.service\n", ""}, // runtime on v1 only
		{"0::/\n", "0::/\n", ""},
		{"1:cpu:/\n", "1:cpu:/docker/x\n", ""},
	} {
		w.write("proc/self/cgroup", c.own)
		w.write("proc/7/cgroup", c.process)
		if got, err := h.cgroup(7); got != c.want || err != nil {
			t.Errorf("%q beside %q: %q, %v; want %q", c.process, c.own, got, err, c.want)
		}
	}
	if _, err := h.cgroup(8); err == nil {
		t.Error("a process that is gone has a cgroup")
	}
}

func TestExecConfines(t *testing.T) {
	w := newWorld(t)
	const process = `{"args":["sh"],"capabilities":{"bounding":["CAP_NET_RAW","CAP_KILL"]}}`
	w.state(webID, 1, 1)
	w.write("root/"+sideID+"/state.json", `{"config":{"namespaces":[{"type":"NEWNET"}]}}`)
	for id, want := range map[string]string{
		webID:  `{"args":["sh"],"capabilities":{"bounding":["CAP_KILL"]}}`,
		sideID: process,
		"none": process,
	} {
		w.write("p.json", process)
		w.passed(w.run(nil, "--root", w.path("root"), "exec", "-p", w.path("p.json"), "-d", id),
			"--root", w.path("root"), "exec", "-p", w.path("p.json"), "-d", id)
		if diff := cmp.Diff(want, w.read("p.json")); diff != "" {
			t.Errorf("%s: -want +got\n%s", id, diff)
		}
	}
	w.passed(w.run(nil, "--root", w.path("root"), "exec", "--cap", "CAP_NET_RAW", webID, "sh"), "--root", w.path("root"), "exec", webID, "sh")
	w.passed(w.run(nil, "--root", w.path("root"), "exec", "--cap", "CAP_NET_RAW", sideID, "sh"), "--root", w.path("root"), "exec", "--cap", "CAP_NET_RAW", sideID, "sh")
	w.write("p.json", "{")
	if r := w.run(nil, "--root", w.path("root"), "exec", "-p", w.path("p.json"), webID); r.code != 255 || r.stdout != "" {
		t.Errorf("an unreadable process was run: %+v", r)
	}
}

func TestDeleteReleasesBeforeTheRuntimeWhenAllIsGone(t *testing.T) {
	w := newWorld(t)
	p := w.plugin()
	pid, start, kill := running(t)
	kill()
	w.state(webID, pid, start, w.owner()...)
	w.write("resolv/"+webID, "")
	r := w.run([]string{"RUNC_PROBE=" + w.path("resolv/"+webID)}, "--root", w.path("root"), "delete", webID)
	w.passed(r, "--root", w.path("root"), "delete", webID)
	released(t, p, webID)
	if !strings.HasPrefix(r.stdout, "probe absent") {
		t.Errorf("released after the runtime: %s", r.stdout)
	}
}

func TestDeleteReleasesAfterTheRuntimeWhenAlive(t *testing.T) {
	w := newWorld(t)
	p := w.plugin()
	pid, start, _ := running(t)
	w.state(webID, pid, start, w.owner()...)
	w.write("resolv/"+webID, "")
	probe := "RUNC_PROBE=" + w.path("resolv/"+webID)
	args := []string{"--root", w.path("root"), "delete", "--force", webID}
	r := w.run([]string{probe, "RUNC_EXIT=3", "RUNC_STDERR=not stopped"}, args...)
	if r.code != 3 || r.stderr != "not stopped\n" || len(p.questions()) != 0 {
		t.Fatalf("the runtime failed: %+v, plugin asked %+v", r, p.questions())
	}
	r = w.run([]string{probe}, args...)
	w.passed(r, args...)
	released(t, p, webID)
	if !strings.HasPrefix(r.stdout, "probe present") {
		t.Errorf("released before the runtime: %s", r.stdout)
	}
	if _, err := os.Stat(w.path("resolv/" + webID)); err == nil {
		t.Error("resolv.conf is left")
	}
}

func TestDeleteReleasesAJoiner(t *testing.T) {
	w := newWorld(t)
	p := w.plugin()
	w.state(sideID, 1<<30, 1, w.joiner()...)
	w.passed(w.run(nil, "--root", w.path("root"), "delete", sideID), "--root", w.path("root"), "delete", sideID)
	released(t, p, sideID)
}

// The pid of a container that is gone may belong to another process by now.
func TestDeleteIsNotFooledByAReusedPid(t *testing.T) {
	pid, start, _ := running(t)
	s := &state{pid: pid, start: start}
	if !s.alive("/proc") {
		t.Error("a living process is taken for dead")
	}
	s.start++
	if s.alive("/proc") {
		t.Error("another process with the pid is taken for the container's")
	}
}

func TestDeleteOfOthers(t *testing.T) {
	w := newWorld(t)
	p := w.plugin()
	w.write("root/"+webID+"/state.json", `{"config":{"namespaces":[{"type":"NEWNET"}]}}`)
	for _, id := range []string{webID, "none"} {
		w.passed(w.run(nil, "--root", w.path("root"), "delete", id), "--root", w.path("root"), "delete", id)
	}
	if got := p.questions(); len(got) != 0 {
		t.Errorf("the plugin was asked %+v", got)
	}
}

// The runtime removes its state when `create` fails half-way, and containerd
// deletes all the same.
func TestDeleteAfterAFailedCreate(t *testing.T) {
	w := newWorld(t)
	p := w.plugin()
	w.write("resolv/"+webID, "")
	w.passed(w.run(nil, "delete", "--force", webID), "delete", "--force", webID)
	released(t, p, webID)
}

func TestDeleteWaitsForNoPlugin(t *testing.T) {
	w := newWorld(t)
	w.state(webID, 1<<30, 1, w.owner()...)
	w.passed(w.run(nil, "--root", w.path("root"), "delete", webID), "--root", w.path("root"), "delete", webID)
}

func released(t *testing.T, p *plugin, id string) {
	t.Helper()
	asked := p.questions()
	if len(asked) != 1 || asked[0].Release == nil || string(asked[0].Release.Container) != id {
		t.Errorf("the plugin was asked %+v, want the release of %s", asked, id)
	}
}
