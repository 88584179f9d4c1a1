package report_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/particle-net/particle/internal/report"
	"github.com/particle-net/particle/internal/runtimeapi"
	"github.com/particle-net/particle/topology"
)

func TestCluster(t *testing.T) {
	s := runtimeapi.ClusterStatus{
		Role: "server", Cluster: "4f2a9c01d3b74f2a9c01d3b7", Node: "aa", Joined: now.Add(-3 * time.Hour), Expires: now.Add(364 * 24 * time.Hour),
		Skew: "this host's clock is 10m0s behind the cluster's",
		Hosts: []runtimeapi.ClusterHost{
			{ID: "aa", Name: "h1", VTEP: netip.MustParseAddr("198.51.100.1"), Port: 8472, State: "alive", Version: "0.1.0", Role: "server"},
			{ID: "bb", Name: "h2", VTEP: netip.MustParseAddr("198.51.100.2"), State: "suspect", Role: "member"},
		},
		Store: []runtimeapi.ClusterStore{
			{Endpoint: "https://198.51.100.1:7791", Version: "3.7.3", Size: 3 << 20, Leader: true},
			{Endpoint: "https://198.51.100.3:7791", Problem: "it does not answer"},
		},
		Networks: []runtimeapi.ClusterNetwork{
			{Name: "idle", VNI: 78, State: "ready", Claims: []netip.Prefix{
				netip.MustParsePrefix("10.77.0.0/28"), netip.MustParsePrefix("10.77.0.16/28"), netip.MustParsePrefix("10.77.0.32/28"), netip.MustParsePrefix("10.77.0.48/28"),
			}, Peers: 2},
			{Name: "jobs", VNI: 77, State: "pending", Problem: "no block is left"},
		},
	}
	want := `cluster 4f2a9c01d3b7, this host is a server since 3h, its certificate is good for 364 days
this host's clock is 10m0s behind the cluster's

HOST            VTEP           PORT   STATE     VERSION   ROLE
h1 (this one)   198.51.100.1   8472   alive     0.1.0     server
h2              198.51.100.2   -      suspect   -         member

STORE                       STATE     ETCD    SIZE
https://198.51.100.1:7791   leader    3.7.3   3.0 MB
https://198.51.100.3:7791   problem   -       -

https://198.51.100.3:7791: it does not answer

NETWORK   VNI   STATE     CLAIMS                                                PEERS
idle      78    ready     10.77.0.0/28 10.77.0.16/28 10.77.0.32/28 and 1 more   2
jobs      77    pending   -                                                     0

network jobs (pending): no block is left
`
	var b strings.Builder
	if err := report.Cluster(&b, s, now); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestClusterMade(t *testing.T) {
	m := runtimeapi.ClusterMade{Address: netip.MustParseAddrPort("198.51.100.1:7790"), Token: "particle-1-aa-bb", Expires: now.Add(24 * time.Hour)}
	var b strings.Builder
	if err := report.ClusterMade(&b, m, now); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"\n  particle cluster join 198.51.100.1:7790 --token particle-1-aa-bb\n", "for 24 hours more", "docker network create -d particle"} {
		if !strings.Contains(b.String(), text) {
			t.Errorf("no %q in\n%s", text, b.String())
		}
	}
}

// Who asked for encryption is told that it is there, wherever the cluster is told of.
func TestClusterEncryption(t *testing.T) {
	for want, write := range map[string]func(*strings.Builder) error{
		"whose hosts encrypt what they send each other for containers (wireguard).": func(b *strings.Builder) error {
			return report.ClusterMade(b, runtimeapi.ClusterMade{Encryption: topology.ByWireGuard}, now)
		},
		"what its hosts send each other for containers is encrypted (wireguard)\n": func(b *strings.Builder) error {
			return report.Cluster(b, runtimeapi.ClusterStatus{Role: "member", Encryption: topology.ByWireGuard}, now)
		},
		"this host reaches no other, for it cannot encrypt: the kernel has no WireGuard\n": func(b *strings.Builder) error {
			return report.Cluster(b, runtimeapi.ClusterStatus{Role: "member", Encryption: topology.ByWireGuard, Unencrypted: "the kernel has no WireGuard"}, now)
		},
	} {
		var b strings.Builder
		if err := write(&b); err != nil || !strings.Contains(b.String(), want) {
			t.Errorf("%v: no %q in\n%s", err, want, b.String())
		}
	}
}

func TestClusterChecks(t *testing.T) {
	if c := report.ClusterChecks(runtimeapi.ClusterStatus{Role: "none"}, now); len(c) != 0 {
		t.Errorf("checks of a host in no cluster: %v", c)
	}
	hosts := func(ports ...uint16) (all []runtimeapi.ClusterHost) {
		for i, p := range ports {
			h := runtimeapi.ClusterHost{ID: topology.NodeID(fmt.Sprint(i)), Name: fmt.Sprintf("h%d", i), VTEP: netip.MustParseAddr("192.0.2.1"), State: "alive", Port: p}
			all = append(all, h)
		}
		return all
	}
	well := runtimeapi.ClusterStatus{Node: "0", Role: "member", Expires: now.Add(300 * 24 * time.Hour), Store: []runtimeapi.ClusterStore{{Endpoint: "a"}, {Endpoint: "b"}}}
	grades := func(change func(*runtimeapi.ClusterStatus)) string {
		s := well
		s.Store = append([]runtimeapi.ClusterStore{}, well.Store...)
		change(&s)
		var out []string
		for _, c := range report.ClusterChecks(s, now) {
			if c.Grade != report.OK {
				out = append(out, c.Name+" "+string(c.Grade))
			}
			if (c.Grade == report.OK) != (c.Remedy == "") {
				t.Errorf("%+v", c)
			}
		}
		return strings.Join(out, ", ")
	}
	for _, c := range []struct {
		want   string
		change func(*runtimeapi.ClusterStatus)
	}{
		{"", func(*runtimeapi.ClusterStatus) {}},
		{"cluster warn", func(s *runtimeapi.ClusterStatus) { s.Problem = "x" }},
		{"cluster ports warn", func(s *runtimeapi.ClusterStatus) { s.Closed = []string{"x"} }},
		{"clock warn", func(s *runtimeapi.ClusterStatus) { s.Skew = "x" }},
		{"cluster store warn", func(s *runtimeapi.ClusterStatus) { s.Store[0].Problem = "x" }},
		{"cluster store missing", func(s *runtimeapi.ClusterStatus) { s.Store[0].Problem, s.Store[1].Problem = "x", "y" }},
		{"cluster store warn", func(s *runtimeapi.ClusterStatus) { s.Store = nil }},
		{"", func(s *runtimeapi.ClusterStatus) { s.Encryption = topology.ByWireGuard }},
		{"encryption missing", func(s *runtimeapi.ClusterStatus) { s.Encryption, s.Unencrypted = topology.ByWireGuard, "x" }},
		{"", func(s *runtimeapi.ClusterStatus) { s.Hosts = hosts(4789, 4789, 0) }},
		{"", func(s *runtimeapi.ClusterStatus) { s.Hosts = hosts(8472, 4789) }},
		{"VXLAN ports warn", func(s *runtimeapi.ClusterStatus) { s.Hosts = hosts(8472, 8472, 0) }},
		{"certificate warn", func(s *runtimeapi.ClusterStatus) { s.Expires = now.Add(24 * time.Hour) }},
		{"certificate missing", func(s *runtimeapi.ClusterStatus) { s.Expires = now.Add(-time.Hour) }},
	} {
		if got := grades(c.change); got != c.want {
			t.Errorf("got %q, want %q", got, c.want)
		}
	}
}

// What is to be done next is said with what was done.
func TestClusterNextSteps(t *testing.T) {
	for want, write := range map[string]func(*strings.Builder) error{
		"make a third host one too": func(b *strings.Builder) error {
			return report.ClusterJoined(b, runtimeapi.ClusterJoined{Name: "h2", Servers: []string{"h1"}, Two: true})
		},
		"half a minute": func(b *strings.Builder) error {
			return report.ClusterRemoved(b, runtimeapi.ClusterReply{Removed: "h3", Pending: true})
		},
		"particle cluster token --rotate": func(b *strings.Builder) error {
			return report.ClusterRemoved(b, runtimeapi.ClusterReply{Removed: "h3", Readmits: true})
		},
		"make another cluster": func(b *strings.Builder) error {
			return report.ClusterRemoved(b, runtimeapi.ClusterReply{Removed: "h3", Readmits: true, Authority: true})
		},
		"No servers any more: h1, h3.": func(b *strings.Builder) error {
			return report.ClusterRecovered(b, runtimeapi.ClusterRecovered{Former: []string{"h1", "h3"}})
		},
	} {
		var b strings.Builder
		if err := write(&b); err != nil || !strings.Contains(b.String(), want) {
			t.Errorf("%v: no %q in\n%s", err, want, b.String())
		}
	}
	var b strings.Builder
	if err := report.ClusterRemoved(&b, runtimeapi.ClusterReply{Removed: "h3"}); err != nil || b.String() != "h3 is removed from the cluster.\n" {
		t.Errorf("%v: %s", err, b.String())
	}
}

// Who has left an etcd of others is told to empty what would keep the plugin from starting
// without it, too.
func TestLeftEtcd(t *testing.T) {
	var b strings.Builder
	if err := report.ClusterLeft(&b, runtimeapi.ClusterLeft{External: true}); err != nil {
		t.Fatal(err)
	}
	if want := "`docker plugin disable -f particle-net && docker plugin set particle-net PARTICLE_ETCD= PARTICLE_ENCRYPT= && docker plugin enable particle-net`"; !strings.Contains(b.String(), want) {
		t.Errorf("%s\nwant %s", b.String(), want)
	}
}

// Doctor names the hosts whose port is another, and those of which it is not known.
func TestPortsAreNamed(t *testing.T) {
	s := runtimeapi.ClusterStatus{Role: "external", Node: "a", Hosts: []runtimeapi.ClusterHost{
		{ID: "a", Name: "h1", VTEP: netip.MustParseAddr("192.0.2.1"), State: "alive", Port: 8472},
		{ID: "b", Name: "h2", VTEP: netip.MustParseAddr("192.0.2.2"), State: "suspect", Port: 4789},
	}}
	find := func() report.Check {
		for _, c := range report.ClusterChecks(s, now) {
			if c.Name == "VXLAN ports" {
				return c
			}
		}
		return report.Check{}
	}
	if c := find(); c.Finding != "this host takes VXLAN at UDP 8472; not so h2 at 4789" || c.Grade != report.OK {
		t.Errorf("%+v", c)
	}
	s.Hosts[1].Port = 0
	if c := find(); !strings.HasPrefix(c.Finding, "h2 did not tell") || c.Remedy != "upgrade particle there, or set PARTICLE_VXLAN_PORT=8472 there" {
		t.Errorf("%+v", c)
	}
}

// What is wrong with a cluster is told with why and what to do, beside the networks of
// the host.
func TestStatusOfACluster(t *testing.T) {
	for want, c := range map[string]runtimeapi.ClusterSummary{
		"\ncluster: its store answers, 3 hosts alive, 0 suspect; `particle cluster status` tells more\n\nNo networks": {
			Store: runtimeapi.StoreHealth{Healthy: true, Since: now.Add(-time.Hour)}, Alive: 3,
		},
		"\ncluster: its store does not answer since 5m, 1 host alive, 2 suspect; `particle cluster status` tells more\n" +
			"what there is goes on; new networks of the cluster, and more addresses, wait for the store: no leader\n" +
			"not heard of lately, and perhaps alive: h2, h3; one that is gone is taken out by `particle cluster remove`\n\nNo networks": {
			Store: runtimeapi.StoreHealth{Since: now.Add(-5 * time.Minute), Problem: "no leader"}, Alive: 1, Suspects: []string{"h2", "h3"},
		},
		"\ncluster: its store has not answered yet, 0 hosts alive, 0 suspect; `particle cluster status` tells more\n" +
			"what there is goes on; new networks of the cluster, and more addresses, wait for the store\n\nNo networks": {},
		"\ncluster: this host was removed; leave it\ncontainers here go on, and reach each other alone; what they had of the cluster can be others' by now\n\nNo networks": {
			Store: runtimeapi.StoreHealth{Since: now.Add(-time.Hour), Problem: "no leader"}, Alive: 3, Removed: "this host was removed; leave it",
		},
		"tells more\n\nnetwork jobs (conflict): of another driver; remove it\n\nNo networks": {
			Store: runtimeapi.StoreHealth{Healthy: true}, Networks: []runtimeapi.ClusterNetwork{{Name: "jobs", State: "conflict", Problem: "of another driver; remove it"}},
		},
	} {
		var b strings.Builder
		if err := report.Status(&b, runtimeapi.Status{Cluster: &c}, now); err != nil || !strings.Contains(b.String(), want) {
			t.Errorf("%v: no\n%s\nin\n%s", err, want, b.String())
		}
	}
}
