package hostsetup

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/internal/hostpath"
	"github.com/particle-net/particle/internal/hostsetup/daemonjson"
)

func TestFlagValue(t *testing.T) {
	for _, c := range []struct {
		args  string
		want  string
		given bool
	}{
		{"-H fd:// --config-file /srv/d.json", "/srv/d.json", true},
		{"--config-file=/srv/d.json -D", "/srv/d.json", true},
		{"--config-file /a --config-file=/b", "/b", true},
		{"--config-filed /a", "", false},
		{"-- --config-file /a", "", false},
		{"--config-file", "", false},
		{"", "", false},
	} {
		got, given := flagValue(strings.Fields(c.args), "config-file")
		if got != c.want || given != c.given {
			t.Errorf("%q: got %q, %v", c.args, got, given)
		}
	}
}

func TestConflict(t *testing.T) {
	d := daemon{args: []string{"--default-runtime", "crun"}}
	if d.conflict(true) == nil {
		t.Error("a flag for the default runtime does not conflict with setting it")
	}
	if err := d.conflict(false); err != nil {
		t.Errorf("a flag for the default runtime conflicts with leaving it alone: %v", err)
	}
	if (daemon{args: []string{"--add-runtime=crun=/usr/bin/crun"}}).conflict(false) == nil {
		t.Error("a flag for runtimes does not conflict with adding one")
	}
}

func TestRealRuntime(t *testing.T) {
	bin := t.TempDir()
	for _, name := range []string{"runc", "crun"} {
		if err := os.WriteFile(filepath.Join(bin, name), nil, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	d := daemon{path: "/nowhere:" + bin}
	runc, crun := filepath.Join(bin, "runc"), filepath.Join(bin, "crun")
	for _, c := range []struct {
		name    string
		current EngineRuntime
		old     record
		named   bool // not the default
		want    string
		err     string
	}{
		{name: "stock", current: EngineRuntime{Name: "runc", Path: "runc"}, want: runc},
		{name: "unknown to the API", current: EngineRuntime{Name: "io.containerd.runc.v2"}, want: runc},
		{name: "custom", current: EngineRuntime{Name: "crun", Path: "crun"}, want: crun},
		{name: "custom by path", current: EngineRuntime{Name: "crun", Path: crun}, want: crun},
		{name: "ours already", current: EngineRuntime{Name: "particle", Path: hostpath.RuntimeBinary}, old: record{Runtime: crun}, want: crun},
		{name: "ours, before it gone", current: EngineRuntime{Name: "particle"}, old: record{Runtime: bin + "/gone"}, want: runc},
		{name: "containerd shim", current: EngineRuntime{Name: "kata", Type: "io.containerd.kata.v2"}, err: "containerd shim"},
		{name: "containerd shim, left alone", current: EngineRuntime{Name: "kata", Type: "io.containerd.kata.v2"}, named: true, want: runc},
		{name: "arguments", current: EngineRuntime{Name: "crun", Path: "crun", Args: []string{"--debug"}}, err: "runtimeArgs"},
		{name: "not there", current: EngineRuntime{Name: "x", Path: "no-such-runtime"}, err: "not in dockerd's PATH"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := d.realRuntime(InstallRequest{Current: c.current, MakeDefault: !c.named}, c.old)
			if got != c.want || (err != nil) != (c.err != "") || (err != nil && !strings.Contains(err.Error(), c.err)) {
				t.Errorf("got %q, %v; want %q, %q", got, err, c.want, c.err)
			}
		})
	}
}

func TestOwnAddrs(t *testing.T) {
	const hosts = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost\n# 10.0.0.1 web\n10.9.0.7\tweb\n10.9.0.7\tweb.jobs web\nfd00::7 web # IPv6\n10.9.0.8 other\n"
	got, err := ownAddrs(strings.NewReader(hosts), "web")
	if err != nil {
		t.Fatal(err)
	}
	want := []netip.Addr{netip.MustParseAddr("10.9.0.7"), netip.MustParseAddr("fd00::7")}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if _, err := ownAddrs(strings.NewReader(hosts), "nobody"); err == nil {
		t.Error("a name that is on no line has an address")
	}
}

func FuzzOwnAddrs(f *testing.F) {
	f.Add("10.9.0.7 web\n", "web")
	f.Add("#\n\t\nfe80::1%eth0 web", "web")
	f.Fuzz(func(t *testing.T, hosts, name string) {
		addrs, err := ownAddrs(strings.NewReader(hosts), name)
		if (err == nil) != (len(addrs) > 0) {
			t.Errorf("%v and %v", addrs, err)
		}
	})
}

func TestRecordTellsOurTextFromOthers(t *testing.T) {
	const before = `{"debug": true}`
	rt := ours()
	rt.Default = true
	merged, edit, err := daemonjson.Merge([]byte(before), rt)
	if err != nil {
		t.Fatal(err)
	}
	handover, err := daemonjson.Handover([]byte(before))
	if err != nil {
		t.Fatal(err)
	}
	// Original differs from what an unmerge gives, to see which of the two is used.
	c := configRecord{Original: []byte("original"), Written: hashText(merged), Handover: hashText(handover), Edit: edit}
	for _, x := range []struct{ name, text, want string }{
		{"as written", string(merged), "original"},
		{"handed over", string(handover), "original"},
		{"edited since", strings.Replace(string(merged), "true", "false", 1), `{"debug": false}`},
		{"never written", before, before},
	} {
		got, err := c.without([]byte(x.text))
		if err != nil || string(got) != x.want {
			t.Errorf("%s: got %q, %v; want %q", x.name, got, err, x.want)
		}
	}
}

func TestReplaceKeepsTheOldFileOnFailure(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "f")
	if err := os.WriteFile(file, []byte("old"), 0o640); err != nil {
		t.Fatal(err)
	}
	broken := errors.New("broken")
	if err := replace(file, failing{broken}, attributes{mode: 0o600}); !errors.Is(err, broken) {
		t.Fatalf("got %v", err)
	}
	if got, err := os.ReadFile(file); err != nil || string(got) != "old" {
		t.Errorf("got %q, %v", got, err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("a temporary file is left: %v, %v", entries, err)
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

func TestTell(t *testing.T) {
	finding, remedy := tell(&fault.Error{Op: "open", On: "door", Err: errors.New("locked"), Fix: "knock"}, "go away")
	if finding != "open door: locked" || remedy != "knock" {
		t.Errorf("got %q, %q", finding, remedy)
	}
	if finding, remedy = tell(errors.New("plain"), "go away"); finding != "plain" || remedy != "go away" {
		t.Errorf("got %q, %q", finding, remedy)
	}
}
