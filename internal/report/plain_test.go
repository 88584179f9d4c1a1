package report_test

import (
	"net/netip"
	"strings"
	"testing"
	"unicode"

	"github.com/particle-net/particle/internal/report"
	"github.com/particle-net/particle/internal/runtimeapi"
)

// A host of the cluster, or a network, may be called anything. It says nothing to the
// terminal of who asks, and makes no lines of its own.
func TestTerminalIsNotSpokenTo(t *testing.T) {
	const evil = "h2\x1b[2J\x1b]0;x\x07\r\u009b31m\x9b\u202egnp\nh3              198.51.100.3   4789   alive"
	network := []runtimeapi.ClusterNetwork{{Name: evil, State: "pending", Problem: "\x1b[2J"}}
	hosts := []runtimeapi.ClusterHost{{ID: "aa", Name: "h1", Port: 1, State: "alive"}, {ID: "bb", Name: evil, VTEP: netip.MustParseAddr("192.0.2.2"), Port: 4789, State: "alive", Version: evil}}
	cluster := runtimeapi.ClusterStatus{Role: "member", Node: "aa", Hosts: hosts, Networks: network, Problem: "\x1b[2J"}
	for what, show := range map[string]func(*strings.Builder) error{
		"cluster status": func(b *strings.Builder) error { return report.Cluster(b, cluster, now) },
		"status": func(b *strings.Builder) error {
			return report.Status(b, runtimeapi.Status{
				Cluster:  &runtimeapi.ClusterSummary{Suspects: []string{evil}, Networks: network},
				Networks: []runtimeapi.NetworkStatus{{Name: evil, Problem: "\x1b[2J", Endpoints: []runtimeapi.EndpointStatus{{Name: evil, Reason: evil}}}},
			}, now)
		},
		"doctor": func(b *strings.Builder) error { return report.Checks(b, report.ClusterChecks(cluster, now)) },
		"removed": func(b *strings.Builder) error {
			return report.ClusterRemoved(b, runtimeapi.ClusterReply{Removed: evil, Pending: true})
		},
		"joined": func(b *strings.Builder) error {
			return report.ClusterJoined(b, runtimeapi.ClusterJoined{Name: evil, Servers: []string{evil}})
		},
		"recovered": func(b *strings.Builder) error {
			return report.ClusterRecovered(b, runtimeapi.ClusterRecovered{Former: []string{evil}})
		},
		"left": func(b *strings.Builder) error {
			return report.ClusterLeft(b, runtimeapi.ClusterLeft{Untold: "\x1b[2J"})
		},
	} {
		var b strings.Builder
		if err := show(&b); err != nil {
			t.Fatal(err)
		}
		for _, r := range b.String() {
			if r != '\n' && !unicode.IsPrint(r) || r == unicode.ReplacementChar {
				t.Errorf("%s writes %q:\n%q", what, r, b.String())
				break
			}
		}
		for line := range strings.Lines(b.String()) {
			if strings.HasPrefix(line, "h3 ") {
				t.Errorf("%s writes a line that is a name: %q", what, line)
			}
		}
	}
	if got := report.Plain("naïve — 日本 \ufffd\nnext"); got != "naïve — 日本 \ufffd\nnext" {
		t.Errorf("what people write is shown as %q", got)
	}
}
