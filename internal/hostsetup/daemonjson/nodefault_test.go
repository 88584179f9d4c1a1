package daemonjson_test

import (
	"testing"

	"github.com/particle-net/particle/internal/hostsetup/daemonjson"
)

// The record of an installation with --no-default-runtime is on disk before the file
// is written, which still is that of an installation that made the runtime the default.
func TestRecordOfNoDefaultTakesDefaultOut(t *testing.T) {
	const before = `{"default-runtime": "nvidia", "runtimes": {"nvidia": {"path": "/usr/bin/nvidia-container-runtime"}}}`
	onDisk, _, err := daemonjson.Merge([]byte(before), ours)
	if err != nil {
		t.Fatal(err)
	}
	without := ours
	without.Default = false
	_, recorded, err := daemonjson.Merge([]byte(before), without)
	if err != nil {
		t.Fatal(err)
	}
	got, err := daemonjson.Unmerge(onDisk, ours, recorded)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != before {
		t.Errorf("the administrator's file is %s, want %s", got, before)
	}
}
