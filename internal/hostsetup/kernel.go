package hostsetup

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/addrguard"
	"github.com/particle-net/particle/internal/report"
	"github.com/particle-net/particle/overlay"
	"github.com/particle-net/particle/seccomp/filter"
	"github.com/particle-net/particle/topology"
)

// Kernel finds out what the kernel can do by building a network with the
// plugin's own code. The calling process must be in a network namespace of its
// own, which stands for the host's, so that nothing of the host is touched.
func Kernel(ctx context.Context) []report.Check {
	checks := []report.Check{kernelRelease(), sysctls()}
	// The image has no directory for temporary files.
	err := os.MkdirAll(os.TempDir(), 0o1777)
	var dir string
	if err == nil {
		dir, err = os.MkdirTemp("", "particle-")
	}
	if err != nil {
		return append(checks, report.Check{Name: "tunnels", Grade: report.Missing, Finding: err.Error(),
			Remedy: "make room for temporary files"})
	}
	defer os.RemoveAll(dir)
	checks = append(checks, networks(ctx, dir)...)
	return append(checks, guard(dir)...)
}

// guard tries the address guard's programs on cgroups made for it.
func guard(dir string) []report.Check {
	lacks, err := addrguard.Probe(addrguard.Options{Pins: filepath.Join(dir, "bpf"), Cgroups: filepath.Join(dir, "cgroup"), Parents: addrguard.Parents()})
	if err != nil {
		finding, fix := tell(err, "boot a kernel that has it, or set PARTICLE_GUARD=off and let the containers of a network trust each other")
		c := report.Check{Name: "guard", Grade: report.Missing, Finding: finding, Remedy: fix}
		if filter.Probe() == nil {
			c.Grade = report.Warn
			c.Finding += "; answers to system calls (seccomp) keep containers to their own addresses instead, more slowly and less strictly"
		}
		return []report.Check{c}
	}
	found := report.Check{Name: "guard", Grade: report.OK, Finding: "eBPF programs can keep containers to their own addresses"}
	if len(lacks) == 0 {
		found.Finding += "; names of abstract unix sockets can be taken by neighbours, not reached"
	}
	checks := []report.Check{found}
	for _, lack := range lacks {
		finding, fix := tell(lack, "boot a newer kernel")
		checks = append(checks, report.Check{Name: "guard", Grade: report.Warn, Finding: finding, Remedy: fix})
	}
	return checks
}

func kernelRelease() report.Check {
	c := report.Check{Name: "kernel", Grade: report.OK}
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		c.Grade, c.Finding, c.Remedy = report.Warn, err.Error(), "report this as a bug"
		return c
	}
	c.Finding = fmt.Sprintf("Linux %s, %s", unix.ByteSliceToString(uts.Release[:]), unix.ByteSliceToString(uts.Machine[:]))
	return c
}

func sysctls() report.Check {
	if err := overlay.WritableSysctls(); err != nil {
		return report.Check{Name: "sysctls", Grade: report.Missing, Finding: err.Error(),
			Remedy: "allow privileged containers to write /proc/sys (gVisor and some security modules do not)"}
	}
	return report.Check{Name: "sysctls", Grade: report.OK, Finding: "a plugin can write /proc/sys of its network namespaces"}
}

func networks(ctx context.Context, dir string) []report.Check {
	tunnel := report.Check{Name: "tunnels", Grade: report.OK, Finding: "network namespaces, VXLAN devices and address pools work"}
	failed := func(err error) []report.Check {
		tunnel.Grade, tunnel.Finding = report.Missing, err.Error()
		tunnel.Remedy = "load the kernel module vxlan (`modprobe vxlan`), or boot a kernel that has it"
		return []report.Check{tunnel}
	}
	host, err := overlay.Open(ctx, overlay.Options{NamespaceDir: dir})
	if err != nil {
		return failed(err)
	}
	defer host.Close()
	id := topology.NetworkID(strings.Repeat("d0", 32))
	_, err = host.Apply(ctx, topology.Segment{
		Network: id, VNI: topology.MaxVNI, Port: topology.VXLANPort, MTU: 1450,
		VTEP:  netip.AddrFrom4([4]byte{127, 0, 0, 1}),
		Pools: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")},
	})
	if err != nil {
		return failed(err)
	}
	checks := []report.Check{tunnel, exit(ctx, host, id)}
	if err := host.Remove(ctx, id); err != nil {
		checks = append(checks, report.Check{Name: "removal", Grade: report.Warn, Finding: err.Error(),
			Remedy: "report this as a bug"})
	}
	return checks
}

// exit tries what carries packets of containers out of their host.
func exit(ctx context.Context, host *overlay.Host, id topology.NetworkID) report.Check {
	c := report.Check{Name: "uplinks", Grade: report.OK, Finding: "veth pairs, policy routing and nftables' address translation work"}
	up, err := topology.NewUplink(id, 0, 1450)
	if err == nil {
		_, err = host.ApplyUplink(ctx, up)
	}
	if err != nil {
		c.Grade, c.Finding = report.Missing, err.Error()
		c.Remedy = "load the kernel modules veth, nf_tables, nft_masq and nft_chain_nat, or boot a kernel that has them and CONFIG_IP_MULTIPLE_TABLES"
	}
	return c
}
