package ipam

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"slices"

	"github.com/docker/go-plugins-helpers/ipam"

	"github.com/particle-net/particle/fabric"
	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/internal/pluginhttp"
	"github.com/particle-net/particle/topology"
)

// Interface is the name by which Docker's plugin manifest knows the protocol.
const Interface = "IpamDriver"

// Names of address spaces. They differ on purpose: where they are one string,
// Docker 27 and later does not check a pool that we chose against the host's
// routes (libnetwork ipams/remote).
const (
	localSpace  = fabric.AddressSpace
	globalSpace = "particle-global"
)

// optionNetwork names the network in the cluster that a pool is for. Our own plugin
// sets it when it makes, on this host, a network of another host's: Docker does
// not say otherwise what a pool is for.
const optionNetwork = "particle.network"

// Options that Docker sends with an address request.
const (
	optionType    = "RequestAddressType"
	typeGateway   = "com.docker.network.gateway"
	optionName    = "com.docker.network.endpoint.name" // of the container; Docker 29 and later
	noAddressPool = "0.0.0.0/0"                        // what Docker's null IPAM driver calls no pool
)

// Pools is the part of the domain that IPAM calls reach.
type Pools interface {
	RequestPool(context.Context, fabric.PoolSpec) (fabric.Pool, error)
	ReleasePool(context.Context, topology.PoolID) error
	RequestAddress(context.Context, fabric.AddressSpec) (netip.Prefix, error)
	ReleaseAddress(context.Context, topology.PoolID, netip.Addr) error
}

// Driver answers IpamDriver calls. It holds no state.
type Driver struct{ pools Pools }

// Register adds the protocol's methods to the server.
func Register(s *pluginhttp.Server, p Pools) {
	d := Driver{p}
	pluginhttp.Handle(s, "IpamDriver.GetCapabilities", pluginhttp.Rare, d.capabilities)
	pluginhttp.Handle(s, "IpamDriver.GetDefaultAddressSpaces", pluginhttp.Rare, d.addressSpaces)
	pluginhttp.Handle(s, "IpamDriver.RequestPool", pluginhttp.Rare, d.requestPool)
	pluginhttp.Handle(s, "IpamDriver.ReleasePool", pluginhttp.Rare, d.releasePool)
	pluginhttp.Handle(s, "IpamDriver.RequestAddress", pluginhttp.Often, d.requestAddress)
	pluginhttp.Handle(s, "IpamDriver.ReleaseAddress", pluginhttp.Often, d.releaseAddress)
}

type none struct{}

func (d Driver) capabilities(context.Context, struct{}) (ipam.CapabilitiesResponse, error) {
	return ipam.CapabilitiesResponse{}, nil
}

func (d Driver) addressSpaces(context.Context, struct{}) (ipam.AddressSpacesResponse, error) {
	return ipam.AddressSpacesResponse{LocalDefaultAddressSpace: localSpace, GlobalDefaultAddressSpace: globalSpace}, nil
}

func (d Driver) requestPool(ctx context.Context, req ipam.RequestPoolRequest) (ipam.RequestPoolResponse, error) {
	spec, err := parsePool(req)
	if err != nil {
		return ipam.RequestPoolResponse{}, err
	}
	p, err := d.pools.RequestPool(ctx, spec)
	if err != nil {
		return ipam.RequestPoolResponse{}, err
	}
	return ipam.RequestPoolResponse{PoolID: string(p.ID), Pool: p.Subnet.String()}, nil
}

func parsePool(req ipam.RequestPoolRequest) (fabric.PoolSpec, error) {
	spec := fabric.PoolSpec{V6: req.V6}
	for _, key := range slices.Sorted(maps.Keys(req.Options)) {
		if key == optionNetwork {
			id, err := topology.ParseSharedID(req.Options[key])
			if err != nil {
				return spec, &fault.Error{Op: "create network: read option", On: "--ipam-opt " + key, Err: err, Fix: "omit it"}
			}
			spec.Shared = id
			continue
		}
		return spec, fault.New("create network: read option", "--ipam-opt "+key, "the particle IPAM driver has no options", "omit it")
	}
	for _, part := range []struct {
		flag, text string
		into       *netip.Prefix
	}{{"--subnet", req.Pool, &spec.Subnet}, {"--ip-range", req.SubPool, &spec.Range}} {
		if part.text == "" {
			continue
		}
		prefix, err := netip.ParsePrefix(part.text)
		if err == nil && part.text == noAddressPool {
			err = errors.New("a network needs a subnet of its own")
		}
		if err != nil {
			return spec, &fault.Error{Op: "create network: read", On: part.flag + " " + part.text, Err: err, Fix: "pass one such as 10.9.0.0/16"}
		}
		*part.into = prefix.Masked()
	}
	if spec.Range.IsValid() && !spec.Subnet.IsValid() {
		return spec, fault.New("create network: read", "--ip-range "+req.SubPool, "it needs a --subnet around it", "pass --subnet too")
	}
	if spec.Subnet.IsValid() && spec.Subnet.Addr().Is6() != req.V6 {
		return spec, fault.New("create network: read", "--subnet "+req.Pool, "it is of the other IP version than Docker announced", "")
	}
	return spec, nil
}

func (d Driver) releasePool(ctx context.Context, req ipam.ReleasePoolRequest) (none, error) {
	return none{}, d.pools.ReleasePool(ctx, topology.PoolID(req.PoolID))
}

func (d Driver) requestAddress(ctx context.Context, req ipam.RequestAddressRequest) (ipam.RequestAddressResponse, error) {
	spec := fabric.AddressSpec{
		Pool:    topology.PoolID(req.PoolID),
		Gateway: req.Options[optionType] == typeGateway,
		Name:    req.Options[optionName],
	}
	if req.Address != "" {
		a, err := netip.ParseAddr(req.Address)
		if err != nil {
			return ipam.RequestAddressResponse{}, &fault.Error{Op: "request address", On: req.Address, Err: err}
		}
		spec.Addr = a
	}
	got, err := d.pools.RequestAddress(ctx, spec)
	if err != nil {
		return ipam.RequestAddressResponse{}, err
	}
	return ipam.RequestAddressResponse{Address: got.String()}, nil
}

func (d Driver) releaseAddress(ctx context.Context, req ipam.ReleaseAddressRequest) (none, error) {
	a, err := netip.ParseAddr(req.Address)
	if err != nil {
		return none{}, &fault.Error{Op: "release address", On: req.Address, Err: err}
	}
	return none{}, d.pools.ReleaseAddress(ctx, topology.PoolID(req.PoolID), a)
}
