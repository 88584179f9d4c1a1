package shim

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func TestParseCall(t *testing.T) {
	for _, c := range []struct {
		line string
		want Call
	}{
		// As containerd-shim-runc-v2 calls it.
		{"--root /r/moby --log /b/log.json --log-format json create --bundle /b --pid-file /b/init.pid abc",
			Call{Command: "create", ID: "abc", Root: "/r/moby", Log: "/b/log.json", JSON: true, Bundle: "/b"}},
		{"--root /r --log /l --log-format json --systemd-cgroup exec --process /tmp/p --console-socket /s --detach --pid-file /x abc",
			Call{Command: "exec", ID: "abc", Root: "/r", Log: "/l", JSON: true, Process: "/tmp/p"}},
		{"--root /r --log /l --log-format json delete --force abc", Call{Command: "delete", ID: "abc", Root: "/r", Log: "/l", JSON: true, Force: true}},
		{"--root /r start abc", Call{Command: "start", ID: "abc", Root: "/r"}},
		// Other ways to say the same.
		{"--root=/r -log=/l --rootless=false --debug create -b=/b --no-pivot abc", Call{Command: "create", ID: "abc", Root: "/r", Log: "/l", Bundle: "/b"}},
		{"--rootless auto create abc --bundle /b", Call{Command: "create", ID: "abc", Root: defaultRoot, Bundle: "/b"}},
		{"create --preserve-fds 3 -- abc", Call{Command: "create", ID: "abc", Root: defaultRoot}},
		{"delete -f=false abc", Call{Command: "delete", ID: "abc", Root: defaultRoot}},
		// The process's own flags are not the runtime's.
		{"exec -t -u 0 --cap CAP_NET_RAW -c CAP_KILL --cap=NET_ADMIN -e A=B abc sh --process /no -c x",
			Call{Command: "exec", ID: "abc", Root: defaultRoot, caps: []flag{{4, 2, "CAP_NET_RAW"}, {6, 2, "CAP_KILL"}, {8, 1, "NET_ADMIN"}}}},
		// A flag of a later version, with and without a value of its own.
		{"exec --later 7 --process /p abc", Call{Command: "exec", ID: "abc", Root: defaultRoot, Process: "/p"}},
		{"create --later=7 --bundle /b abc", Call{Command: "create", ID: "abc", Root: defaultRoot, Bundle: "/b"}},
		{"--later=7 start abc", Call{Command: "start", ID: "abc", Root: defaultRoot}},
		// What is not understood has no command.
		{"--later create abc", Call{Root: defaultRoot}},
		{"--version", Call{Root: defaultRoot}},
		{"", Call{Root: defaultRoot}},
		{"-- create abc", Call{Root: defaultRoot}},
		{"--root", Call{}},
		{"features", Call{Command: "features", Root: defaultRoot}},
		{"create --bundle", Call{Command: "create", Root: defaultRoot}},
	} {
		got := ParseCall(strings.Fields(c.line))
		if diff := cmp.Diff(c.want, got, cmp.AllowUnexported(Call{}, flag{}), cmpopts.IgnoreFields(Call{}, "Args")); diff != "" {
			t.Errorf("%s: -want +got\n%s", c.line, diff)
		}
	}
}

func TestWithoutNetCaps(t *testing.T) {
	for line, want := range map[string]string{
		"--root /r exec --cap CAP_NET_RAW -c kill --cap=net_admin abc sh -c x": "--root /r exec -c kill abc sh -c x",
		"exec abc sh --cap NET_RAW": "exec abc sh --cap NET_RAW",
		"exec --cap":                "exec --cap",
	} {
		if got := strings.Join(ParseCall(strings.Fields(line)).confined(), " "); got != want {
			t.Errorf("%s\ngot  %s\nwant %s", line, got, want)
		}
	}
}

func FuzzParseCall(f *testing.F) {
	f.Add("--root /r --log /l --log-format json exec --process /p --cap NET_RAW abc")
	f.Add("--root=/r create -b /b -- abc")
	f.Fuzz(func(t *testing.T, line string) {
		args := strings.Split(line, " ")
		before := slices.Clone(args)
		c := ParseCall(args)
		rest := c.confined()
		if !slices.Equal(args, before) {
			t.Fatal("the command line was changed in place")
		}
		if len(c.caps) == 0 && !slices.Equal(rest, args) {
			t.Fatalf("%q became %q", args, rest)
		}
		if c.ID != "" && (c.Command == "" || !slices.Contains(args, c.ID)) {
			t.Fatalf("%q: id %q of command %q", args, c.ID, c.Command)
		}
		if again := ParseCall(rest); c.Command == "exec" && len(again.confined()) != len(rest) {
			t.Fatalf("%q keeps a capability: %q", args, rest)
		}
	})
}
