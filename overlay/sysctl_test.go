package overlay_test

import (
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/internal/netnstest"
	"github.com/particle-net/particle/overlay"
)

// readOnly names, in the child of TestWritableSysctls, what to make read-only.
const readOnly = "OVERLAY_TEST_READ_ONLY"

// TestWritableSysctls runs itself again in a mount namespace of its own, where
// /proc/sys is read-only as in a container.
func TestWritableSysctls(t *testing.T) {
	if path := os.Getenv(readOnly); path != "" {
		unlock(t, path)
		return
	}
	t.Parallel()
	netnstest.New(t) // or skip
	for _, path := range []string{"none", "/proc/sys", "/proc"} {
		t.Run(strings.TrimPrefix(path, "/"), func(t *testing.T) {
			t.Parallel()
			child := exec.Command("/proc/self/exe", "-test.run=^TestWritableSysctls$", "-test.v")
			child.Env = append(os.Environ(), readOnly+"="+path)
			child.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET}
			out, err := child.CombinedOutput()
			if err != nil || !strings.Contains(string(out), "sysctls unlocked") {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}

func unlock(t *testing.T, path string) {
	if path != "none" {
		for _, flags := range []uintptr{unix.MS_BIND | unix.MS_REC, unix.MS_BIND | unix.MS_REMOUNT | unix.MS_RDONLY} {
			if err := unix.Mount(path, path, "", flags, ""); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0); err == nil {
			t.Fatal("the sysctls are not read-only to begin with")
		}
	}
	for range 2 {
		if err := overlay.WritableSysctls(); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0); err != nil {
		t.Error(err)
	}
	t.Log("sysctls unlocked")
}
