package vm

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestNewest(t *testing.T) {
	for want, names := range map[string]string{
		"6.1.0-56-amd64":         "6.1.0-9-amd64 6.1.0-56-amd64 6.1.0-57-cloud-amd64 6.1.0-57-rt-amd64 6.1.0-57-amd64-unsigned 6.1.0-50-amd64",
		"6.12.117+deb12-amd64":   "6.12.99+deb12-amd64 6.12.117+deb12-amd64 6.12.118+deb12-cloud-amd64",
		"6.12.9+bpo-amd64":       "6.12.9+bpo-amd64",
		"6.12.117-2+deb12-amd64": "6.12.117-2+deb12-amd64 6.12.117-1+deb12-amd64",
		"":                       "6.1.0-9-cloud-amd64",
	} {
		if got := newest(strings.Fields(names)); got != want {
			t.Errorf("of %s: %q, want %q", names, got, want)
		}
	}
}

func TestModuleFiles(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("modules.dep", "k/9p.ko.xz: k/9pnet.ko.xz k/netfs.ko.xz\nk/netfs.ko.xz:\nk/9pnet.ko.xz:\nk/a-b.ko.xz: k/9pnet.ko.xz\n")
	write("modules.builtin", "k/virtio_pci.ko\n")
	got, err := moduleFiles(dir, []string{"virtio_pci", "a_b", "9p"})
	if want := "[k/9pnet.ko.xz k/a-b.ko.xz k/netfs.ko.xz k/9p.ko.xz]"; err != nil || fmt.Sprint(got) != want {
		t.Errorf("%v, %v; want %s", got, err, want)
	}
	if _, err := moduleFiles(dir, []string{"absent"}); err == nil || !strings.Contains(err.Error(), "find module absent") {
		t.Errorf("a module that is not there: %v", err)
	}
}

// A kernel without hardware to virtualize on may have a /dev/kvm all the same.
func TestVirtualizes(t *testing.T) {
	for cpuinfo, want := range map[string]bool{
		"processor\t: 0\nflags\t\t: fpu vme svm lm\n": true,
		"flags\t\t: fpu vmx\nvmx flags\t: vnmi\n":     true,
		"flags\t\t: fpu svm_lock\nbugs\t\t: vmx\n":    false,
	} {
		if got := virtualizes(cpuinfo); got != want {
			t.Errorf("%q: %v", cpuinfo, got)
		}
	}
}

// Init has no libraries: a program that needs some is refused before the boot.
func TestInitIsStatic(t *testing.T) {
	dir := t.TempDir()
	source := filepath.Join(dir, "main.go")
	if err := os.WriteFile(source, []byte("package main\nimport \"C\"\nfunc main() {}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for cgo, want := range map[string]string{"0": "", "1": "build it with CGO_ENABLED=0"} {
		path := filepath.Join(dir, "program"+cgo)
		build := exec.Command("go", "build", "-o", path, source)
		if cgo == "0" {
			build = exec.Command("go", "build", "-o", path, "../../cmd/particle-vm")
		}
		build.Env = append(os.Environ(), "CGO_ENABLED="+cgo)
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		raw, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := checkStatic(path, raw); fmt.Sprint(err) != "<nil>" && want == "" || want != "" && !strings.Contains(fmt.Sprint(err), want) {
			t.Errorf("cgo %s: %v", cgo, err)
		}
	}
}

func TestTail(t *testing.T) {
	var kept tail
	for n := range 1000 {
		fmt.Fprintf(&kept, "line %d\r\n", n)
	}
	if text := kept.String(); !strings.HasSuffix(text, "line 998\nline 999\n") || len(text) > tailSize {
		t.Errorf("%d bytes: ...%q", len(text), text[len(text)-40:])
	}
}
