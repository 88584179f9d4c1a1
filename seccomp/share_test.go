package seccomp_test

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/particle-net/particle/seccomp"
)

const namespace = "/run/particle/netns/4f2a"

// A specification with everything an edit touches, with fields no version
// knows, integers beyond 2^53 and the space of a careless writer.
const full = `{"ociVersion":"1.0.2", "future": {"limit" : 18446744073709551615,"f":1.50e+3},
"process":{"terminal":false,"capabilities":{"bounding":["CAP_CHOWN", "CAP_NET_RAW","CAP_KILL"],"effective":["CAP_NET_ADMIN"],
 "inheritable":null,"permitted":["CAP_NET_RAW","CAP_SYS_ADMIN","CAP_NET_ADMIN"],"ambient":[ "CAP_NET_RAW" ]},"args":["CAP_NET_RAW"]},
"mounts":[{"destination":"/proc","type":"proc","source":"proc"},{"destination":"/etc/resolv.conf","source":"/c/ab/resolv.conf","options":["rbind"]}],
"hooks":{"prestart":[{"path":"/proc/7/exe","args":["libnetwork-setkey","-exec-root=/x","ab"]},{"path":"/usr/bin/nvidia","args":["nvidia","libnetwork-setkey"]}],"poststop":[{"path":"/x","args":["libnetwork-setkey"]}]},
"annotations":{"a":"<1>","net.particle.directory":"/forged"},
"linux":{"sysctl":{"net.ipv4.ip_unprivileged_port_start":"0","kernel.shm_rmid_forced":"1","net/ipv4/ping_group_range":"0 1"},
"resources":{"memory":{"limit":9007199254740993}},"namespaces":[{"type":"mount"},{"type":"network"}, {"type":"pid"}],"readonlyPaths":["/proc/bus"],"x":"\u00e9"}}
`

const fullShared = `{"ociVersion":"1.0.2", "future": {"limit" : 18446744073709551615,"f":1.50e+3},
"process":{"terminal":false,"capabilities":{"bounding":["CAP_CHOWN","CAP_KILL"],"effective":[],
 "inheritable":null,"permitted":[],"ambient":[]},"args":["CAP_NET_RAW"]},
"mounts":[{"destination":"/proc","type":"proc","source":"proc"},{"destination":"/etc/resolv.conf","source":"/run/particle/resolv/ab","options":["rbind"]}],
"hooks":{"prestart":[{"path":"/usr/bin/nvidia","args":["nvidia","libnetwork-setkey"]}],"poststop":[{"path":"/x","args":["libnetwork-setkey"]}]},
"annotations":{"a":"<1>","net.particle.directory":"/c/ab"},
"linux":{"sysctl":{"kernel.shm_rmid_forced":"1"},
"resources":{"memory":{"limit":9007199254740993}},"namespaces":[{"type":"mount"},{"type":"network","path":"/run/particle/netns/4f2a"}, {"type":"pid"}],"readonlyPaths":["/proc/bus","/proc/sys/net"],"x":"\u00e9"}}
`

// sealed is what an edit adds to a specification that names no such paths.
const sealed = `,"readonlyPaths":["/proc/sys/net"]`

func TestShare(t *testing.T) {
	note := map[string]string{"net.particle.directory": "/c/ab"}
	for _, c := range []struct {
		name, in string
		sharing  seccomp.Sharing
		want     string
	}{
		{"everything", full, seccomp.Sharing{ResolvConf: "/run/particle/resolv/ab", Annotations: note}, fullShared},
		{"path there", `{"linux":{"namespaces":[{"path":"/proc/7/ns/net","type":"network"}]}}`, seccomp.Sharing{},
			`{"linux":{"namespaces":[{"path":"` + namespace + `","type":"network"}]` + sealed + `}}`},
		{"path null", `{"linux":{"namespaces":[{"type":"network","path":null}]}}`, seccomp.Sharing{},
			`{"linux":{"namespaces":[{"type":"network","path":"` + namespace + `"}]` + sealed + `}}`},
		{"entry missing", `{"linux":{"namespaces":[{"type":"pid"}]}}`, seccomp.Sharing{},
			`{"linux":{"namespaces":[{"type":"pid"},{"type":"network","path":"` + namespace + `"}]` + sealed + `}}`},
		{"entries missing", `{"linux":{"namespaces":[]}}`, seccomp.Sharing{},
			`{"linux":{"namespaces":[{"type":"network","path":"` + namespace + `"}]` + sealed + `}}`},
		{"namespaces null", `{"linux":{"namespaces":null}}`, seccomp.Sharing{},
			`{"linux":{"namespaces":[{"type":"network","path":"` + namespace + `"}]` + sealed + `}}`},
		{"namespaces missing", `{"linux":{}}`, seccomp.Sharing{},
			`{"linux":{"namespaces":[{"type":"network","path":"` + namespace + `"}]` + sealed + `}}`},
		{"paths there", `{"linux":{"namespaces":[],"readonlyPaths":["/proc/bus","/proc/sys"]}}`, seccomp.Sharing{},
			`{"linux":{"namespaces":[{"type":"network","path":"` + namespace + `"}],"readonlyPaths":["/proc/bus","/proc/sys"]}}`},
		{"paths null", `{"linux":{"namespaces":[],"readonlyPaths":null}}`, seccomp.Sharing{},
			`{"linux":{"namespaces":[{"type":"network","path":"` + namespace + `"}],"readonlyPaths":["/proc/sys/net"]}}`},
		{"paths empty, spelt otherwise", `{"linux":{"namespaces":[],"ReadOnlyPaths":[]}}`, seccomp.Sharing{},
			`{"linux":{"namespaces":[{"type":"network","path":"` + namespace + `"}],"ReadOnlyPaths":["/proc/sys/net"]}}`},
		{"other spelling", `{"LINUX":{"Namespaces":[{"TYPE":"network","Path":"x"}]},"Process":{"Capabilities":{"Bounding":["CAP_NET_RAW"]}}}`, seccomp.Sharing{},
			`{"LINUX":{"Namespaces":[{"TYPE":"network","Path":"` + namespace + `"}]` + sealed + `},"Process":{"Capabilities":{"Bounding":[]}}}`},
		{"escaped spelling", `{"linux":{"namespaces":[]},"process":{"capabilities":{"bounding":["CAP_NET\u005fRAW"]}}}`, seccomp.Sharing{},
			`{"linux":{"namespaces":[{"type":"network","path":"` + namespace + `"}]` + sealed + `},"process":{"capabilities":{"bounding":[]}}}`},
		{"annotations missing", `{"linux":{}}`, seccomp.Sharing{Annotations: note},
			`{"linux":{"namespaces":[{"type":"network","path":"` + namespace + `"}]` + sealed + `},"annotations":{"net.particle.directory":"/c/ab"}}`},
		{"annotations null", `{"annotations":null,"linux":{}}`, seccomp.Sharing{Annotations: note},
			`{"annotations":{"net.particle.directory":"/c/ab"},"linux":{"namespaces":[{"type":"network","path":"` + namespace + `"}]` + sealed + `}}`},
		{"annotation removed", `{"annotations":{"net.particle.directory":"/forged"},"linux":{}}`,
			seccomp.Sharing{Annotations: map[string]string{"net.particle.directory": ""}},
			`{"annotations":{},"linux":{"namespaces":[{"type":"network","path":"` + namespace + `"}]` + sealed + `}}`},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.sharing.Namespace = namespace
			got, err := seccomp.Share([]byte(c.in), c.sharing)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, string(got)); diff != "" {
				t.Fatalf("-want +got\n%s", diff)
			}
			again, err := seccomp.Share(got, c.sharing)
			if err != nil || string(again) != string(got) {
				t.Fatalf("a second edit: %v\n%s", err, cmp.Diff(string(got), string(again)))
			}
		})
	}
}

func TestShareRefusesWhatIsNoSpecification(t *testing.T) {
	for _, in := range []string{"", "{", `{"linux":{"namespaces":[}`, `{}`, `{"linux":null}`, `[]`, `{"linux":{}} x`, `{"a"}`, `{"a":}`, `{,}`} {
		if out, err := seccomp.Share([]byte(in), seccomp.Sharing{Namespace: namespace}); err == nil {
			t.Errorf("%q became %q", in, out)
		}
	}
}

func TestConfine(t *testing.T) {
	in := `{"user":{"uid":0},"capabilities":{"bounding":["CAP_NET_RAW","CAP_CHOWN"],"later":["CAP_NET_ADMIN","cap_sys_admin"]},"rlimits":[{"hard":18446744073709551615}]}`
	want := `{"user":{"uid":0},"capabilities":{"bounding":["CAP_CHOWN"],"later":[]},"rlimits":[{"hard":18446744073709551615}]}`
	got, err := seccomp.Confine([]byte(in))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Fatalf("-want +got\n%s", diff)
	}
	for _, same := range []string{want, `{}`, `{"capabilities":null}`} {
		got, err := seccomp.Confine([]byte(same))
		if err != nil || string(got) != same {
			t.Errorf("Confine(%s) = %s, %v", same, got, err)
		}
	}
}

func TestInspect(t *testing.T) {
	got, err := seccomp.Inspect([]byte(`{"mounts":[{"destination":"/etc/hosts/","source":"/a","type":"bind","options":["rbind","ro"]},{"source":"/b","destination":"/etc/hosts"}],
		"linux":{"namespaces":[{"type":"user"},{"path":"/proc/1/ns/net","type":"network"}],"uidMappings":[]}}`))
	if err != nil {
		t.Fatal(err)
	}
	want := seccomp.Facts{
		Mounts: []seccomp.Mount{{Destination: "/etc/hosts", Source: "/a", Type: "bind", Options: []string{"rbind", "ro"}},
			{Destination: "/etc/hosts", Source: "/b"}},
		Network:       "/proc/1/ns/net",
		UserNamespace: true,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Fatalf("-want +got\n%s", diff)
	}
	if s := got.Source("/etc/hosts"); s != "/b" {
		t.Errorf("the later mount hides the earlier; got %q", s)
	}
	mapped, err := seccomp.Inspect([]byte(`{"linux":{"uidMappings":[{"size":1}]}}`))
	if err != nil || !mapped.UserNamespace {
		t.Errorf("uid mappings: %+v, %v", mapped, err)
	}
}

func TestWritableMounts(t *testing.T) {
	for options, want := range map[string][2]bool{ // top, below
		"rbind": {true, true}, "rbind rw": {true, true}, "": {true, true}, "rro rbind rw": {true, false},
		"rbind ro rprivate": {false, true}, "ro rbind rro": {false, false}, "rbind ro rrw": {true, true},
		"bind": {true, false}, "bind ro": {false, false}, "ro rw bind": {true, false}, "rw rbind ro": {false, true},
	} {
		top, below := seccomp.Mount{Options: strings.Fields(options)}.Writable()
		if got := [2]bool{top, below}; got != want {
			t.Errorf("%q: %v, want %v", options, got, want)
		}
	}
	for mount, want := range map[*seccomp.Mount]bool{{Type: "bind"}: true, {Type: "none", Options: []string{"rbind"}}: true, {Type: "proc"}: false} {
		if got := mount.Bind(); got != want {
			t.Errorf("%+v: %v", *mount, got)
		}
	}
}

// FuzzShare holds the editor against the runtime's own reading: decoded as runc
// decodes it, the edited specification is the old one with the edit's changes
// and no other.
func FuzzShare(f *testing.F) {
	for _, seed := range []string{full, fullShared, `{"linux":{}}`, `{"linux":{"namespaces":null},"LINUX":{}}`, `{"annotations":{},"linux":{"sysctl":{"net.a":""}}}`} {
		f.Add([]byte(seed))
	}
	sharing := seccomp.Sharing{Namespace: namespace, ResolvConf: "/r", Annotations: map[string]string{"p": "q", "gone": ""}}
	f.Fuzz(func(t *testing.T, in []byte) {
		_, _ = seccomp.Inspect(in)
		_, _ = seccomp.Confine(in)
		out, err := seccomp.Share(in, sharing)
		if !json.Valid(in) || err != nil {
			return
		}
		if !json.Valid(out) {
			t.Fatalf("%s\nbecame invalid:\n%s", in, out)
		}
		again, err := seccomp.Share(out, sharing)
		if err != nil || string(again) != string(out) {
			t.Fatalf("a second edit of\n%s\ngave %v\n%s", out, err, again)
		}
		var have, want specs.Spec
		if json.Unmarshal(out, &have) != nil || json.Unmarshal(in, &want) != nil || ambiguous(in) {
			return
		}
		apply(&want, sharing)
		if diff := cmp.Diff(want, have, cmpopts.EquateEmpty()); diff != "" {
			t.Fatalf("%s\nbecame\n%s\n-want +got\n%s", in, out, diff)
		}
	})
}

// ambiguous is true if a key occurs twice in an object. The decoder then merges
// structs and overwrites scalars, which the oracle below does not follow; that
// nothing slips through is checked by TestRepeatedKeys.
func ambiguous(in []byte) bool {
	dec := json.NewDecoder(strings.NewReader(string(in)))
	var walk func() bool
	walk = func() bool {
		token, err := dec.Token()
		if err != nil {
			return true
		}
		switch token {
		case json.Delim('{'):
			var keys []string
			for dec.More() {
				key, err := dec.Token()
				if err != nil {
					return true
				}
				name := key.(string)
				if slices.ContainsFunc(keys, func(k string) bool { return strings.EqualFold(k, name) }) || walk() {
					return true
				}
				keys = append(keys, name)
			}
			_, err = dec.Token()
		case json.Delim('['):
			for dec.More() {
				if walk() {
					return true
				}
			}
			_, err = dec.Token()
		}
		return err != nil
	}
	return walk()
}

// apply is the edit done on the runtime's types.
func apply(s *specs.Spec, sharing seccomp.Sharing) {
	if s.Process != nil && s.Process.Capabilities != nil {
		c := s.Process.Capabilities
		for _, set := range []*[]string{&c.Bounding, &c.Effective, &c.Inheritable, &c.Permitted, &c.Ambient} {
			*set = slices.DeleteFunc(*set, seccomp.IsUnshareable)
		}
	}
	isSetKey := func(h specs.Hook) bool { return len(h.Args) > 0 && h.Args[0] == "libnetwork-setkey" }
	if s.Hooks != nil {
		//lint:ignore SA1019 Docker up to 27 puts its own hook there
		s.Hooks.Prestart = slices.DeleteFunc(s.Hooks.Prestart, isSetKey)
		s.Hooks.CreateRuntime = slices.DeleteFunc(s.Hooks.CreateRuntime, isSetKey)
	}
	for i := range s.Mounts {
		if s.Mounts[i].Destination == "/etc/resolv.conf" && s.Mounts[i].Source != "" {
			s.Mounts[i].Source = sharing.ResolvConf
		}
	}
	for key := range s.Linux.Sysctl {
		if seccomp.IsNetSysctl(key) {
			delete(s.Linux.Sysctl, key)
		}
	}
	found := false
	for i := range s.Linux.Namespaces {
		if s.Linux.Namespaces[i].Type == specs.NetworkNamespace {
			s.Linux.Namespaces[i].Path = sharing.Namespace
			found = true
		}
	}
	if !found {
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.NetworkNamespace, Path: sharing.Namespace})
	}
	if paths := &s.Linux.ReadonlyPaths; !slices.Contains(*paths, "/proc/sys") && !slices.Contains(*paths, "/proc/sys/net") {
		*paths = append(*paths, "/proc/sys/net")
	}
	if s.Annotations == nil {
		s.Annotations = map[string]string{}
	}
	for key, value := range sharing.Annotations {
		s.Annotations[key] = value
		if value == "" {
			delete(s.Annotations, key)
		}
	}
}

func TestRepeatedKeys(t *testing.T) {
	out, err := seccomp.Share([]byte(`{"linux":{"namespaces":[{"type":"network"}]},"linux":{"namespaces":[{"type":"network","path":"/a","Path":"/b"}],"sysctl":{"net.x":"1"},"Sysctl":{"net.y":"1"}},
		"process":{"capabilities":{"bounding":["CAP_NET_RAW"],"Bounding":["CAP_NET_ADMIN"]}},"Process":{"capabilities":{"bounding":["CAP_NET_RAW"]}}}`),
		seccomp.Sharing{Namespace: namespace})
	if err != nil {
		t.Fatal(err)
	}
	for _, gone := range []string{"CAP_NET", "net.x", "net.y", `"/a"`, `"/b"`} {
		if strings.Contains(string(out), gone) {
			t.Errorf("%s is left in %s", gone, out)
		}
	}
}
