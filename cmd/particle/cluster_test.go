package main

import (
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/spf13/cobra"

	"github.com/particle-net/particle/internal/runtimeapi"
	"github.com/particle-net/particle/topology"
)

func TestClusterRequests(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(" tok\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	addr := netip.MustParseAddr("198.51.100.1")
	join := func(port uint16, j runtimeapi.ClusterJoin) runtimeapi.Cluster {
		j.Server, j.Token = netip.AddrPortFrom(addr, port), "tok"
		return runtimeapi.Cluster{Join: &j}
	}
	for _, c := range []struct {
		args, in string
		want     runtimeapi.Cluster
	}{
		{"init", "", runtimeapi.Cluster{Init: &runtimeapi.ClusterInit{Life: 24 * time.Hour}}},
		{"init --address 198.51.100.1 --token-life 0", "", runtimeapi.Cluster{Init: &runtimeapi.ClusterInit{Address: addr, Life: -1}}},
		{"join 198.51.100.1 --token tok", "", join(0, runtimeapi.ClusterJoin{})},
		{"join 198.51.100.1:9000 --server --address 198.51.100.1", "tok\n", join(9000, runtimeapi.ClusterJoin{Serve: true, Address: addr})},
		{"join 198.51.100.1 --token-file " + file, "", join(0, runtimeapi.ClusterJoin{})},
		{"join 198.51.100.1 --token-file -", "tok", join(0, runtimeapi.ClusterJoin{})},
		{"join 2001:db8::1 --token tok", "", runtimeapi.Cluster{Join: &runtimeapi.ClusterJoin{Server: netip.MustParseAddrPort("[2001:db8::1]:0"), Token: "tok"}}},
		{"leave --force", "", runtimeapi.Cluster{Leave: &runtimeapi.ClusterLeave{Force: true}}},
		{"remove h3", "", runtimeapi.Cluster{Remove: &runtimeapi.ClusterRemove{Host: "h3"}}},
		{"token --rotate --token-life 1h", "", runtimeapi.Cluster{Token: &runtimeapi.ClusterToken{Rotate: true, Life: time.Hour}}},
		{"recover", "", runtimeapi.Cluster{Recover: &runtimeapi.Query{}}},
		{"status", "", runtimeapi.Cluster{Status: &runtimeapi.Query{}}},
	} {
		got, out, err := runCluster(c.args, c.in)
		if diff := cmp.Diff(c.want, got, cmpopts.EquateComparable(netip.Addr{}, netip.AddrPort{})); diff != "" || err != nil {
			t.Errorf("%s: %v (-want +got)\n%s", c.args, err, diff)
		}
		if out == "" {
			t.Errorf("%s says nothing", c.args)
		}
	}
	for args, text := range map[string]string{
		"join h1 --token tok":                        "not an IP address",
		"join 198.51.100.1":                          "--token-file or on standard input",
		"join 198.51.100.1 --token a --token-file b": "none of the others can be",
		"init --address h1":                          "--address 198.51.100.2",
		"join":                                       "accepts 1 arg",
	} {
		if _, _, err := runCluster(args, ""); err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("%s: %v", args, err)
		}
	}
}

// runCluster runs a command line, and gives what it asks the plugin for.
func runCluster(args, in string) (got runtimeapi.Cluster, out string, err error) {
	cmd := clusterCommands(func(_ *cobra.Command, req runtimeapi.Cluster) (runtimeapi.ClusterReply, error) {
		got = req
		return runtimeapi.ClusterReply{Made: &runtimeapi.ClusterMade{}, Joined: &runtimeapi.ClusterJoined{}, Left: &runtimeapi.ClusterLeft{}, Recovered: &runtimeapi.ClusterRecovered{},
			Status: &runtimeapi.ClusterStatus{Role: "none"}}, nil
	})
	var b strings.Builder
	cmd.SetArgs(strings.Fields(args))
	cmd.SetIn(strings.NewReader(in))
	cmd.SetOut(&b)
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	err = cmd.Execute()
	return got, b.String(), err
}

// A plugin that is older than the wish does not hear it.
func TestClusterInitEncrypted(t *testing.T) {
	for made, want := range map[topology.Encryption]string{topology.ByWireGuard: "", topology.Plain: "has made one that is not encrypted"} {
		var got runtimeapi.Cluster
		cmd := clusterCommands(func(_ *cobra.Command, req runtimeapi.Cluster) (runtimeapi.ClusterReply, error) {
			got = req
			return runtimeapi.ClusterReply{Made: &runtimeapi.ClusterMade{Encryption: made}}, nil
		})
		cmd.SetArgs([]string{"init", "--encrypt"})
		cmd.SetOut(io.Discard)
		cmd.SilenceErrors, cmd.SilenceUsage = true, true
		err := cmd.Execute()
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("the plugin made %q: %v, want %q", made, err, want)
		}
		if got.Init == nil || !got.Init.Encrypt {
			t.Errorf("asked for %+v", got.Init)
		}
	}
}
