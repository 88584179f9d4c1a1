package netnstest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// contained marks the process that runs inside.
const contained = "NETNSTEST_CONTAINED"

// Main runs the tests in fresh mount and network namespaces and gives their
// exit code. Without the right to make them it runs the tests where it is, and
// New skips or fails them.
func Main(m interface{ Run() int }) int {
	if !permitted() {
		return m.Run()
	}
	if os.Getenv(contained) != "" {
		// As on any Docker host, /run is in memory; and xtables' lock is in it.
		if err := syscall.Mount("tmpfs", runDir, "tmpfs", 0, ""); err != nil {
			fmt.Fprintln(os.Stderr, "netnstest: mount", runDir, err)
			return 1
		}
		return m.Run()
	}
	self := exec.Command("/proc/self/exe", os.Args[1:]...)
	self.Args[0] = os.Args[0]
	self.Env = append(os.Environ(), contained+"=1")
	self.Stdin, self.Stdout, self.Stderr = os.Stdin, os.Stdout, os.Stderr
	self.SysProcAttr = &syscall.SysProcAttr{
		Unshareflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET, // os/exec makes mounts private then
		Pdeathsig:    syscall.SIGKILL,
	}
	err := self.Run()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		return exit.ExitCode()
	case err != nil:
		fmt.Fprintln(os.Stderr, "netnstest:", err)
		return 1
	}
	return 0
}

const runDir = "/run"

// RunDir is a fresh directory in memory, removed at the end of the test.
func RunDir(t testing.TB) string {
	t.Helper()
	Require(t, permitted(), "root")
	dir, err := os.MkdirTemp(runDir, "test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// permitted reports whether the process may make namespaces and set what is
// global in them.
func permitted() bool { return os.Geteuid() == 0 }

// Require skips the test for want of what is named, or fails it if
// PARTICLE_REQUIRE is set.
func Require(t testing.TB, have bool, want string) {
	t.Helper()
	switch {
	case have:
	case os.Getenv("PARTICLE_REQUIRE") != "":
		t.Fatalf("needs %s, and PARTICLE_REQUIRE is set", want)
	default:
		t.Skipf("needs %s", want)
	}
}

// Since reports whether the kernel is of a release or a later one.
func Since(t testing.TB, major, minor int) bool {
	t.Helper()
	var name unix.Utsname
	var have [2]int
	err := unix.Uname(&name)
	if err == nil {
		_, err = fmt.Sscanf(unix.ByteSliceToString(name.Release[:]), "%d.%d", &have[0], &have[1])
	}
	if err != nil {
		t.Fatal(err)
	}
	return have[0] > major || have[0] == major && have[1] >= minor
}

// RequireTool is Require for a program on PATH.
func RequireTool(t testing.TB, name string) {
	t.Helper()
	_, err := exec.LookPath(name)
	Require(t, err == nil, "the program "+name)
}
