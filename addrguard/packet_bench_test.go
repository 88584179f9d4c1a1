package addrguard_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"

	"github.com/particle-net/particle/internal/netnstest"
)

// The programs that see each packet between containers of one host.
var onPackets = []struct {
	pin    string // its end
	kind   ebpf.ProgramType
	attach ebpf.AttachType
	pass   int32 // what one answers that lets all packets pass
}{
	{"-ingress", ebpf.CGroupSKB, ebpf.AttachCGroupInetIngress, 1},
	{"-lo-steer", ebpf.SchedCLS, ebpf.AttachTCXIngress, -1},
}

// BenchmarkPackets tells what the programs that see packets cost as they are, what
// empty ones in their place cost, and what is left where there are none, as ratios to
// a process outside.
func BenchmarkPackets(b *testing.B) {
	names := []string{"as-they-are", "empty-ingress", "empty-lo", "empty", "no-ingress", "no-lo", "none"}
	outside := tenant(b, v4)
	h := newHost(b)
	h.cgroup(h.top + "-outside")
	places, spaces := []*box{h.start(h.top+"-outside", outside)}, []*netnstest.Namespace{outside}
	for _, name := range names {
		h := newHost(b)
		network := h.network(1, v4)
		places, spaces = append(places, h.box(network, 1, v4)), append(spaces, h.spaces[network])
		what, which, _ := strings.Cut(name, "-")
		for n, p := range onPackets {
			if what == "as" || which != "" && which != []string{"ingress", "lo"}[n] {
				continue
			}
			h.eachPin(p.pin, func(path string) error {
				if what != "empty" {
					return os.Remove(path)
				}
				return empty(path, p.kind, p.attach, p.pass)
			})
		}
	}
	for _, ns := range spaces {
		ns.Run("sysctl", "-q", "-w", "net.ipv4.tcp_max_tw_buckets=0")
	}
	for _, kind := range []string{"pair-udp", "tcp"} {
		b.Run(kind, func(b *testing.B) {
			spent := spentAt(b, places, kind)
			b.ReportMetric(0, "ns/op")
			for n, name := range names {
				b.ReportMetric(slices.Min(spent[n+1])/slices.Min(spent[0]), name)
				b.ReportMetric(medianRatio(spent[n+1], spent[0]), name+"-p50")
			}
		})
	}
}

// eachPin does something with the pinned links whose names end so.
func (h *host) eachPin(end string, do func(path string) error) {
	h.t.Helper()
	paths, err := filepath.Glob(filepath.Join(h.opts.Pins, "*", "*"+end))
	if err != nil || len(paths) == 0 {
		h.t.Fatalf("no link %s: %v", end, err)
	}
	for _, path := range paths {
		if err := do(path); err != nil {
			h.t.Fatal(err)
		}
	}
}

// empty puts a program that lets all packets pass in place of a link's.
func empty(path string, kind ebpf.ProgramType, attach ebpf.AttachType, pass int32) error {
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: kind, AttachType: attach, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, pass), asm.Return()}})
	if err != nil {
		return err
	}
	defer prog.Close()
	pinned, err := link.LoadPinnedLink(path, nil)
	if err != nil {
		return err
	}
	defer pinned.Close()
	return pinned.Update(prog)
}
