package overlay_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/particle-net/particle/internal/netnstest"
)

// dockerFirewall is what dockerd does to the host's iptables.
func dockerFirewall(m *machine) {
	m.Run("iptables", "-P", "FORWARD", "DROP")
	m.Run("iptables", "-N", "DOCKER-USER")
	m.Run("iptables", "-A", "DOCKER-USER", "-j", "RETURN")
	m.Run("iptables", "-I", "FORWARD", "-j", "DOCKER-USER")
}

func TestForwardPolicyOfDocker(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		setup func(*machine)
		root  string
		chain string
	}{
		"with DOCKER-USER":    {dockerFirewall, "", "DOCKER-USER"},
		"policy alone":        {func(m *machine) { m.Run("iptables", "-P", "FORWARD", "DROP") }, "", "FORWARD"},
		"in the host's root":  {dockerFirewall, "/proc/self/root", "DOCKER-USER"},
		"no iptables to find": {func(*machine) {}, "/proc/sys", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m, internet := routed(t)
			m.opts.HostRoot = c.root
			m.restart()
			c.setup(m)
			before := m.Run("iptables", "-S")
			serve(t, listenTCP(t, internet, outside+":80"), "internet")
			ns := m.tenantWithUplink(1)
			if got, err := ask(ns, "10.9.0.5", outside+":80"); err != nil {
				t.Errorf("got %q, %v\n%s", got, err, m.Run("iptables", "-S"))
			}
			m.applyUplink(1, false)
			if n := strings.Count(m.Run("iptables", "-S"), "-A "+c.chain+" -i pu+"); c.chain != "" && n != 1 {
				t.Errorf("%d accept rules in %s, want 1", n, c.chain)
			}
			if c.chain != "" { // as firewalld does when it is reloaded
				m.Run("iptables", "-D", c.chain, "1")
				m.applyUplink(1, true)
			}
			if err := m.RemoveHostRules(t.Context()); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(before, m.Run("iptables", "-S")); diff != "" {
				t.Errorf("iptables after removal (-want +got):\n%s", diff)
			}
		})
	}
}

func TestBridgesOfDockerAreKeptApart(t *testing.T) {
	t.Parallel()
	for bridge, reachable := range map[string]bool{
		"docker0": false, "docker_gwbridge": false, "br-0123456789ab": false, "br-lan": true,
	} {
		t.Run(bridge, func(t *testing.T) {
			t.Parallel()
			m, _ := routed(t)
			dockerFirewall(m)
			container := netnstest.New(t)
			netnstest.Connect(m.Namespace, "veth1", "", container, "eth0", "172.17.0.2/16")
			m.Run("ip", "link", "add", bridge, "type", "bridge")
			m.Run("ip", "link", "set", "veth1", "master", bridge)
			m.Run("ip", "address", "add", "172.17.0.1/16", "dev", bridge)
			m.Run("ip", "link", "set", bridge, "up")
			container.Run("ip", "route", "add", "default", "via", "172.17.0.1")
			m.Run("iptables", "-t", "nat", "-A", "PREROUTING", "-d", "192.0.2.1", "-p", "udp", "--dport", "5353",
				"-j", "DNAT", "--to-destination", "172.17.0.2:53")
			client := bindUDP(t, m.tenantWithUplink(1), "10.9.0.5:1000")
			server := bindUDP(t, container, "172.17.0.2:53")
			client.send("172.17.0.2:53", "direct")
			client.send("192.0.2.1:5353", "published")
			if reachable {
				server.want("direct")
			}
			server.send(server.want("published"), "answer")
			client.want("answer")
		})
	}
}
