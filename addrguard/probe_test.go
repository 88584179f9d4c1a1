package addrguard_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/addrguard"
	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/internal/netnstest"
)

func TestProbe(t *testing.T) {
	dir := netnstest.RunDir(t)
	for name, opts := range map[string]addrguard.Options{
		"what is mounted": {Pins: filepath.Join(dir, "bpf"), Cgroups: cgroups(t)},
		"what is not":     {Pins: filepath.Join(dir, "bpf"), Cgroups: filepath.Join(dir, "cgroup")},
	} {
		lacks, err := addrguard.Probe(opts)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		checkLacks(t, lacks, devicesSince(t))
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// Without the capabilities the error says which.
func TestProbeNamesWhatIsMissing(t *testing.T) {
	netnstest.Require(t, os.Geteuid() == 0, "root")
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with its capabilities
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var none [2]unix.CapUserData
		if err := unix.Capset(&header, &none[0]); err != nil {
			result <- err
			return
		}
		_, err := addrguard.Probe(addrguard.Options{Pins: "/nowhere", Cgroups: cgroups(t)})
		result <- err
	}()
	err := <-result
	var f *fault.Error
	if !errors.As(err, &f) || f.Fix == "" || !errors.Is(err, unix.EPERM) {
		t.Errorf("without capabilities: %v", err)
	}
}

// The guard works where cgroup v2 is mounted nowhere, as on hosts with version 1
// alone: it mounts the hierarchy for itself, and takes it away again.
func TestMountsOfItsOwn(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	network := h.network(1, v4)
	if err := h.Guard.Close(); err != nil {
		t.Fatal(err)
	}
	elsewhere := h.opts
	elsewhere.Cgroups = filepath.Join(netnstest.RunDir(t), "cgroup")
	g, err := addrguard.Open(t.Context(), elsewhere)
	if err != nil {
		t.Fatal(err)
	}
	h.Guard = g
	a := h.box(network, 1, v4)
	expect(t, "guarded", a.confined("10.77.0.1"), true)
	if err := errors.Join(g.Close(), addrguard.Cleanup(t.Context(), elsewhere)); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(elsewhere.Cgroups); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the mount point is still there: %v", err)
	}
	expect(t, "after Cleanup", a.canBind("10.77.0.9"), true)
}
