package driver

import (
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/docker/go-plugins-helpers/network"

	"github.com/particle-net/particle/fabric"
	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/topology"
)

// Keys of Docker's own in the options of a call (libnetwork netlabel/labels.go).
const (
	labelGeneric  = "com.docker.network.generic"
	labelInternal = "com.docker.network.internal"
	labelPortMap  = "com.docker.network.portmap"
	labelMAC      = "com.docker.network.endpoint.macaddress"
	labelDocker   = "com.docker."
	// What users name by driver-opt, and Docker carries out itself on the link that it has
	// moved: on a particle network it moves none.
	labelSysctls = "com.docker.network.endpoint.sysctls"
	labelIfName  = "com.docker.network.endpoint.ifname"
)

// Options of `docker network create -o`.
const (
	optionVNI       = "particle.vni"
	optionScope     = "particle.scope"   // local or cluster
	optionBlock     = "particle.block"   // prefix length of the IPv4 blocks that hosts claim
	optionBlock6    = "particle.block6"  // and of the IPv6 ones
	optionNetwork   = "particle.network" // the network's id in the cluster: our own plugin sets it on the other hosts
	optionGuard     = "particle.guard"   // bpf or seccomp, in place of the host's choice
	optionMTU       = "mtu"
	optionDockerMTU = "com.docker.network.driver.mtu" // what Docker's own drivers call it
)

var knownOptions = []string{optionMTU, optionDockerMTU, optionVNI, optionScope, optionBlock, optionBlock6, optionGuard}

func parseIDs(network, endpoint string) (topology.NetworkID, topology.EndpointID, error) {
	n, errN := topology.ParseNetworkID(network)
	e, errE := topology.ParseEndpointID(endpoint)
	return n, e, errors.Join(errN, errE)
}

func parseNetwork(req network.CreateNetworkRequest) (fabric.NetworkSpec, error) {
	id, err := topology.ParseNetworkID(req.NetworkID)
	if err != nil {
		return fabric.NetworkSpec{}, err
	}
	spec := fabric.NetworkSpec{ID: id}
	spec.Internal, _ = req.Options[labelInternal].(bool)
	if generic, ok := req.Options[labelGeneric].(map[string]any); ok {
		if err := parseOptions(generic, &spec); err != nil {
			return spec, err
		}
	}
	for _, data := range slices.Concat(req.IPv4Data, req.IPv6Data) {
		subnet, err := parseSubnet(data)
		if err != nil {
			return spec, err
		}
		spec.Subnets = append(spec.Subnets, subnet)
	}
	return spec, nil
}

// parseOptions refuses what it does not know: an option that is ignored is a
// promise that is not kept.
func parseOptions(options map[string]any, spec *fabric.NetworkSpec) error {
	for _, key := range slices.Sorted(maps.Keys(options)) {
		value := fmt.Sprint(options[key])
		var err error
		switch key {
		case optionVNI:
			spec.VNI, err = topology.ParseVNI(value)
		case optionMTU, optionDockerMTU:
			err = parseMTU(value, &spec.MTU)
		case optionScope:
			spec.Scope, err = parseScope(value)
		case optionBlock:
			spec.Blocks.IPv4, err = parseBlock(value, 32)
		case optionBlock6:
			spec.Blocks.IPv6, err = parseBlock(value, 128)
		case optionGuard:
			spec.Guard, err = parseGuard(value)
		case optionNetwork:
			spec.Shared, err = topology.ParseSharedID(value)
		default:
			err = errors.New("the particle driver has no such option")
		}
		if err != nil {
			return &fault.Error{Op: "create network: read option", On: "-o " + key + "=" + value, Err: err,
				Fix: "known options are " + strings.Join(knownOptions, ", ")}
		}
	}
	return nil
}

func parseScope(value string) (fabric.Scope, error) {
	switch s := fabric.Scope(value); s {
	case fabric.ScopeLocal, fabric.ScopeCluster:
		return s, nil
	}
	return "", fmt.Errorf("it is neither %s nor %s", fabric.ScopeLocal, fabric.ScopeCluster)
}

// parseGuard does not let one network do without.
func parseGuard(value string) (fabric.GuardMode, error) {
	switch g := fabric.GuardMode(value); g {
	case fabric.GuardBPF, fabric.GuardSeccomp:
		return g, nil
	}
	return "", fmt.Errorf("it is neither %s nor %s", fabric.GuardBPF, fabric.GuardSeccomp)
}

// parseBlock leaves it to the domain what fits the network.
func parseBlock(value string, longest int) (int, error) {
	bits, err := strconv.Atoi(value)
	if err != nil || bits < 1 || bits > longest {
		return 0, fmt.Errorf("it is not the length of a prefix, from 1 to %d", longest)
	}
	return bits, nil
}

func parseMTU(value string, into *int) error {
	mtu, err := strconv.Atoi(value)
	if err != nil || mtu <= 0 {
		return errors.New("it is not a number of bytes")
	}
	if *into != 0 && *into != mtu {
		return fmt.Errorf("%s and %s differ", optionMTU, optionDockerMTU)
	}
	*into = mtu
	return nil
}

func parseSubnet(data *network.IPAMData) (fabric.Subnet, error) {
	if data == nil {
		return fabric.Subnet{}, fault.New("create network: read", "subnet", "Docker sent none", "")
	}
	fail := func(what string, err error) (fabric.Subnet, error) {
		return fabric.Subnet{}, &fault.Error{Op: "create network: read", On: what, Err: err}
	}
	prefix, err := netip.ParsePrefix(data.Pool)
	if err != nil {
		return fail("subnet", err)
	}
	subnet := fabric.Subnet{Subnet: prefix.Masked(), Managed: data.AddressSpace == fabric.AddressSpace}
	if data.Gateway != "" {
		gateway, err := netip.ParsePrefix(data.Gateway)
		if err != nil {
			return fail("gateway", err)
		}
		subnet.Gateway = gateway.Addr()
	}
	for _, name := range slices.Sorted(maps.Keys(data.AuxAddresses)) {
		aux, err := netip.ParsePrefix(fmt.Sprint(data.AuxAddresses[name]))
		if err != nil {
			return fail("auxiliary address "+name, err)
		}
		subnet.Aux = append(subnet.Aux, aux.Addr())
	}
	return subnet, nil
}

func parseEndpoint(req network.CreateEndpointRequest) (fabric.EndpointSpec, error) {
	on, id, err := parseIDs(req.NetworkID, req.EndpointID)
	if err != nil {
		return fabric.EndpointSpec{}, err
	}
	spec := fabric.EndpointSpec{ID: id, Network: on}
	if err := refuseWishes(req); err != nil {
		return spec, &fault.Error{Op: "connect to network", On: on.Short(), Err: err.cause, Fix: err.fix}
	}
	if spec.MAC, err = parseMAC(req); err != nil {
		return spec, &fault.Error{Op: "connect to network", On: on.Short(), Err: err, Fix: "omit --mac-address"}
	}
	if req.Interface == nil {
		return spec, nil
	}
	for text, into := range map[string]*netip.Addr{req.Interface.Address: &spec.IPv4, req.Interface.AddressIPv6: &spec.IPv6} {
		if text == "" {
			continue
		}
		prefix, err := netip.ParsePrefix(text)
		if err != nil {
			return spec, &fault.Error{Op: "connect to network", On: on.Short(), Err: err}
		}
		*into = prefix.Addr()
	}
	return spec, nil
}

// parseMAC reads the address asked for, nil if none. Docker sends it in an option
// in every version, as the base64 of its bytes. A container in the shared
// namespace has no use for it; particle-runtime sees to that.
func parseMAC(req network.CreateEndpointRequest) (net.HardwareAddr, error) {
	text, _ := req.Options[labelMAC].(string)
	var mac net.HardwareAddr
	var err error
	switch {
	case req.Interface != nil && req.Interface.MacAddress != "":
		mac, err = net.ParseMAC(req.Interface.MacAddress)
	case text != "":
		mac, err = base64.StdEncoding.DecodeString(text)
	default:
		return nil, nil
	}
	if err == nil && len(mac) != 6 {
		err = fmt.Errorf("MAC address %x is not 6 bytes long", mac)
	}
	return mac, err
}

type refusal struct {
	cause error
	fix   string
}

// refuseWishes names what a user asked for and a particle network cannot give.
func refuseWishes(req network.CreateEndpointRequest) *refusal {
	if ports, _ := req.Options[labelPortMap].([]any); len(ports) > 0 {
		return &refusal{errors.New("published ports (-p, -P) are not supported on a particle network yet"),
			"omit them and reach the container by its address from the same network"}
	}
	for _, key := range slices.Sorted(maps.Keys(req.Options)) {
		switch key {
		case labelSysctls:
			return &refusal{fmt.Errorf("a particle network does not set %s", key), "omit it, or set them for the container by --sysctl"}
		case labelIfName:
			return &refusal{fmt.Errorf("a particle network does not know %s", key), "omit it"}
		}
		if !strings.HasPrefix(key, labelDocker) {
			return &refusal{fmt.Errorf("the particle driver has no endpoint option %q", key), "omit driver-opt " + key}
		}
	}
	return nil
}
