package seccomp_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/particle-net/particle/seccomp"
)

func TestSeparate(t *testing.T) {
	s := seccomp.Sharing{ResolvConf: "/run/particle/resolv/ab", Annotations: map[string]string{"net.particle.directory": "/c/ab", "a": ""}}
	want := strings.NewReplacer("/c/ab/resolv.conf", "/run/particle/resolv/ab",
		`{"a":"<1>","net.particle.directory":"/forged"}`, `{"net.particle.directory":"/c/ab"}`).Replace(full)
	got, err := seccomp.Separate([]byte(full), s)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
	if again, err := seccomp.Separate(got, s); err != nil || string(again) != string(got) {
		t.Errorf("a second edit: %v\n%s", err, cmp.Diff(string(got), string(again)))
	}
	if got, err := seccomp.Separate([]byte(`{"linux":{}}`), s); err != nil || string(got) != `{"linux":{},"annotations":{"net.particle.directory":"/c/ab"}}` {
		t.Errorf("without annotations: %s, %v", got, err)
	}
	for _, in := range []string{"", "{", "[]", `{"mounts":1}x`} {
		if out, err := seccomp.Separate([]byte(in), s); err == nil {
			t.Errorf("%q became %q", in, out)
		}
	}
}
