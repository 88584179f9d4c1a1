package shim

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestOtherCommandsPassThrough(t *testing.T) {
	w := newWorld(t)
	for _, line := range []string{"features", "--version", "--root /r state abc", "kill abc KILL", "--unknown create", "update --pids-limit -1 abc", "events --stats abc"} {
		args := strings.Fields(line)
		w.passed(w.run(nil, args...), args...)
	}
	r := w.run([]string{"RUNC_EXIT=42", "RUNC_STDERR=as it was"}, "features")
	if r.code != 42 || r.stderr != "as it was\n" {
		t.Errorf("exit code and standard error: %+v", r)
	}
}

func TestRuntimeIsFoundInPath(t *testing.T) {
	w := newWorld(t)
	if err := os.Remove(w.host.Config); err != nil {
		t.Fatal(err)
	}
	path := "PATH=relative::" + w.path("empty") + ":" + w.path("sbin") + ":" + os.Getenv("PATH")
	w.passed(w.run([]string{path}, "features"), "features")
	if r := w.run([]string{"PATH=/empty"}, "features"); r.code != 1 || !strings.Contains(r.stderr, "there is no runc in PATH; install runc") {
		t.Errorf("%+v", r)
	}
}

func TestBrokenConfiguration(t *testing.T) {
	w := newWorld(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for config, want := range map[string]string{
		`{`:                                     "correct the file or remove it",
		`{"runtime":"/nonexistent"}`:            "/nonexistent: no such file or directory; install it",
		`{"runtime":"` + self + `"}`:            "it is particle-runtime itself",
		`{"runtime":"` + w.path("netns") + `"}`: "permission denied",
	} {
		w.write("runtime.json", config)
		if r := w.run(nil, "features"); r.code != 1 || !strings.Contains(r.stderr, want) {
			t.Errorf("%s: %+v, want %q", config, r, want)
		}
	}
}

func TestWriteFileKeepsTheMode(t *testing.T) {
	dir := t.TempDir()
	defer syscall.Umask(syscall.Umask(0o077))
	for range 2 { // in place of nothing, then of the first
		if err := writeFile(filepath.Join(dir, "f"), []byte("x"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if info, err := os.Stat(filepath.Join(dir, "f")); err != nil || info.Mode() != 0o644 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	if err := writeFile(filepath.Join(dir, "none", "f"), nil, 0o644); err == nil {
		t.Error("a missing directory is no error")
	}
	if left, _ := os.ReadDir(dir); len(left) != 1 {
		t.Errorf("files left: %v", left)
	}
}

func TestLogLine(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for json, want := range map[bool]string{
		true:  `{"level":"error","msg":"a \"b\"","time":"2026-01-02T03:04:05Z"}`,
		false: `time="2026-01-02T03:04:05Z" level=error msg="a \"b\""`,
	} {
		if got := (Call{JSON: json}).line(testError(`a "b"`), now); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

type testError string

func (e testError) Error() string { return string(e) }

// The program is executed several times in the life of each container, and
// most of its price is what it links: packages that bring tables and
// initialisers along stay out.
func TestImportGraphIsLight(t *testing.T) {
	cmd := exec.Command("go", "list", "-deps", "github.com/particle-net/particle/cmd/particle-runtime")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, pkg := range strings.Fields(string(out)) {
		switch {
		case pkg == "net/http", pkg == "crypto/tls", pkg == "os/exec", pkg == "log", pkg == "flag", pkg == "text/template", pkg == "math/big":
			t.Errorf("particle-runtime links %s", pkg)
		case strings.Contains(strings.SplitN(pkg, "/", 2)[0], ".") && !strings.HasPrefix(pkg, "github.com/particle-net/particle/"):
			t.Errorf("particle-runtime links %s, which is not of the standard library", pkg)
		}
	}
}

func TestMainIsShort(t *testing.T) {
	raw, err := os.ReadFile(filepath.FromSlash("../../cmd/particle-runtime/main.go"))
	if err != nil {
		t.Fatal(err)
	}
	if lines := strings.Count(string(raw), "\n"); lines >= 20 {
		t.Errorf("main.go has %d lines", lines)
	}
}
