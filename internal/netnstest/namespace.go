package netnstest

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Namespace is a network namespace that ends with its test.
type Namespace struct {
	t    testing.TB
	file *os.File
}

// New makes an empty namespace with lo up.
func New(t testing.TB) *Namespace {
	t.Helper()
	Require(t, permitted(), "root")
	RequireTool(t, "ip")
	opened := make(chan *os.File)
	failed := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			failed <- err
			return
		}
		file, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			failed <- err
			return
		}
		opened <- file
	}()
	select {
	case err := <-failed:
		t.Fatal("make a network namespace:", err)
		return nil
	case file := <-opened:
		return own(t, file)
	}
}

func own(t testing.TB, file *os.File) *Namespace {
	ns := &Namespace{t: t, file: file}
	t.Cleanup(func() { _ = file.Close() })
	ns.Run("ip", "link", "set", "lo", "up")
	return ns
}

// At is the namespace bound on a file. It is not kept alive by this test.
func At(t testing.TB, path string) *Namespace {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = file.Close() })
	return &Namespace{t: t, file: file}
}

// Path names the namespace for bind mounts and setns, within this process.
func (n *Namespace) Path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n.file.Fd()) }

// Release lets go of the namespace before the test ends.
func (n *Namespace) Release() { _ = n.file.Close() }

// Do runs fn on a thread inside the namespace. Goroutines that fn starts are
// outside. fn must not end the test.
func (n *Namespace) Do(fn func()) {
	n.t.Helper()
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET)
		if err == nil {
			fn()
		}
		result <- err
	}()
	if err := <-result; err != nil {
		n.t.Fatal("enter a network namespace:", err)
	}
}

// Run runs a program inside and gives what it prints; the test fails if the
// program does.
func (n *Namespace) Run(name string, args ...string) string {
	n.t.Helper()
	out, err := n.Try(name, args...)
	if err != nil {
		n.t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return out
}

// Try is Run for a program that may fail.
func (n *Namespace) Try(name string, args ...string) (string, error) {
	n.t.Helper()
	var out []byte
	var err error
	// The child inherits the namespace of the thread that starts it.
	n.Do(func() { out, err = exec.Command(name, args...).CombinedOutput() })
	return string(out), err
}

// Connect wires two namespaces with a veth pair. An end is given as its name
// and, if it is to have one, its address with the prefix length.
func Connect(a *Namespace, aName, aAddr string, b *Namespace, bName, bAddr string) {
	a.t.Helper()
	a.Run("ip", "link", "add", aName, "type", "veth", "peer", "name", bName, "netns", b.Path())
	a.raise(aName, aAddr)
	b.raise(bName, bAddr)
}

func (n *Namespace) raise(name, addr string) {
	n.t.Helper()
	if addr != "" {
		n.Run("ip", "address", "add", addr, "dev", name, "nodad")
	}
	n.Run("ip", "link", "set", name, "up")
}
