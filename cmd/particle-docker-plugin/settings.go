package main

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/sirupsen/logrus"

	"github.com/particle-net/particle/fabric"
	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/internal/hostpath"
	"github.com/particle-net/particle/internal/membership"
	"github.com/particle-net/particle/ipam/pool"
	"github.com/particle-net/particle/topology"
)

// settings are what `docker plugin set` can change; config.json lists them.
type settings struct {
	level  logrus.Level
	vtep   netip.Addr // invalid: find one
	port   uint16
	docker string // socket of the Docker API, on the host
	guard  string // how containers are kept to their own addresses: guardAuto or a fabric.GuardMode
	ready  int    // namespaces kept ready
	// clusterPort is the first of three TCP ports of a host that serves a cluster.
	clusterPort uint16
	etcd        string // endpoints of somebody else's etcd; empty without
	etcdUser    string
	encryption  topology.Encryption // of the hosts that use etcd
	wireGuard   uint16              // UDP port
	subnets     subnets
}

// subnets are for networks whose creator names none.
type subnets struct{ v4, v6 pool.Cut }

// Without a setting there are 2,048 subnets of 4,094 addresses in a part of 10/8 that
// neither Docker's defaults nor Swarm's use, and 65,536 from a unique local prefix whose
// global id was drawn at random (RFC 4193 section 3.2).
var defaultSubnets = subnets{
	v4: pool.Cut{Base: netip.MustParsePrefix("10.128.0.0/9"), Bits: 20},
	v6: pool.Cut{Base: netip.MustParsePrefix("fdb7:3c1e:9a52::/48"), Bits: 64},
}

// has says whether a subnet may be one of them.
func (s subnets) has(subnet netip.Prefix) bool {
	for _, cut := range []pool.Cut{s.v4, s.v6} {
		if cut.Base.Contains(subnet.Addr()) && subnet.Bits() == cut.Bits {
			return true
		}
	}
	return false
}

// parseSubnets reads what --default-address-pool of dockerd takes, one for each IP
// version at most, with spaces between; a version that is not named keeps its default.
func parseSubnets(text string) (subnets, error) {
	all := defaultSubnets
	named := map[bool]bool{}
	for _, field := range strings.Fields(text) {
		var cut pool.Cut
		var err error
		for _, pair := range strings.Split(field, ",") {
			switch key, value, _ := strings.Cut(pair, "="); key {
			case "base":
				cut.Base, err = netip.ParsePrefix(value)
			case "size":
				cut.Bits, err = strconv.Atoi(value)
			default:
				err = fmt.Errorf("%q is neither base=PREFIX nor size=BITS", pair)
			}
			if err != nil {
				return subnets{}, err
			}
		}
		is4 := cut.Base.Addr().Is4()
		if named[is4] {
			return subnets{}, fmt.Errorf("%s is the second of its IP version, and there is one of each", cut.Base)
		}
		if named[is4] = true; is4 {
			all.v4 = cut
		} else {
			all.v6 = cut
		}
	}
	_, err := pool.NewDefaults(all.v4, all.v6)
	return all, err
}

// guardAuto takes eBPF where it can be attached, and else the guard by system calls.
const guardAuto = "auto"

func readSettings(env func(string) string) (settings, error) {
	s := settings{level: logrus.InfoLevel, port: topology.VXLANPort, docker: hostpath.DockerSocket, guard: guardAuto, ready: 4, clusterPort: 7790, wireGuard: 7793, subnets: defaultSubnets}
	read := func(name string, parse func(string) error) error {
		value := env(name)
		if value == "" {
			return nil
		}
		if err := parse(value); err != nil {
			on := name + "=" + value
			if strings.Contains(value, "@") { // a password may be before it
				on = name
			}
			return &fault.Error{Op: "read setting", On: on, Err: err,
				Fix: fmt.Sprintf("docker plugin set %s %s=VALUE", hostpath.PluginName, name)}
		}
		return nil
	}
	for _, setting := range []struct {
		name  string
		parse func(string) error
	}{
		{"PARTICLE_LOG_LEVEL", func(v string) (err error) { s.level, err = logrus.ParseLevel(v); return }},
		{"PARTICLE_VTEP", func(v string) (err error) { s.vtep, err = netip.ParseAddr(v); return }},
		{"PARTICLE_VXLAN_PORT", func(v string) (err error) { s.port, err = parsePort(v); return }},
		{"PARTICLE_WIREGUARD_PORT", func(v string) (err error) { s.wireGuard, err = parsePort(v); return }},
		{"PARTICLE_DOCKER_SOCKET", func(v string) error { s.docker = v; return nil }},
		{"PARTICLE_GUARD", func(v string) error {
			if !slices.Contains([]string{guardAuto, string(fabric.GuardBPF), string(fabric.GuardSeccomp), string(fabric.GuardOff)}, v) {
				return fmt.Errorf("it is none of auto, bpf, seccomp and off")
			}
			s.guard = v
			return nil
		}},
		{"PARTICLE_SUBNETS", func(v string) (err error) { s.subnets, err = parseSubnets(v); return }},
		{"PARTICLE_READY", func(v string) error {
			n, err := strconv.ParseUint(v, 10, 8)
			s.ready = int(n)
			return err
		}},
		{"PARTICLE_CLUSTER_PORT", func(v string) error {
			n, err := strconv.ParseUint(v, 10, 16)
			if err == nil && (n == 0 || n > 65533) {
				err = fmt.Errorf("three TCP ports begin there, so it is 1 to 65533")
			}
			s.clusterPort = uint16(n)
			return err
		}},
		{"PARTICLE_ETCD", func(v string) error {
			_, err := membership.ParseEndpoints(v)
			s.etcd = v
			return err
		}},
		{"PARTICLE_ETCD_USER", func(v string) error { s.etcdUser = v; return nil }},
		{"PARTICLE_ENCRYPT", func(v string) (err error) {
			if s.encryption, err = topology.ParseEncryption(v); err == nil && s.encryption != topology.Plain && s.etcd == "" {
				err = fmt.Errorf("it is for hosts that use PARTICLE_ETCD, and empty on all others: `particle cluster init --encrypt` makes a cluster that encrypts")
			}
			return err
		}},
	} {
		if err := read(setting.name, setting.parse); err != nil {
			return s, err
		}
	}
	return s, nil
}

func parsePort(text string) (uint16, error) {
	n, err := strconv.ParseUint(text, 10, 16)
	if err == nil && n == 0 {
		err = fmt.Errorf("a UDP port is 1 to 65535")
	}
	return uint16(n), err
}
