package main

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/sirupsen/logrus"

	"github.com/particle-net/particle/ipam/pool"
	"github.com/particle-net/particle/topology"
)

func TestSettings(t *testing.T) {
	env := map[string]string{}
	get := func(name string) string { return env[name] }
	s, err := readSettings(get)
	if err != nil || s != (settings{level: logrus.InfoLevel, port: 4789, docker: "/run/docker.sock", guard: "auto", ready: 4, clusterPort: 7790, wireGuard: 7793, subnets: defaultSubnets}) {
		t.Errorf("defaults: %+v, %v", s, err)
	}
	env = map[string]string{"PARTICLE_LOG_LEVEL": "debug", "PARTICLE_VTEP": "2001:db8::1", "PARTICLE_VXLAN_PORT": "8472",
		"PARTICLE_DOCKER_SOCKET": "/run/d.sock", "PARTICLE_GUARD": "off", "PARTICLE_READY": "0",
		"PARTICLE_CLUSTER_PORT": "9000", "PARTICLE_ETCD": "https://a:2379,https://b:2379", "PARTICLE_ETCD_USER": "particle",
		"PARTICLE_ENCRYPT": "wireguard", "PARTICLE_WIREGUARD_PORT": "51820",
		"PARTICLE_SUBNETS": "size=112,base=fd00:5::/96  base=10.64.0.0/12,size=24"}
	s, err = readSettings(get)
	want := settings{level: logrus.DebugLevel, vtep: netip.MustParseAddr("2001:db8::1"), port: 8472, docker: "/run/d.sock", guard: "off",
		clusterPort: 9000, etcd: "https://a:2379,https://b:2379", etcdUser: "particle",
		encryption: topology.ByWireGuard, wireGuard: 51820, subnets: subnets{
			v4: pool.Cut{Base: netip.MustParsePrefix("10.64.0.0/12"), Bits: 24}, v6: pool.Cut{Base: netip.MustParsePrefix("fd00:5::/96"), Bits: 112}}}
	if err != nil || s != want {
		t.Errorf("got %+v, %v", s, err)
	}
	// "Encryption is WireGuard's, with IPv6" in the kernel, and there is no other.
	for name, value := range map[string]string{"PARTICLE_LOG_LEVEL": "loud", "PARTICLE_VTEP": "host", "PARTICLE_VXLAN_PORT": "0", "PARTICLE_READY": "-1", "PARTICLE_GUARD": "on",
		"PARTICLE_CLUSTER_PORT": "65534", "PARTICLE_ETCD": "a:2379", "PARTICLE_ENCRYPT": "ipsec", "PARTICLE_WIREGUARD_PORT": "70000"} {
		env = map[string]string{name: value}
		if _, err := readSettings(get); err == nil || !strings.Contains(err.Error(), "docker plugin set particle-net:latest "+name) {
			t.Errorf("%s=%s: %v", name, value, err)
		}
	}
	for _, value := range []string{"10.64.0.0/12", "base=10.64.0.0/12", "base=10.64.0.0/12,size=8", "base=10.64.0.0,size=24", "base=10.64.0.0/12,size=big",
		"base=10.64.0.0/12,size=24 base=10.0.0.0/12,size=24", "base=fd00:5::/48,size=129", "base=::ffff:10.0.0.0/104,size=120"} {
		env = map[string]string{"PARTICLE_SUBNETS": value}
		if s, err := readSettings(get); err == nil {
			t.Errorf("PARTICLE_SUBNETS=%s: %+v", value, s.subnets)
		}
	}
	// A password is said by nobody, and not dropped in silence.
	for _, value := range []string{"https://me:hush@etcd:2379", "https://me:hush@etcd:two", "https://me:hu%sh@etcd:2379"} {
		env = map[string]string{"PARTICLE_ETCD": value}
		if _, err := readSettings(get); err == nil || strings.Contains(err.Error(), "hu") {
			t.Errorf("PARTICLE_ETCD=%s: %v", value, err)
		}
	}
	env = map[string]string{"PARTICLE_SUBNETS": "base=fd00:5::/48,size=64"}
	if s, err := readSettings(get); err != nil || s.subnets.v4 != defaultSubnets.v4 || s.subnets.v6 == defaultSubnets.v6 {
		t.Errorf("one IP version alone: %+v, %v", s.subnets, err)
	}
	env = map[string]string{"PARTICLE_ENCRYPT": "wireguard"}
	if _, err := readSettings(get); err == nil || !strings.Contains(err.Error(), "cluster init --encrypt") {
		t.Errorf("encryption without an etcd to agree by: %v", err)
	}
}
