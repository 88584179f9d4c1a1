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
)

// A program of somebody else's that was attached to bear no other keeps the guard's out,
// and containers with them.
func TestExclusiveProgram(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	network := h.network(1, v4)
	other, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.CGroupSockAddr, AttachType: ebpf.AttachCGroupInet4Bind, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 1), asm.Return()}})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	dir, err := os.Open(filepath.Join(h.opts.Cgroups, h.top))
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	at := link.RawAttachProgramOptions{Target: int(dir.Fd()), Program: other, Attach: ebpf.AttachCGroupInet4Bind}
	if err := link.RawAttachProgram(at); err != nil {
		t.Fatal(err)
	}
	h.cgroup(h.top + "/1")
	_, err = h.Admit(t.Context(), h.top+"/1", identityOf(network, 1, v4))
	if err == nil || !errors.Is(err, unix.EPERM) || !strings.Contains(err.Error(), "another program is there or above that bears none beside it") {
		t.Errorf("admitted beside it: %v", err)
	}
	if err := link.RawDetachProgram(link.RawDetachProgramOptions{Target: int(dir.Fd()), Program: other, Attach: ebpf.AttachCGroupInet4Bind}); err != nil {
		t.Fatal(err)
	}
	expect(t, "without it", h.admitted(h.top+"/1", identityOf(network, 1, v4)).confined("10.77.0.1"), true)
}
