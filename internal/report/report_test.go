package report_test

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/particle-net/particle/internal/report"
	"github.com/particle-net/particle/internal/runtimeapi"
)

var now = time.Date(2030, 5, 1, 12, 0, 0, 0, time.UTC)

func TestStatus(t *testing.T) {
	s := runtimeapi.Status{
		Version: "0.1.0", Started: now.Add(-26 * time.Hour), Repairs: 1,
		Underlay: runtimeapi.UnderlayStatus{VTEP: "192.0.2.7", MTU: 1500, Port: 4789},
		Guard: runtimeapi.GuardStatus{Mode: "bpf", Lacks: []string{"keep abstract unix sockets apart: not supported"}, Strangers: 1,
			Denied: runtimeapi.Denials{Binds: 12, Packets: 3}, Changed: runtimeapi.Rewritings{Binds: 1204, Pings: 2}},
		Networks: []runtimeapi.NetworkStatus{
			{
				ID: "4f2a9c01d3b74f2a9c01d3b7", Name: "jobs", VNI: 4097, MTU: 1450, Uplink: "198.18.0.2",
				Scope: runtimeapi.ScopeCluster, Shared: "77aa9c01d3b74f2a9c01d3b7", Peers: 2,
				Pools: []runtimeapi.PoolStatus{{ID: "p1", Subnet: netip.MustParsePrefix("10.9.0.0/24"), Used: 3, Free: "13", Blocks: []runtimeapi.BlockStatus{
					{Prefix: netip.MustParsePrefix("10.9.0.0/28"), Used: 2, Free: "13", State: runtimeapi.BlockServing},
					{Prefix: netip.MustParsePrefix("10.9.0.200/32"), Used: 1, Free: "0", State: runtimeapi.BlockServing},
				}}},
				Endpoints: []runtimeapi.EndpointStatus{
					{ID: "e2", Container: "aaaaaaaaaaaaaaaaaaaa", Name: "web", IPv4: netip.MustParseAddr("10.9.0.10"), Pid: 812, State: "running", Since: now.Add(-90 * time.Second),
						Guests: []runtimeapi.GuestStatus{{Container: "bbbbbbbbbbbbbbbbbbbb", Name: "side", Pid: 815, Denied: runtimeapi.Denials{Binds: 10, Unix: 2}, Since: now.Add(-time.Minute)}}},
					{ID: "e1", IPv4: netip.MustParseAddr("10.9.0.9"), IPv6: netip.MustParseAddr("fd00::9"), State: "created", Own: true, Reason: "--privileged", Since: now},
				},
			},
			{ID: "0123456789abcdef", VNI: 4098, MTU: 1450, Internal: true, Problem: "the pool's route is gone",
				Pools: []runtimeapi.PoolStatus{{Subnet: netip.MustParsePrefix("172.30.0.0/16"), Used: 0, Free: ""}}},
		},
	}
	want := `particle 0.1.0, up 26h, VTEP 192.0.2.7, port 4789, MTU 1500
1 repair since then: something else changed what belongs to particle
the address guard does without a part: keep abstract unix sockets apart: not supported
address guard since the boot: 1204 binds rewritten, 2 pings rewritten, 12 binds denied, 3 packets dropped
1 socket denied to processes that are in a network's namespace and in no container

NETWORK        NAME   SCOPE     PEERS   VNI    MTU    UPLINK       ENDPOINTS   STATE
0123456789ab   -      host      -       4098   1450   internal     0           problem
4f2a9c01d3b7   jobs   cluster   2       4097   1450   198.18.0.2   2           ok

POOL OF        SUBNET          RANGE   USED   FREE
0123456789ab   172.30.0.0/16   -       -      -
jobs           10.9.0.0/24     -       3      13

BLOCK OF   IN CLUSTER     BLOCK           USED   FREE   STATE
jobs       77aa9c01d3b7   10.9.0.0/28     2      13     serving
jobs       77aa9c01d3b7   10.9.0.200/32   1      0      serving

CONTAINER   ID             NETWORK   ADDRESS            PROCESS   STATE                                  DENIED   AGE
-           -              jobs      10.9.0.9,fd00::9   -         created, own namespace: --privileged   -        0s
web         aaaaaaaaaaaa   jobs      10.9.0.10          812       running                                -        90s
side        bbbbbbbbbbbb   jobs      10.9.0.10          815       guest                                  12       60s

0123456789ab: the pool's route is gone
`
	var b strings.Builder
	if err := report.Status(&b, s, now); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestStatusOfAFreshHost(t *testing.T) {
	var b strings.Builder
	if err := report.Status(&b, runtimeapi.Status{Version: "0.1.0", Started: now.Add(-time.Hour * 72), Guard: runtimeapi.GuardStatus{Mode: "off"}}, now); err != nil {
		t.Fatal(err)
	}
	want := `particle 0.1.0, up 3d, no VTEP: networks stay on this host
the address guard is off: containers of one network can use each other's addresses

No networks. Create one with: docker network create -d particle --ipam-driver particle NAME
`
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestChecks(t *testing.T) {
	checks := []report.Check{
		{Name: "kernel", Grade: report.OK, Finding: "6.18"},
		{Name: "underlay", Grade: report.Warn, Finding: "MTU 1280", Remedy: "raise it"},
	}
	if report.Failed(checks) {
		t.Error("a warning counts as missing")
	}
	checks = append(checks, report.Check{Name: "vxlan", Grade: report.Missing, Finding: "not in this kernel", Remedy: "load the module"})
	if !report.Failed(checks) {
		t.Error("a missing thing does not count")
	}
	want := `ok       kernel    6.18
warn     underlay  MTU 1280
                   -> raise it
missing  vxlan     not in this kernel
                   -> load the module

1 thing is missing, 1 warning.
`
	var b strings.Builder
	if err := report.Checks(&b, checks); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// An underlay whose MTU was lowered after a network of the cluster came.
func TestMTUChecks(t *testing.T) {
	status := func(vtep string, mtu int) runtimeapi.Status {
		return runtimeapi.Status{Underlay: runtimeapi.UnderlayStatus{VTEP: vtep, MTU: mtu}, Networks: []runtimeapi.NetworkStatus{
			{Name: "jobs", MTU: 1450, Scope: runtimeapi.ScopeCluster}, {Name: "own", MTU: 1450, Scope: runtimeapi.ScopeHost},
		}}
	}
	for _, fine := range []runtimeapi.Status{status("192.0.2.7", 1500), status("2001:db8::7", 1520), status("", 1400), {}} {
		if got := report.MTUChecks(fine); got != nil {
			t.Errorf("VTEP %s, MTU %d: %v", fine.Underlay.VTEP, fine.Underlay.MTU, got)
		}
	}
	for _, low := range []runtimeapi.Status{status("192.0.2.7", 1499), status("2001:db8::7", 1519)} {
		got := report.MTUChecks(low)
		if len(got) != 1 || got[0].Grade != report.Warn || !strings.Contains(got[0].Finding, "jobs (1450)") || strings.Contains(got[0].Finding, "own") ||
			!strings.Contains(got[0].Remedy, "mtu=1449") {
			t.Errorf("VTEP %s, MTU %d: %v", low.Underlay.VTEP, low.Underlay.MTU, got)
		}
	}
}
