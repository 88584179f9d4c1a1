package lab_test

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/internal/lab"
)

func TestTenTimesUpAndDown(t *testing.T) {
	needRoot(t)
	for range 10 {
		l := boot(t, lab.Options{Name: "t-ten"})
		on(t, l.Hosts()[0].Node, "docker", "network", "create", "some")
		takeDown(t, l)
	}
}

// The init of a host dies under a running lab.
func TestInitDies(t *testing.T) {
	l := boot(t, lab.Options{Name: "t-dies"})
	h := l.Hosts()[0]
	if err := lab.LoadImage(t.Context(), h); err != nil {
		t.Fatal(err)
	}
	on(t, h.Node, "docker", "run", "-d", lab.TestImage, "probe", "sleep")
	held, err := l.Held()
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(h.Pid(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() bool { _, err := lab.Open(l.Name()); return err != nil },
		func() string { return "a lab with a dead host counts as running" })
	if _, err := h.Exec(t.Context(), "true"); err == nil || !strings.Contains(err.Error(), "init has ended") {
		t.Errorf("a command on a dead host says %v", err)
	}
	if left, err := lab.Leaks(l.Name(), held); err != nil || len(left) == 0 {
		t.Errorf("before down there are leaks, found %q, %v", left, err)
	}
	if err := l.Down(t.Context()); err != nil {
		t.Fatal(err)
	}
	noLeaks(t, l.Name(), held)
}

// Whoever brings a lab up is killed on the way. What it made by then is found.
func TestDiesWhileComingUp(t *testing.T) {
	needRoot(t)
	const name = "t-killed"
	dir := filepath.Join(lab.StateDir, name)
	for what, reached := range map[string]func() bool{
		"directory made":   func() bool { return exists(dir) },
		"state recorded":   func() bool { return exists(filepath.Join(dir, "state.json")) },
		"internet started": func() bool { return exists(filepath.Join(dir, "internet", "init.sock")) },
		"host prepared":    func() bool { return exists(filepath.Join(dir, "h1", "share")) },
		"host started":     func() bool { return exists(filepath.Join(dir, "h1", "init.sock")) },
		"dockerd started":  func() bool { return exists(filepath.Join(dir, "h1", "share", "dockerd.log")) },
		"dockerd listens":  func() bool { return exists(filepath.Join(dir, "h1", "share", "docker.sock")) },
	} {
		t.Run(what, func(t *testing.T) {
			t.Cleanup(func() { _ = lab.Down(context.Background(), name) })
			up, _ := startUp(t, name)
			eventually(t, reached, func() string { return "it does not come to that" })
			if err := up.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = up.Wait() // it was killed
			if err := lab.Down(t.Context(), name); err != nil {
				t.Fatal(err)
			}
			noLeaks(t, name)
		})
	}
}

// startUp runs this binary to bring a lab up; its output says "up" when it is.
func startUp(t *testing.T, name string, env ...string) (*exec.Cmd, io.Reader) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	up := exec.Command(self)
	up.Env = append(append(os.Environ(), upProcess+"="+name), env...)
	up.Stderr = t.Output()
	if _, err := up.StdinPipe(); err != nil { // it lives until this end is closed
		t.Fatal(err)
	}
	out, err := up.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := up.Start(); err != nil {
		t.Fatal(err)
	}
	return up, out
}

// A lab outlives the process that made it, unless it is tied to it.
func TestMakerDies(t *testing.T) {
	needRoot(t)
	const name = "t-maker"
	for what, c := range map[string]struct {
		env   []string
		lives bool
	}{
		"kept": {nil, true},
		"tied": {[]string{upTied + "=1"}, false},

		"tied, with systemd": {[]string{upTied + "=1", upSystemd + "=1"}, false},
	} {
		t.Run(what, func(t *testing.T) {
			t.Cleanup(func() { _ = lab.Down(context.Background(), name) })
			up, out := startUp(t, name, c.env...)
			if _, err := fmt.Fscanln(out, new(string)); err != nil {
				t.Fatal(err)
			}
			l, err := lab.Open(name)
			if err != nil {
				t.Fatal(err)
			}
			held, err := l.Held()
			if err != nil {
				t.Fatal(err)
			}
			if err := up.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = up.Wait() // it was killed
			if c.lives {
				on(t, l.Hosts()[0].Node, "docker", "version")
			} else {
				eventually(t, func() bool { return !exists(l.Internet().Root()) && !exists(l.Hosts()[0].Root()) },
					func() string { return "the tied lab lives on" })
			}
			if err := lab.Down(t.Context(), name); err != nil {
				t.Fatal(err)
			}
			noLeaks(t, name, held)
		})
	}
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// Up clears away what is left of a dead lab, and spares a living one.
func TestUpOverAnother(t *testing.T) {
	l := boot(t, lab.Options{Name: "t-over"})
	_, err := lab.Up(t.Context(), lab.Options{Name: "t-over"})
	if err == nil || !strings.Contains(err.Error(), "it is running; take it down first") {
		t.Fatalf("up over a running lab: %v", err)
	}
	if _, err := lab.Open("t-over"); err != nil {
		t.Fatalf("the running lab suffered: %v", err)
	}
	if err := unix.Kill(l.Hosts()[0].Pid(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() bool { _, err := lab.Open("t-over"); return err != nil }, func() string { return "it counts as running" })
	l, err = lab.Up(t.Context(), lab.Options{Name: "t-over", Tied: true})
	if err != nil {
		t.Fatal(err)
	}
	on(t, l.Hosts()[0].Node, "docker", "version")
}

// A lab that cannot come up leaves nothing and says why.
func TestUpFails(t *testing.T) {
	needRoot(t)
	for _, c := range []struct {
		o    lab.Options
		want string
	}{
		{lab.Options{Name: "t-fail", DaemonJSON: []byte(`{"no-such-key": 1}`)}, "no-such-key"},
		{lab.Options{Name: "t-fail", DaemonJSON: []byte(`[`)}, "give a JSON object"},
		{lab.Options{Name: "t-fail", Hosts: 300}, "ask for 1 to 250"},
		{lab.Options{Name: "t-fail", Engine: "future"}, "use debian or current"},
		{lab.Options{Name: "../etc"}, "not a usable name"},
	} {
		if _, err := lab.Up(t.Context(), c.o); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("got %v, want %q", err, c.want)
		}
		if c.o.Name == "t-fail" {
			noLeaks(t, c.o.Name)
		}
	}
}
