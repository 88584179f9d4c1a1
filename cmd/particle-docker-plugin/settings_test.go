package main

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/sirupsen/logrus"

	"github.com/particle-net/particle/topology"
)

func TestSettings(t *testing.T) {
	env := map[string]string{}
	get := func(name string) string { return env[name] }
	s, err := readSettings(get)
	if err != nil || s != (settings{level: logrus.InfoLevel, port: 4789, docker: "/run/docker.sock", guard: "auto", ready: 4, clusterPort: 7790, wireGuard: 7793}) {
		t.Errorf("defaults: %+v, %v", s, err)
	}
	env = map[string]string{"PARTICLE_LOG_LEVEL": "debug", "PARTICLE_VTEP": "2001:db8::1", "PARTICLE_VXLAN_PORT": "8472",
		"PARTICLE_DOCKER_SOCKET": "/run/d.sock", "PARTICLE_GUARD": "off", "PARTICLE_READY": "0",
		"PARTICLE_CLUSTER_PORT": "9000", "PARTICLE_ETCD": "https://a:2379,https://b:2379", "PARTICLE_ETCD_USER": "particle",
		"PARTICLE_ENCRYPT": "wireguard", "PARTICLE_WIREGUARD_PORT": "51820"}
	s, err = readSettings(get)
	want := settings{level: logrus.DebugLevel, vtep: netip.MustParseAddr("2001:db8::1"), port: 8472, docker: "/run/d.sock", guard: "off",
		clusterPort: 9000, etcd: "https://a:2379,https://b:2379", etcdUser: "particle",
		encryption: topology.ByWireGuard, wireGuard: 51820}
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
	env = map[string]string{"PARTICLE_ENCRYPT": "wireguard"}
	if _, err := readSettings(get); err == nil || !strings.Contains(err.Error(), "cluster init --encrypt") {
		t.Errorf("encryption without an etcd to agree by: %v", err)
	}
}
