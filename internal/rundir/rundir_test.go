package rundir_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/particle-net/particle/fabric"
	"github.com/particle-net/particle/internal/rundir"
	"github.com/particle-net/particle/topology"
)

func TestPublishNetworks(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "networks")
	d := rundir.New(path, filepath.Join(dir, "resolv"))
	for _, c := range []struct {
		list []fabric.EngineNetwork
		want string
	}{
		{[]fabric.EngineNetwork{{ID: "bb", Name: "jobs"}, {ID: "aa"}}, "aa \nbb jobs\n"},
		{[]fabric.EngineNetwork{{ID: "bb", Name: "jobs\naa bridge"}, {ID: "cc", Name: "a b"}}, "bb \ncc a b\n"},
		{nil, ""},
	} {
		if err := d.PublishNetworks(c.list); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(path)
		if err != nil || string(got) != c.want {
			t.Errorf("got %q, %v, want %q", got, err, c.want)
		}
	}
	if err := rundir.New(filepath.Join(dir, "absent", "networks"), "").PublishNetworks(nil); err == nil {
		t.Error("a list that could not be written counts as written")
	}
}

func TestSweepResolv(t *testing.T) {
	dir := t.TempDir()
	d := rundir.New(filepath.Join(dir, "networks"), dir)
	old := time.Now().Add(-time.Hour)
	for _, name := range []string{"live", "dead", "young"} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		if name != "young" {
			if err := os.Chtimes(path, old, old); err != nil {
				t.Fatal(err)
			}
		}
	}
	keep := func(id topology.ContainerID) bool { return id == "live" }
	if err := d.SweepResolv(keep, time.Minute); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{"live": true, "young": true, "dead": false} {
		if _, err := os.Stat(filepath.Join(dir, name)); (err == nil) != want {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := rundir.New("", filepath.Join(dir, "absent")).SweepResolv(keep, 0); err != nil {
		t.Errorf("a folder that no container has made yet: %v", err)
	}
}
