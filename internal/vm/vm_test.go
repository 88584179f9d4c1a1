package vm_test

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// program is particle-vm, built as the Makefile does.
func program(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "particle-vm")
	build := exec.Command("go", "build", "-o", path, "../../cmd/particle-vm")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return path
}

// run gives what a program in a machine printed, and its status.
func run(t *testing.T, vm string, args ...string) (stdout, stderr string, status int) {
	t.Helper()
	var out, errs bytes.Buffer
	cmd := exec.Command(vm, args...)
	cmd.Env = append(os.Environ(), "VM_TEST=handed on")
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

func TestProgramInMachine(t *testing.T) {
	vm := program(t)
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	mark := filepath.Join(t.TempDir(), "mark")
	stdout, stderr, status := run(t, vm, "-kernel", "6.1", "-scratch", "/srv/memory", "sh", "-c", `
		uname -r | cut -d. -f1,2; pwd; stat -f -c %T /srv/memory; id -u; echo "$VM_TEST"; ls /sys/class/net
		ip link add wg0 type wireguard && ip link show wg0 | grep -o wg0
		mount -t tmpfs none /mnt && touch "$1" && ls "$1"
		echo to stderr >&2; exit 7`, "sh", mark)
	want := strings.Join([]string{"6.1", dir, "tmpfs", "0", "handed on", "lo", "wg0", mark, ""}, "\n")
	if stdout != want || !strings.HasSuffix(stderr, "to stderr\n") || status != 7 {
		t.Errorf("stdout:\n%s\nwant:\n%s\nstderr: %s\nstatus %d, want 7", stdout, want, stderr, status)
	}
	if _, err := os.Stat(mark); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file that was made in the machine is outside: %v", err)
	}
}

// A machine that does not end is ended, with the last of what its kernel said.
func TestMachineThatHangs(t *testing.T) {
	vm := program(t)
	_, stderr, status := run(t, vm, "-kernel", "6.1", "-timeout", "60s", "sh", "-c", "echo here I hang >/dev/console; sleep 1000")
	if status != 1 || !strings.Contains(stderr, "not done after 1m0s") || !strings.Contains(stderr, "here I hang") {
		t.Errorf("status %d, stderr: %s", status, stderr)
	}
}

// So is one whose kernel panics, at once.
func TestKernelThatPanics(t *testing.T) {
	vm := program(t)
	_, stderr, status := run(t, vm, "-kernel", "6.1", "sh", "-c", "echo c >/proc/sysrq-trigger; sleep 1000")
	if status != 1 || !strings.Contains(stderr, "the kernel ended before the program") || !strings.Contains(stderr, "sysrq triggered crash") {
		t.Errorf("status %d, stderr: %s", status, stderr)
	}
}
