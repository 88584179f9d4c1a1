package driver

import (
	"context"

	"github.com/docker/go-plugins-helpers/network"

	"github.com/particle-net/particle/fabric"
	"github.com/particle-net/particle/internal/pluginhttp"
	"github.com/particle-net/particle/topology"
)

// Interface is the name by which Docker's plugin manifest knows the protocol.
const Interface = "NetworkDriver"

// Fabric is the part of the domain that network calls reach.
type Fabric interface {
	Networks
	Endpoints
}

// Networks makes and removes networks.
type Networks interface {
	CreateNetwork(context.Context, fabric.NetworkSpec) error
	DeleteNetwork(context.Context, topology.NetworkID) error
}

// Endpoints attaches and detaches.
type Endpoints interface {
	CreateEndpoint(context.Context, fabric.EndpointSpec) error
	Join(ctx context.Context, network topology.NetworkID, endpoint topology.EndpointID, sandboxKey string) error
	Leave(context.Context, topology.EndpointID) error
	DeleteEndpoint(context.Context, topology.EndpointID) error
}

// Driver answers NetworkDriver calls. It holds no state.
type Driver struct{ fabric Fabric }

// Register adds the protocol's methods to the server.
func Register(s *pluginhttp.Server, f Fabric) {
	d := Driver{f}
	pluginhttp.Handle(s, "NetworkDriver.GetCapabilities", pluginhttp.Rare, d.capabilities)
	pluginhttp.Handle(s, "NetworkDriver.CreateNetwork", pluginhttp.Rare, d.createNetwork)
	pluginhttp.Handle(s, "NetworkDriver.DeleteNetwork", pluginhttp.Rare, d.deleteNetwork)
	pluginhttp.Handle(s, "NetworkDriver.CreateEndpoint", pluginhttp.Often, d.createEndpoint)
	pluginhttp.Handle(s, "NetworkDriver.DeleteEndpoint", pluginhttp.Often, d.deleteEndpoint)
	pluginhttp.Handle(s, "NetworkDriver.EndpointOperInfo", pluginhttp.Often, d.endpointInfo)
	pluginhttp.Handle(s, "NetworkDriver.Join", pluginhttp.Often, d.join)
	pluginhttp.Handle(s, "NetworkDriver.Leave", pluginhttp.Often, d.leave)
	pluginhttp.Handle(s, "NetworkDriver.DiscoverNew", pluginhttp.Often, ignore[network.DiscoveryNotification])
	pluginhttp.Handle(s, "NetworkDriver.DiscoverDelete", pluginhttp.Often, ignore[network.DiscoveryNotification])
	pluginhttp.Handle(s, "NetworkDriver.ProgramExternalConnectivity", pluginhttp.Often, ignore[network.ProgramExternalConnectivityRequest])
	pluginhttp.Handle(s, "NetworkDriver.RevokeExternalConnectivity", pluginhttp.Often, ignore[network.RevokeExternalConnectivityRequest])
}

// none is the answer that says nothing.
type none struct{}

// ignore answers calls that concern drivers of another kind: Docker announces
// Swarm's nodes to every driver, and programs the gateway of an endpoint, which
// ours never is.
func ignore[Req any](context.Context, Req) (none, error) { return none{}, nil }

func (d Driver) capabilities(context.Context, struct{}) (network.CapabilitiesResponse, error) {
	return network.CapabilitiesResponse{Scope: network.LocalScope, ConnectivityScope: network.LocalScope}, nil
}

func (d Driver) createNetwork(ctx context.Context, req network.CreateNetworkRequest) (none, error) {
	spec, err := parseNetwork(req)
	if err != nil {
		return none{}, err
	}
	return none{}, d.fabric.CreateNetwork(ctx, spec)
}

func (d Driver) deleteNetwork(ctx context.Context, req network.DeleteNetworkRequest) (none, error) {
	id, err := topology.ParseNetworkID(req.NetworkID)
	if err != nil {
		return none{}, err
	}
	return none{}, d.fabric.DeleteNetwork(ctx, id)
}

func (d Driver) createEndpoint(ctx context.Context, req network.CreateEndpointRequest) (network.CreateEndpointResponse, error) {
	// Docker accepts only fields that its request left empty; an empty
	// interface leaves all as it chose.
	resp := network.CreateEndpointResponse{Interface: &network.EndpointInterface{}}
	spec, err := parseEndpoint(req)
	if err != nil {
		return resp, err
	}
	return resp, d.fabric.CreateEndpoint(ctx, spec)
}

func (d Driver) deleteEndpoint(ctx context.Context, req network.DeleteEndpointRequest) (none, error) {
	_, id, err := parseIDs(req.NetworkID, req.EndpointID)
	if err != nil {
		return none{}, err
	}
	return none{}, d.fabric.DeleteEndpoint(ctx, id)
}

// endpointInfo reads no request: its answer is the same for all, and so a
// repeated call that has lost its body still succeeds.
func (d Driver) endpointInfo(context.Context, struct{}) (network.InfoResponse, error) {
	return network.InfoResponse{Value: map[string]string{}}, nil
}

func (d Driver) join(ctx context.Context, req network.JoinRequest) (network.JoinResponse, error) {
	resp := network.JoinResponse{DisableGatewayService: true}
	net, id, err := parseIDs(req.NetworkID, req.EndpointID)
	if err != nil {
		return resp, err
	}
	return resp, d.fabric.Join(ctx, net, id, req.SandboxKey)
}

func (d Driver) leave(ctx context.Context, req network.LeaveRequest) (none, error) {
	_, id, err := parseIDs(req.NetworkID, req.EndpointID)
	if err != nil {
		return none{}, err
	}
	return none{}, d.fabric.Leave(ctx, id)
}
