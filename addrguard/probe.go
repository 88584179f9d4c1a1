package addrguard

import (
	"errors"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/internal/fault"
)

// packetNetns reports whether programs on packets may ask for the namespace.
func packetNetns() bool {
	return features.HaveProgramHelper(ebpf.CGroupSKB, asm.FnGetNetnsCookie) == nil
}

// loadError explains why the programs did not load.
func loadError(err error) error {
	fix := "run `particle doctor`, which names what this kernel lacks"
	switch {
	case errors.Is(err, unix.EPERM):
		fix = "grant CAP_SYS_ADMIN, or CAP_BPF with CAP_NET_ADMIN and CAP_PERFMON"
	case errors.Is(err, ebpf.ErrNotSupported):
		fix = "use Linux 6.1 or later with BPF, cgroup BPF and BTF (CONFIG_DEBUG_INFO_BTF)"
	}
	return &fault.Error{Op: "load address guard", Err: err, Fix: fix}
}
