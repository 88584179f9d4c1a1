package addrguard_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/addrguard"
)

// A program of somebody else's that was attached to bear no other keeps the guard's out,
// and containers with them.
func TestExclusiveProgram(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	network := h.network(1, v4)
	release := h.occupy(h.top)
	h.cgroup(h.top + "/1")
	_, err := h.Admit(t.Context(), h.top+"/1", identityOf(network, 1, v4))
	keptOut(t, "admitted beside it", err)
	release()
	expect(t, "without it", h.admitted(h.top+"/1", identityOf(network, 1, v4)).confined("10.77.0.1"), true)
}

// That it is there is told before a container comes, and trying leaves nothing.
func TestTryAttach(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	parent := h.top + "/docker"
	h.cgroup(parent)
	if err := h.Guard.Close(); err != nil {
		t.Fatal(err)
	}
	h.opts.Parents = []string{h.top + "/no/such", parent}
	h.open()
	try := map[string]func() error{
		"TryAttach": h.TryAttach,
		"Probe":     func() error { _, err := addrguard.Probe(h.opts); return err },
	}
	for name, attach := range try {
		for _, at := range []string{parent, h.top} {
			release := h.occupy(at)
			err := attach()
			keptOut(t, name, err)
			if err != nil && !strings.Contains(err.Error(), "to cgroup "+parent+": ") {
				t.Errorf("%s does not name the cgroup: %v", name, err)
			}
			release()
		}
		if err := attach(); err != nil {
			t.Errorf("%s with nobody there: %v", name, err)
		}
	}
	expect(t, "in force", addrguard.InForce(h.opts.Pins), false)
	if left, err := filepath.Glob(filepath.Join(h.opts.Cgroups, parent, "particle-*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// keptOut fails the test unless an error tells of a program that bears no other.
func keptOut(t *testing.T, what string, err error) {
	t.Helper()
	if err == nil || !errors.Is(err, unix.EPERM) || !strings.Contains(err.Error(), "another program is there or above that bears none beside it") {
		t.Errorf("%s: %v", what, err)
	}
}

// occupy attaches such a program to a cgroup.
func (h *host) occupy(cgroup string) (release func()) {
	h.t.Helper()
	other, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.CGroupSockAddr, AttachType: ebpf.AttachCGroupInet4Bind, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 1), asm.Return()}})
	if err != nil {
		h.t.Fatal(err)
	}
	dir, err := os.Open(filepath.Join(h.opts.Cgroups, cgroup))
	if err != nil {
		h.t.Fatal(err)
	}
	at := link.RawAttachProgramOptions{Target: int(dir.Fd()), Program: other, Attach: ebpf.AttachCGroupInet4Bind}
	if err := link.RawAttachProgram(at); err != nil {
		h.t.Fatal(err)
	}
	return func() {
		h.t.Helper()
		defer other.Close()
		defer dir.Close()
		if err := link.RawDetachProgram(link.RawDetachProgramOptions{Target: int(dir.Fd()), Program: other, Attach: ebpf.AttachCGroupInet4Bind}); err != nil {
			h.t.Fatal(err)
		}
	}
}
