package archtest_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
)

// scope says which imports of a package a rule looks at.
type scope int

const (
	direct    scope = iota // of its files, tests left out
	withTests              // of its files and tests
	deep                   // of its files, and all that those import in turn
)

// rule forbids imports. A name covers the packages below it.
type rule struct {
	from   []string // the packages bound; nil means all of the module
	except []string // of those, the ones not bound
	to     []string // what they must not import; nil means everything
	allow  []string // of that, what they may import; "std" is the standard library
	scope  scope
	why    string
}

var (
	kernel = []string{"github.com/vishvananda/netlink", "github.com/vishvananda/netns", "github.com/google/nftables"}
	docker = []string{"github.com/docker/docker", "github.com/docker/cli", "github.com/docker/go-connections"}
	bbolt  = []string{"go.etcd.io/bbolt"}
	wire   = []string{"github.com/docker/go-plugins-helpers"}
)

var rules = []rule{
	{
		except: []string{"overlay", "internal/netnstest", "internal/lab", "bench"},
		to:     kernel, scope: withTests,
		why: "netlink and nftables belong to overlay: its typed API is the only place where the order of kernel writes is kept; tests look at the kernel through overlay.Observe or internal/netnstest",
	},
	{
		except: []string{"overlay"},
		to:     []string{"golang.zx2c4.com/wireguard"}, scope: withTests,
		why: "WireGuard belongs to overlay: that nothing leaves a host in plain hangs on device, routes and firewall together",
	},
	{
		except: []string{"internal/store"},
		to:     bbolt, scope: withTests,
		why: "the file format belongs to internal/store: what others know of it cannot be changed",
	},
	{
		except: []string{"addrguard"},
		to:     []string{"github.com/cilium/ebpf"}, scope: withTests,
		why: "eBPF belongs to addrguard, which knows how programs are attached, pinned and taken over after a restart",
	},
	{
		except: []string{"control"},
		to:     []string{"go.etcd.io/etcd"}, scope: withTests,
		why: "the cluster's store belongs to control: claims and leases are safe only if all of them are written in its transactions",
	},
	{
		from: []string{"fabric"}, scope: deep,
		to:    slices.Concat(kernel, docker, bbolt, wire, []string{"overlay", "driver", "ipam", "addrguard", "control", "go.etcd.io/etcd", "net/http", "internal/store"}),
		allow: []string{"ipam/pool"},
		why:   "fabric is the domain: it declares the interfaces it needs, and knows no kernel, no Docker, no database and no wire format, so that its tests need none",
	},
	{
		from: []string{"fabric"},
		to:   []string{"encoding/json"},
		why:  "fabric knows no JSON: strings end where driver and ipam parse them, and internal/store chooses how records are written",
	},
	{
		from: []string{"topology"}, allow: []string{"std"},
		why: "topology is what all others share: whatever it imports, everybody imports",
	},
	{
		from: []string{"ipam/pool"}, allow: []string{"std", "topology", "internal/fault"},
		why: "the allocator is pure computation: a test may run it a million times, and nothing outside can change its answers",
	},
	{
		from: []string{"driver", "ipam"}, scope: deep,
		to:  slices.Concat(kernel, bbolt, []string{"overlay", "internal/store", "addrguard", "control"}),
		why: "driver and ipam parse, make one call to the domain, and render: kernel and database are behind fabric's interfaces",
	},
	{
		from: []string{"cmd/particle-runtime", "internal/shim"}, scope: deep,
		to:  slices.Concat(docker, []string{"net/http", "github.com/sirupsen/logrus", "github.com/spf13/cobra"}),
		why: "the shim runs several times in every container's life, and each of these packages adds milliseconds of start-up to it; it speaks to the plugin through internal/runtimeapi",
	},
	{
		from: []string{"cmd/particle-runtime", "internal/shim", "cmd/particle"}, scope: deep,
		to:  []string{"go.etcd.io/etcd", "control/server", "google.golang.org/grpc"},
		why: "the store belongs to the plugin, which has an etcd of 25 MB in it: programs beside it ask the plugin, and start fast",
	},
	{
		to: []string{"cmd"}, scope: withTests,
		why: "a command is wiring, and nobody imports wiring: move what is shared into a package",
	},
}

// under reports whether a package is one of those named, or below one.
func under(name string, of []string) bool {
	return slices.ContainsFunc(of, func(o string) bool {
		return name == o || strings.HasPrefix(name, o+"/")
	})
}

// breaches applies one rule to a graph.
func (r rule) breaches(g graph) []string {
	forbidden := func(name string) bool {
		switch {
		case under(name, r.allow), g[name].Standard && slices.Contains(r.allow, "std"):
			return false
		default:
			return r.to == nil || under(name, r.to)
		}
	}
	var out []string
	for _, name := range slices.Sorted(maps.Keys(g)) {
		n := g[name]
		if n.Standard || !own(name) || r.from != nil && !under(name, r.from) || under(name, r.except) {
			continue
		}
		imports := slices.Clone(n.Imports)
		if r.scope == withTests {
			imports = slices.Concat(imports, n.TestImports, n.XTestImports)
		}
		slices.Sort(imports)
		for _, to := range slices.Compact(imports) {
			if forbidden(to) && !selfTest(name, to, r) {
				out = append(out, fmt.Sprintf("%s imports %s", name, to))
			}
		}
		if r.scope != deep {
			continue
		}
		if chain := g.path(name, forbidden); len(chain) > 1 {
			out = append(out, fmt.Sprintf("%s imports %s", name, strings.Join(chain, ", which imports ")))
		}
	}
	return out
}

// selfTest reports whether the import is one inside a forbidden folder, as of a
// command by its own external test.
func selfTest(name, to string, r rule) bool {
	return slices.ContainsFunc(r.to, func(o string) bool {
		a, okA := strings.CutPrefix(name, o+"/")
		b, okB := strings.CutPrefix(to, o+"/")
		a, _, _ = strings.Cut(a, "/")
		b, _, _ = strings.Cut(b, "/")
		return okA && okB && a == b
	})
}

func TestImports(t *testing.T) {
	g := load(t)
	for _, r := range rules {
		for _, b := range r.breaches(g) {
			t.Errorf("%s\n\t%s", b, r.why)
		}
	}
}

// A rule that forbids nothing would never be missed.
func TestRulesForbid(t *testing.T) {
	std := func(names ...string) graph {
		g := graph{}
		for _, n := range names {
			g[n] = node{ImportPath: n, Standard: true}
		}
		return g
	}("net/http", "errors", "encoding/json")
	for _, c := range []struct {
		name   string
		g      graph
		breach string // the only one; none if empty
	}{
		{"netlink in the domain's neighbour", graph{"driver": {Imports: kernel[:1]}}, "driver imports github.com/vishvananda/netlink"},
		{"netlink in a test", graph{"dns": {XTestImports: kernel[:1]}}, "dns imports github.com/vishvananda/netlink"},
		{"nftables below the root", graph{"internal/x": {Imports: []string{"github.com/google/nftables/expr"}}}, "internal/x imports github.com/google/nftables/expr"},
		{"netlink where it belongs", graph{"overlay": {Imports: kernel, TestImports: kernel}, "internal/lab/x": {Imports: kernel}}, ""},
		{"a name that only begins alike", graph{"overlayfs": {Imports: kernel[:1]}}, "overlayfs imports github.com/vishvananda/netlink"},
		{"WireGuard elsewhere", graph{"internal/member": {Imports: []string{"golang.zx2c4.com/wireguard/wgctrl"}}}, "internal/member imports golang.zx2c4.com/wireguard/wgctrl"},
		{"bbolt in a test", graph{"internal/report": {TestImports: bbolt}}, "internal/report imports go.etcd.io/bbolt"},
		{"bbolt where it belongs", graph{"internal/store": {Imports: []string{"go.etcd.io/bbolt/errors"}}}, ""},
		{"eBPF elsewhere", graph{"internal/shim": {Imports: []string{"github.com/cilium/ebpf/link"}}}, "internal/shim imports github.com/cilium/ebpf/link"},
		{"etcd elsewhere", graph{"dns": {Imports: []string{"go.etcd.io/etcd/client/v3"}}}, "dns imports go.etcd.io/etcd/client/v3"},
		{"fabric and the wire, far away", graph{"fabric": {Imports: []string{"internal/x"}}, "internal/x": {Imports: wire}},
			"fabric imports internal/x, which imports github.com/docker/go-plugins-helpers"},
		{"fabric and JSON", graph{"fabric": {Imports: []string{"encoding/json"}}}, "fabric imports encoding/json"},
		{"fabric and what it may know", graph{"fabric": {Imports: []string{"ipam/pool", "topology", "errors"}, XTestImports: []string{"internal/store"}}}, ""},
		{"topology and anything", graph{"topology": {Imports: []string{"internal/fault", "errors"}}}, "topology imports internal/fault"},
		{"the allocator and fabric", graph{"ipam/pool": {Imports: []string{"internal/fault", "fabric"}}}, "ipam/pool imports fabric"},
		{"ipam and the kernel, far away", graph{"ipam": {Imports: []string{"internal/x"}}, "internal/x": {Imports: []string{"overlay"}}},
			"ipam imports internal/x, which imports overlay"},
		{"the shim and HTTP, far away", graph{"internal/shim": {Imports: []string{"internal/x"}}, "internal/x": {Imports: []string{"net/http"}}},
			"internal/shim imports internal/x, which imports net/http"},
		{"HTTP in the shim's tests", graph{"internal/shim": {TestImports: []string{"net/http"}}}, ""},
		{"the command line and the store, far away", graph{"cmd/particle": {Imports: []string{"internal/x"}}, "internal/x": {Imports: []string{"control/server"}}},
			"cmd/particle imports internal/x, which imports control/server"},
		{"a command imported", graph{"integration": {XTestImports: []string{"cmd/particle"}}}, "integration imports cmd/particle"},
		{"a command imports another", graph{"cmd/particle": {Imports: []string{"cmd/particle-lab"}}}, "cmd/particle imports cmd/particle-lab"},
		{"a command's own test and folder", graph{"cmd/particle": {Imports: []string{"cmd/particle/doctor"}, XTestImports: []string{"cmd/particle"}}}, ""},
		{"somebody else's package", graph{"github.com/other/module": {Imports: kernel}}, ""},
	} {
		maps.Copy(c.g, std)
		var got []string
		for _, r := range rules {
			got = append(got, r.breaches(c.g)...)
		}
		slices.Sort(got)
		got = slices.Compact(got) // two rules may forbid the same
		if strings.Join(got, "; ") != c.breach {
			t.Errorf("%s: breaches %q, want %q", c.name, got, c.breach)
		}
	}
}
