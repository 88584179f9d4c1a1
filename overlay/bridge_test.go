package overlay_test

import (
	"testing"

	"github.com/particle-net/particle/internal/netnstest"
)

// bridged are the addresses of a bridge and of a container behind it.
type bridged struct{ gateway, bits, container string }

// bridge makes a bridge with a container behind it, whose port 53 is published
// as the host's 5353.
func (m *machine) bridge(t *testing.T, name string, a addressing) (container *netnstest.Namespace, b bridged) {
	t.Helper()
	b = bridged{"172.17.0.1", "/16", "172.17.0.2"}
	if a.family == "-6" {
		b = bridged{"fd00:17::1", "/64", "fd00:17::2"}
	}
	container = netnstest.New(t)
	netnstest.Connect(m.Namespace, "veth1", "", container, "eth0", b.container+b.bits)
	m.Run("ip", "link", "add", name, "type", "bridge")
	m.Run("ip", "link", "set", "veth1", "master", name)
	m.Run("ip", "address", "add", b.gateway+b.bits, "dev", name, "nodad")
	m.Run("ip", "link", "set", name, "up")
	container.Run("ip", "route", "add", "default", "via", b.gateway)
	m.Run(a.iptables, "-t", "nat", "-A", "PREROUTING", "-d", a.host, "-p", "udp", "--dport", "5353",
		"-j", "DNAT", "--to-destination", at(b.container, 53))
	return container, b
}

// Docker gives its bridges any name that users ask for.
func TestBridgesOfDockerAreKeptApart(t *testing.T) {
	for _, name := range []string{"docker0", "docker_gwbridge", "br-0123456789ab", "br0", "mine"} {
		t.Run(name, func(t *testing.T) {
			eachVersion(t, func(t *testing.T, a addressing) {
				m, _ := routed(t)
				dockerFirewall(m)
				ns := m.tenantWithUplink(1) // a bridge made after it is kept apart at once
				container, b := m.bridge(t, name, a)
				client, server := bindUDP(t, ns, at(a.container, 1000)), bindUDP(t, container, at(b.container, 53))
				try := func() {
					t.Helper()
					client.send(at(b.container, 53), "direct")
					client.send(at(a.host, 5353), "published")
					server.send(server.want("published"), "answer")
					client.want("answer")
				}
				try()
				m.applyUplink(1, false)
				try()
			})
		})
	}
}

// "Containers and virtual machines on bridges of this host are reached by the
// ports they publish", but the host may reach other machines by a bridge: one that its network card, or
// what stands for it, is a port of.
func TestBridgesToOtherMachines(t *testing.T) {
	for name, outward := range map[string]func(m *machine){
		"with a port that is no container's": func(m *machine) {
			m.Run("ip", "link", "add", "lan0", "type", "vxlan", "id", "5", "dstport", "8472") // every kernel has these
			m.Run("ip", "link", "set", "lan0", "master", "br-lan")
		},
		"with the default route": func(m *machine) {
			m.Run("ip", "route", "add", "default", "via", "172.17.0.2", "dev", "br-lan", "onlink", "metric", "77")
		},
		"with the default route of IPv6": func(m *machine) {
			m.Run("ip", "route", "add", "default", "via", "fd00:17::2", "dev", "br-lan", "onlink", "metric", "77")
		},
	} {
		t.Run(name, func(t *testing.T) {
			eachVersion(t, func(t *testing.T, a addressing) {
				m, _ := routed(t)
				dockerFirewall(m)
				ns := m.tenantWithUplink(1)
				machine, b := m.bridge(t, "br-lan", a)
				outward(m)
				m.applyUplink(1, true)
				m.applyUplink(1, false)
				client, server := bindUDP(t, ns, at(a.container, 1000)), bindUDP(t, machine, at(b.container, 53))
				client.send(at(b.container, 53), "direct")
				server.send(server.want("direct"), "answer")
				client.want("answer")
				tunnel := bindUDP(t, machine, at(b.container, 4789))
				client.send(at(b.container, 4789), "forged VXLAN")
				client.send(at(b.container, 53), "after it")
				server.want("after it")
				tunnel.wantNothing()
				m.Run("ip", "link", "delete", "br-lan")
				m.applyUplink(1, true)
			})
		})
	}
}
