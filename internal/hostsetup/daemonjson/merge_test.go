package daemonjson_test

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/particle-net/particle/internal/hostsetup/daemonjson"
)

var ours = daemonjson.Runtime{Name: "particle", Path: "/usr/local/bin/particle-runtime", Default: true}

// merges are texts and what they become; each is also taken back.
var merges = []struct{ name, before, after string }{
	{"absent", "", `{
  "runtimes": {
    "particle": {
      "path": "/usr/local/bin/particle-runtime"
    }
  },
  "default-runtime": "particle"
}
`},
	{"blank", " \n\t", `{
  "runtimes": {
    "particle": {
      "path": "/usr/local/bin/particle-runtime"
    }
  },
  "default-runtime": "particle"
}
`},
	{"empty object", "{}", `{
  "runtimes": {
    "particle": {
      "path": "/usr/local/bin/particle-runtime"
    }
  },
  "default-runtime": "particle"
}
`},
	{"four spaces, no line break at the end", `{
    "log-driver": "local",
    "live-restore": true
}`, `{
    "log-driver": "local",
    "live-restore": true,
    "runtimes": {
        "particle": {
            "path": "/usr/local/bin/particle-runtime"
        }
    },
    "default-runtime": "particle"
}`},
	{"tabs and another runtime as the default", `{
	"runtimes": {
		"nvidia": {
			"args": [],
			"path": "nvidia-container-runtime"
		}
	},
	"default-runtime" : "nvidia",
	"debug": false
}
`, `{
	"runtimes": {
		"nvidia": {
			"args": [],
			"path": "nvidia-container-runtime"
		},
		"particle": {
			"path": "/usr/local/bin/particle-runtime"
		}
	},
	"default-runtime" : "particle",
	"debug": false
}
`},
	{"one line", `{"debug":true,"runtimes":{"crun":{"path":"/usr/bin/crun"}}}`,
		`{"debug":true,"runtimes":{"crun":{"path":"/usr/bin/crun"},"particle":{"path": "/usr/local/bin/particle-runtime"}},"default-runtime":"particle"}`},
	{"runtimes without one", "{\n  \"runtimes\": { },\n  \"debug\": true\n}\n", `{
  "runtimes": {
    "particle": {
      "path": "/usr/local/bin/particle-runtime"
    }
  },
  "debug": true,
  "default-runtime": "particle"
}
`},
	{"null for both", "{\"runtimes\": null, \"default-runtime\": null}",
		`{"runtimes": {"particle": {"path": "/usr/local/bin/particle-runtime"}}, "default-runtime": "particle"}`},
	{"Windows line ends", "{\r\n  \"debug\": true\r\n}\r\n",
		"{\r\n  \"debug\": true,\r\n  \"runtimes\": {\r\n    \"particle\": {\r\n      \"path\": \"/usr/local/bin/particle-runtime\"\r\n    }\r\n  },\r\n  \"default-runtime\": \"particle\"\r\n}\r\n"},
	{"byte order mark", "\xef\xbb\xbf{\"debug\": true}",
		"\xef\xbb\xbf{\"debug\": true,\"runtimes\":{\"particle\": {\"path\": \"/usr/local/bin/particle-runtime\"}},\"default-runtime\":\"particle\"}"},
	{"braces and quotes in strings", `{
  "labels": ["a={\"}\\", "]"], "data-root": "/srv/}{"
}`, `{
  "labels": ["a={\"}\\", "]"], "data-root": "/srv/}{", "runtimes": {"particle": {"path": "/usr/local/bin/particle-runtime"}}, "default-runtime": "particle"
}`},
}

func TestMergeAndBack(t *testing.T) {
	for _, c := range merges {
		t.Run(c.name, func(t *testing.T) {
			after, edit, err := daemonjson.Merge([]byte(c.before), ours)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.after, string(after)); diff != "" {
				t.Errorf("merged (-want +got):\n%s", diff)
			}
			// The edit is stored between the two.
			stored, err := json.Marshal(edit)
			if err != nil {
				t.Fatal(err)
			}
			edit = daemonjson.Edit{}
			if err := json.Unmarshal(stored, &edit); err != nil {
				t.Fatal(err)
			}
			back, err := daemonjson.Unmerge(after, ours, edit)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.before, string(back)); diff != "" {
				t.Errorf("taken back (-want +got):\n%s", diff)
			}
		})
	}
}

func TestMergeWithoutDefault(t *testing.T) {
	rt := ours
	rt.Default = false
	got, edit, err := daemonjson.Merge([]byte(`{"default-runtime": "crun"}`), rt)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(got), `"default-runtime": "particle"`) {
		t.Errorf("the default runtime was changed: %s", got)
	}
	back, err := daemonjson.Unmerge(got, ours, edit)
	if err != nil || string(back) != `{"default-runtime": "crun"}` {
		t.Errorf("taken back: %s, %v", back, err)
	}
}

func TestMergeTwiceChangesNothing(t *testing.T) {
	for _, c := range merges {
		again, edit, err := daemonjson.Merge([]byte(c.after), ours)
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		if diff := cmp.Diff(c.after, string(again)); diff != "" {
			t.Errorf("%s: merged again (-want +got):\n%s", c.name, diff)
		}
		if edit.Default != nil {
			t.Errorf("%s: our own default %s was taken for the administrator's", c.name, edit.Default)
		}
	}
}

func TestUnmergeKeepsLaterSettings(t *testing.T) {
	for _, c := range []struct{ name, before, edited, want string }{
		{
			"a setting and a runtime added to a file that was absent", "",
			`{
  "runtimes": {
    "particle": {
      "path": "/usr/local/bin/particle-runtime"
    },
    "crun": { "path": "crun" }
  },
  "default-runtime": "particle",
  "debug": true
}
`, `{
  "runtimes": {
    "crun": { "path": "crun" }
  },
  "debug": true
}
`,
		},
		{
			"another default chosen since", `{"debug": true}`,
			`{"debug": true, "runtimes": {"particle": {"path": "/usr/local/bin/particle-runtime"}}, "default-runtime": "runc"}`,
			`{"debug": true, "default-runtime": "runc"}`,
		},
		{
			"our name given to another program since", `{"debug": true}`,
			`{"runtimes": {"particle": {"path": "/opt/else"}}, "default-runtime": "particle"}`,
			`{"runtimes": {"particle": {"path": "/opt/else"}}, "default-runtime": "particle"}`,
		},
		{
			"everything taken out since", `{"debug": true}`, `{}`, `{}`,
		},
		{
			"all of it blanked since", ``, "\n", ``,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, edit, err := daemonjson.Merge([]byte(c.before), ours)
			if err != nil {
				t.Fatal(err)
			}
			got, err := daemonjson.Unmerge([]byte(c.edited), ours, edit)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, string(got)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestMergeRefuses(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"syntax", "{\n  \"debug\": true,\n}", "line 3"},
		{"an array", "[]", "not a JSON object"},
		{"two values", "{} {}", "after top-level value"},
		{"runtimes twice", `{"runtimes": {}, "runtimes": {}}`, "twice"},
		{"default twice", `{"default-runtime": "a", "default-runtime": "b"}`, "twice"},
		{"runtimes of another kind", `{"runtimes": "none"}`, "no object"},
		{"our name taken", `{"runtimes": {"particle": {"path": "/opt/else"}}}`, daemonjson.ErrForeign.Error()},
	} {
		t.Run(c.name, func(t *testing.T) {
			if _, _, err := daemonjson.Merge([]byte(c.text), ours); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want an error with %q", err, c.want)
			}
		})
	}
}

func TestHandoverSetsBothKeys(t *testing.T) {
	for _, c := range merges {
		text, err := daemonjson.Handover([]byte(c.before))
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		var got struct {
			Runtimes map[string]any `json:"runtimes"`
			Default  string         `json:"default-runtime"`
		}
		if err := json.Unmarshal([]byte(strings.TrimPrefix(string(text), "\xef\xbb\xbf")), &got); err != nil {
			t.Fatalf("%s: %v in %s", c.name, err, text)
		}
		if got.Runtimes == nil || got.Default == "" {
			t.Errorf("%s: a key is not set: %s", c.name, text)
		}
		if got.Runtimes["particle"] != nil || got.Default == "particle" {
			t.Errorf("%s: names us: %s", c.name, text)
		}
	}
}

func FuzzMergeAndBack(f *testing.F) {
	for _, c := range merges {
		f.Add([]byte(c.before), true)
		f.Add([]byte(c.after), false)
	}
	f.Add([]byte(`{"a":{"runtimes":1},"runtimes":{"x":{}} ,"default-runtime":"\u0070article"}`), true)
	f.Fuzz(func(t *testing.T, before []byte, isDefault bool) {
		rt := ours
		rt.Default = isDefault
		after, edit, err := daemonjson.Merge(before, rt)
		if err != nil {
			if errors.Is(err, daemonjson.ErrForeign) || daemonjson.Check(before) != nil {
				return
			}
		} else {
			checkMerged(t, before, after, edit, rt)
		}
		if _, err := daemonjson.Handover(before); err != nil && daemonjson.Check(before) == nil &&
			!strings.Contains(err.Error(), "twice") {
			t.Fatalf("no handover: %v", err)
		}
	})
}

func checkMerged(t *testing.T, before, after []byte, edit daemonjson.Edit, rt daemonjson.Runtime) {
	t.Helper()
	if err := daemonjson.Check(after); err != nil {
		t.Fatalf("merged text is not readable: %v: %q", err, after)
	}
	if named(before, rt) {
		return // the invariant is about texts without us
	}
	if !named(after, rt) {
		t.Fatalf("merged text does not name the runtime: %q", after)
	}
	back, err := daemonjson.Unmerge(after, rt, edit)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, back); diff != "" {
		t.Fatalf("taken back (-want +got):\n%s", diff)
	}
}

func named(text []byte, rt daemonjson.Runtime) bool {
	var got map[string]json.RawMessage
	if json.Unmarshal([]byte(strings.TrimPrefix(string(text), "\xef\xbb\xbf")), &got) != nil {
		return false
	}
	var def string
	var runtimes map[string]json.RawMessage
	_ = json.Unmarshal(got["default-runtime"], &def)
	_ = json.Unmarshal(got["runtimes"], &runtimes)
	return def == rt.Name || runtimes[rt.Name] != nil
}
