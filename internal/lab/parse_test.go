package lab

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestReadMounts(t *testing.T) {
	const text = `31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
34 31 0:31 / /sys/fs/cgroup/cpuset rw,relatime shared:5 master:1 - cgroup cgroup rw,cpuset,clone_children
42 27 254:0 /a\040b /mnt/x\134y rw - ext4 /dev/vda rw
broken line
`
	file := filepath.Join(t.TempDir(), "mountinfo")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := readMounts(file)
	if err != nil {
		t.Fatal(err)
	}
	want := []mountEntry{
		{Root: "/", Point: "/sys/fs/cgroup", Type: "tmpfs", Super: "rw,mode=755"},
		{Root: "/", Point: "/sys/fs/cgroup/cpuset", Type: "cgroup", Super: "rw,cpuset,clone_children"},
		{Root: "/a b", Point: `/mnt/x\y`, Type: "ext4", Super: "rw"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestHierarchyOptions(t *testing.T) {
	for super, want := range map[string]string{
		"rw,cpu,cpuacct": "cpu,cpuacct",
		"rw,xattr,release_agent=/lib/x,name=systemd": "name=systemd",
		"rw,cpuset,clone_children":                   "cpuset",
	} {
		if got := hierarchyOptions(super); got != want {
			t.Errorf("%s: got %q, want %q", super, got, want)
		}
	}
}

// A process is its pid and its start: another start is another process.
func TestProcessIdentity(t *testing.T) {
	self, err := processOf(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if !self.alive() {
		t.Error("this process counts as ended")
	}
	self.Start++
	if self.alive() {
		t.Error("a process that started at another time counts as this one")
	}
	if err := self.kill(t.Context()); err != nil {
		t.Errorf("ending a process that has ended: %v", err)
	}
}
