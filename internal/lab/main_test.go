package lab_test

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/particle-net/particle/internal/lab"
)

// upProcess makes the test binary bring the lab of that name up and wait: tests
// kill it on the way and afterwards. With upTied the lab is tied to it, with upSystemd
// its hosts run systemd.
const (
	upProcess = "PARTICLE_LAB_TEST_UP"
	upTied    = "PARTICLE_LAB_TEST_TIED"
	upSystemd = "PARTICLE_LAB_TEST_SYSTEMD"
)

func TestMain(m *testing.M) {
	lab.MaybeInit()
	if name := os.Getenv(upProcess); name != "" {
		os.Exit(upAndWait(lab.Options{Name: name, Tied: os.Getenv(upTied) != "", Systemd: os.Getenv(upSystemd) != ""}))
	}
	os.Exit(m.Run())
}

func upAndWait(o lab.Options) int {
	if _, err := lab.Up(context.Background(), o); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Println("up")
	_, _ = io.Copy(io.Discard, os.Stdin)
	return 0
}

// needRoot skips a test that boots hosts when it cannot; PARTICLE_REQUIRE=1 makes
// that a failure.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("PARTICLE_REQUIRE") == "1" {
		t.Fatal("not root, and PARTICLE_REQUIRE=1 asks for it")
	}
	t.Skip("needs root to make namespaces")
}

// boot brings a lab up for a test. When the test ends the lab is taken down, and
// whatever it leaves fails the test.
func boot(t *testing.T, o lab.Options) *lab.Lab {
	t.Helper()
	needRoot(t)
	o.Replace, o.Tied, o.Progress = true, true, t.Output()
	l, err := lab.Up(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { takeDown(t, l) })
	return l
}

func takeDown(t *testing.T, l *lab.Lab) {
	t.Helper()
	held, err := l.Held()
	if err != nil {
		held = lab.Held{} // a test that took the lab down has nothing to look for
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := l.Down(ctx); err != nil {
		t.Error(err)
	}
	noLeaks(t, l.Name(), held)
}

func noLeaks(t *testing.T, name string, held ...lab.Held) {
	t.Helper()
	var left []string
	// The command runners of killed commands end on their own, right after.
	eventually(t, func() bool {
		var err error
		if left, err = lab.Leaks(name, held...); err != nil {
			t.Fatal(err)
		}
		return len(left) == 0
	}, func() string { return fmt.Sprintf("lab %s leaves %q", name, left) })
}

// eventually waits for a condition, for 20 s at most.
func eventually(t *testing.T, ok func() bool, complaint func() string) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for !ok() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatal(complaint())
		}
	}
}

// on runs a command on a node and returns what it printed.
func on(t *testing.T, n *lab.Node, argv ...string) string {
	t.Helper()
	out, err := n.Exec(t.Context(), argv...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// webServer lets a node serve a file that holds its text on an address, until the
// test ends.
func webServer(t *testing.T, n *lab.Node, address, text string) {
	t.Helper()
	dir := filepath.Join(n.Root(), "run", "lab")
	serve := "/run/lab"
	if n.Name() == "internet" { // it has the machine's files
		dir = t.TempDir()
		serve = dir
	}
	if err := os.WriteFile(filepath.Join(dir, "index.html"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := n.StartService(t.Context(), "web", "/bin/busybox", "httpd", "-f", "-p", address, "-h", serve); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() bool {
		out, err := n.Exec(t.Context(), "/bin/busybox", "wget", "-qO-", "http://"+address+"/")
		return err == nil && out == text
	}, func() string { return n.Name() + " does not serve" })
}
