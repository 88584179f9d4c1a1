package shim

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/particle-net/particle/internal/runtimeapi"
)

// mounted adds a mount to a specification.
func mounted(mount string) func(string) string {
	return func(spec string) string { return strings.Replace(spec, `"mounts":[`, `"mounts":[`+mount+`,`, 1) }
}

// Whoever can write to the host's proc or cgroups does not share a namespace. The
// proc that is mounted is the machine's, and what the table of mounts says of
// others is made up.
func TestMountsThatCannotBeShared(t *testing.T) {
	w := newWorld(t)
	for _, dir := range []string{"data", "host/sys/fs/cgroup", "host/hybrid unified", "nothing/below", "fake/self"} {
		if err := os.MkdirAll(w.path(dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, target := range map[string]string{"link": "/proc/sys", "data/away": w.path("host")} {
		if err := os.Symlink(target, w.path(name)); err != nil {
			t.Fatal(err)
		}
	}
	w.write("data/file", "")
	w.write("fake/self/mountinfo", "22 1 0:21 / "+w.path("host/sys/fs/cgroup")+" rw,relatime shared:9 - cgroup2 cgroup2 rw\n"+
		"23 1 0:22 / "+strings.ReplaceAll(w.path("host/hybrid unified"), " ", `\040`)+" rw - proc proc rw\n"+
		"24 1 0:23 / "+w.path("nothing/below")+" rw - sysfs sysfs rw\n")
	bind := func(source, options string) string {
		return `{"destination":"/x","source":"` + source + `","type":"bind","options":["` + strings.ReplaceAll(options, " ", `","`) + `"]}`
	}
	h := Host{Proc: w.path("fake")}
	for _, c := range []struct {
		name, mount string
		want        bool
	}{
		{"proc", bind("/proc", "rbind"), true},
		{"a part of proc", bind("/proc/sys/net/ipv4", "bind rw"), true},
		{"a file of proc", bind("/proc/sys/net/ipv4/ip_forward", "rbind"), true},
		{"a link to proc", bind(w.path("link"), "rbind rprivate"), true},
		{"proc, read-only", bind("/proc", "rbind ro"), false},
		{"a parent", bind(w.path("host/sys"), "rbind"), true},
		{"a parent, read-only at the top", bind(w.path("host/sys"), "rbind ro rslave"), true},
		{"a parent, read-only", bind(w.path("host/sys"), "rbind ro rro"), false},
		{"a parent without what is below", bind(w.path("host/sys"), "bind"), false},
		{"a parent of one with a space", bind(w.path("host/"), "rbind"), true},
		{"a link to a parent", bind(w.path("data/away"), "rbind"), true},
		{"all", bind("/", "rbind"), true},
		{"a way around", bind(w.path("containers/"+webID)+"/../../host/sys", "rbind"), true},
		{"other systems below", bind(w.path("nothing"), "rbind"), false},
		{"a name that begins alike", bind(w.path("host/sys/fs/cg"), "rbind"), false},
		{"data", bind(w.path("data"), "rbind"), false},
		{"a file", bind(w.path("data/file"), "rbind"), false},
		{"none there", bind(w.path("data/none"), "rbind"), false},
		{"cgroups", `{"destination":"/sys/fs/cgroup","type":"cgroup","source":"cgroup","options":["nosuid","rw"]}`, true},
		{"cgroups, read-only", `{"destination":"/sys/fs/cgroup","type":"cgroup","source":"cgroup","options":["ro"]}`, false},
		{"proc elsewhere", `{"destination":"/p","type":"proc","source":"proc"}`, true},
		{"its own proc", `{"destination":"/proc","type":"proc","source":"proc","options":["nosuid"]}`, false},
		{"shared memory", `{"destination":"/dev/shm","type":"bind","source":"` + w.path("containers/"+webID) + `/mounts/shm","options":["rbind"]}`, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			w.container(webID, "jobs", `"jobs":null`, "")
			w.bundle(webID, mounted(c.mount)(w.read("moby/"+webID+"/config.json")))
			b, ours, err := openBundle(Call{ID: webID, Bundle: w.path("moby/" + webID)})
			if err != nil || !ours {
				t.Fatal(ours, err)
			}
			found := h.exposure(b)
			if got := found != nil; got != c.want {
				t.Errorf("found %+v", found)
			}
			if found == nil {
				return
			}
			b.exposed = found
			if got := b.wantsOwn([]runtimeapi.NetworkRef{{Name: "jobs"}}); got != "mount of "+found.Source+" at "+found.Destination {
				t.Errorf("the reason for a namespace of its own is %q", got)
			}
		})
	}
	// What cannot be known is not trusted.
	h.Proc = filepath.Join(w.dir, "none")
	w.bundle(webID, mounted(bind(w.path("data"), "rbind"))(w.spec(webID, "", `{"type":"network"}`)))
	if b, _, err := openBundle(Call{ID: webID, Bundle: w.path("moby/" + webID)}); err != nil || h.exposure(b) == nil {
		t.Error("without a table of mounts it was trusted", err)
	}
}
