package shim

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/particle-net/particle/internal/lab"
	"github.com/particle-net/particle/internal/netnstest"
)

// filters is how many filters of system calls a text of /proc/PID/status tells of.
func filters(t *testing.T, status string) int {
	t.Helper()
	_, after, _ := strings.Cut(status, "Seccomp_filters:")
	number, _, _ := strings.Cut(after, "\n")
	n, err := strconv.Atoi(strings.TrimSpace(number))
	if err != nil {
		t.Fatalf("%v in %q", err, status)
	}
	return n
}

// What is in a tenant namespace runs under the filter, from its first process on;
// nothing else does.
func TestConfinement(t *testing.T) {
	w := newWorld(t)
	w.plugin()
	run := func(args ...string) int {
		t.Helper()
		r := w.run([]string{"RUNC_FILTERS=1"}, append([]string{"--root", w.path("root")}, args...)...)
		if r.code != 0 {
			t.Fatalf("%+v", r)
		}
		return filters(t, r.stdout)
	}
	before := run("features")
	confined := before + 1
	w.container(webID, "jobs", `"jobs":null`, "")
	w.container(sideID, "container:"+webID, "", "")
	w.bundle(sideID, w.spec(webID, "", `{"type":"network","path":"`+w.path("netns/"+network)+`"}`))
	w.state(webID, 7, 1, w.owner()...)
	w.write("process.json", `{}`)
	for name, c := range map[string]struct{ got, want int }{
		"create":         {run("create", "--bundle", w.path("moby/"+webID), webID), confined},
		"create joiner":  {run("create", "--bundle", w.path("moby/"+sideID), sideID), confined},
		"exec":           {run("exec", "--process", w.path("process.json"), webID), confined},
		"exec by hand":   {run("exec", webID, "true"), confined},
		"exec elsewhere": {run("exec", "--process", w.path("process.json"), sideID), before},
	} {
		if c.got != c.want {
			t.Errorf("%s: %d filters, want %d", name, c.got, c.want)
		}
	}
	w.label(webID, ownNamespace)
	w.bundle(webID, w.spec(webID, "", `{"type":"network"}`))
	if got := run("create", "--bundle", w.path("moby/"+webID), webID); got != before {
		t.Errorf("a namespace of its own: %d filters, want %d", got, before)
	}
}

// Where the runtime knows version 1 of cgroups alone, the shim makes the cgroup by
// which the guard knows a container, for its first process and for later ones.
func TestOwnCgroup(t *testing.T) {
	root := ""
	for _, path := range []string{"/sys/fs/cgroup/unified", "/sys/fs/cgroup"} {
		if _, err := os.Stat(filepath.Join(path, "cgroup.procs")); root == "" && err == nil {
			root = path
		}
	}
	netnstest.Require(t, root != "" && os.Geteuid() == 0, "root and a mounted cgroup v2")
	w := newWorld(t)
	w.plugin()
	w.host.Cgroups = filepath.Join(root, "particle-shim-"+strconv.Itoa(os.Getpid()))
	if err := os.Mkdir(w.host.Cgroups, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, dir := range []string{"/particle/" + webID, "/particle", ""} {
			if err := os.Remove(w.host.Cgroups + dir); err != nil && !os.IsNotExist(err) {
				t.Error(err)
			}
		}
	})
	w.container(webID, "jobs", `"jobs":null`, "")
	w.state(webID, 7, 1, w.owner()...)
	for _, args := range [][]string{{"create", "--bundle", w.path("moby/" + webID), webID}, {"exec", webID, "true"}} {
		r := w.run([]string{"RUNC_CGROUP=1"}, append([]string{"--root", w.path("root")}, args...)...)
		if want := "/particle/" + webID + "\n"; r.code != 0 || !strings.Contains(r.stdout, want) {
			t.Errorf("%s: %+v, want the runtime in %s", args[0], r, want)
		}
	}
	if r := w.run(nil, "--root", w.path("root"), "delete", webID); r.code != 0 {
		t.Errorf("%+v", r)
	}
	if _, err := os.Stat(w.host.Cgroups + "/particle/" + webID); !os.IsNotExist(err) {
		t.Errorf("the cgroup is left: %v", err)
	}
}

// The filter stands beside the container's own profile, or alone.
func (e *engine) testConfinement(t *testing.T) {
	for _, profile := range [][]string{nil, {"--security-opt", "seccomp=unconfined"}} {
		count := map[string]int{}
		for _, network := range []string{"plain", "jobs"} {
			run := append([]string{"run", "-d", "--network", network}, profile...)
			id := e.docker(t, append(run, lab.TestImage, "sleep", "600")...)
			count[network] = filters(t, e.docker(t, "exec", id, "cat", "/proc/1/status"))
			if got := filters(t, e.docker(t, "exec", id, "cat", "/proc/self/status")); got != count[network] {
				t.Errorf("network %s, profile %v: %d filters in exec, %d in the first process", network, profile, got, count[network])
			}
			e.docker(t, "rm", "-f", id)
		}
		if count["jobs"] != count["plain"]+1 {
			t.Errorf("profile %v: filters %v", profile, count)
		}
	}
}
