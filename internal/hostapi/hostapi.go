// Package hostapi answers particle-runtime and the particle command: it reads
// runtimeapi's messages and asks the fabric.
package hostapi

import (
	"context"
	"path"

	"github.com/particle-net/particle/addrguard"
	"github.com/particle-net/particle/fabric"
	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/internal/holder"
	"github.com/particle-net/particle/internal/hostpath"
	"github.com/particle-net/particle/internal/hostview"
	"github.com/particle-net/particle/internal/runtimeapi"
	"github.com/particle-net/particle/topology"
)

// API implements runtimeapi.Handler.
type API struct {
	Fabric  *fabric.Fabric
	Guard   Guard
	Cluster *Cluster // nil on a host that keeps to itself
	// Held asks the guard by system calls what it has kept containers from.
	Held func() (map[topology.ContainerID]holder.Denials, error)
}

// Guard tells what the address guard has done.
type Guard interface {
	Status() runtimeapi.GuardStatus
	// Denials are all zero for a cgroup that is not admitted.
	Denials(topology.CgroupID) (runtimeapi.Denials, error)
}

// Handle answers one request, in the host's terms.
func (a API) Handle(ctx context.Context, req runtimeapi.Request) (runtimeapi.Reply, error) {
	reply, err := a.handle(ctx, req)
	return reply, hostview.Error(err)
}

func (a API) handle(ctx context.Context, req runtimeapi.Request) (runtimeapi.Reply, error) {
	switch {
	case req.Place != nil:
		p, err := a.place(ctx, *req.Place)
		return runtimeapi.Reply{Place: p}, err
	case req.Claim != nil:
		claimed, err := a.claim(ctx, *req.Claim)
		return runtimeapi.Reply{Claim: claimed}, err
	case req.Release != nil:
		return runtimeapi.Reply{}, a.Fabric.Release(ctx, req.Release.Container)
	case req.Status != nil:
		s := a.status(a.Fabric.View())
		return runtimeapi.Reply{Status: &s}, nil
	case req.Cluster != nil:
		c, err := a.cluster(ctx, *req.Cluster)
		return runtimeapi.Reply{Cluster: c}, err
	}
	return runtimeapi.Reply{}, fault.New("read request", "", "it asks for nothing this version knows",
		"install the same version of particle, particle-runtime and the plugin")
}

func (a API) place(ctx context.Context, req runtimeapi.Place) (*runtimeapi.Placement, error) {
	refs := make([]fabric.Ref, len(req.Networks))
	for i, n := range req.Networks {
		refs[i] = fabric.Ref{Name: n.Name, ID: n.ID}
	}
	p, ok, err := a.Fabric.Place(ctx, refs, req.Own)
	if err != nil || !ok {
		return &runtimeapi.Placement{}, err
	}
	return &runtimeapi.Placement{
		Member:      true,
		Network:     p.Network,
		NetworkName: p.Name,
		Namespace:   p.Namespace,
		Own:         req.Own,
		Internal:    p.Internal,
		Resolver:    p.Resolver,
		Supervised:  p.Supervised,
	}, nil
}

func (a API) claim(ctx context.Context, req runtimeapi.Claim) (*runtimeapi.Claimed, error) {
	spec := fabric.ClaimSpec{
		Container: req.Container,
		Name:      req.Name,
		Network:   req.Network,
		Pid:       req.Pid,
		Cgroup:    req.Cgroup,
		Join:      req.Join,
		Own:       req.Own,
		Reason:    req.Reason,
		Hostname:  req.Hostname,
	}
	for _, line := range req.Hosts {
		spec.Hosts = append(spec.Hosts, fabric.HostLine{Addr: line.Addr, Names: line.Names})
	}
	if err := a.Fabric.Claim(ctx, spec); err != nil {
		return nil, err
	}
	i, ok := a.Fabric.Supervised(req.Container)
	if !ok {
		return &runtimeapi.Claimed{}, nil
	}
	four, six := addrguard.Loopback(i.Slot)
	return &runtimeapi.Claimed{Addresses: &runtimeapi.Addresses{
		Namespace: path.Join(hostpath.NamespaceDir, string(i.Network)), IPv4: i.IPv4, IPv6: i.IPv6, Loopback4: four, Loopback6: six,
	}}, nil
}

func (a API) status(v fabric.View) runtimeapi.Status {
	s := runtimeapi.Status{
		Version:  v.Version,
		Started:  v.Started,
		Underlay: runtimeapi.UnderlayStatus{MTU: v.Underlay.MTU, Port: v.Underlay.Port},
		Guard:    a.Guard.Status(),
		Networks: []runtimeapi.NetworkStatus{},
		Repairs:  v.Repairs,
		Cluster:  a.clusterSummary(),
	}
	held, err := a.Held()
	if err != nil {
		s.Guard.Problem = err.Error()
	}
	denials := func(container topology.ContainerID, id topology.CgroupID) runtimeapi.Denials {
		if h, ok := held[container]; ok {
			return runtimeapi.Denials{Binds: h.Binds, Connects: h.Connects}
		}
		d, err := a.Guard.Denials(id)
		if err != nil {
			s.Guard.Problem = err.Error()
		}
		return d
	}
	if v.Underlay.VTEP.IsValid() {
		s.Underlay.VTEP = v.Underlay.VTEP.String()
		if topology.WireGuardRange.Contains(v.Underlay.VTEP) {
			s.Underlay.Encryption = topology.ByWireGuard
		}
	}
	for _, n := range v.Networks {
		s.Networks = append(s.Networks, networkStatus(n, denials))
	}
	return s
}

type denials func(topology.ContainerID, topology.CgroupID) runtimeapi.Denials

func networkStatus(n fabric.NetworkView, denied denials) runtimeapi.NetworkStatus {
	s := runtimeapi.NetworkStatus{
		ID:        n.ID,
		Name:      n.Name,
		VNI:       n.VNI,
		MTU:       n.MTU,
		Internal:  n.Internal,
		Guard:     string(n.Mode),
		Problem:   hostview.Text(n.Problem),
		Pools:     []runtimeapi.PoolStatus{},
		Endpoints: []runtimeapi.EndpointStatus{},
	}
	s.Scope, s.Shared, s.Peers = runtimeapi.ScopeHost, n.Shared, n.Peers
	if n.Shared != "" {
		s.Scope = runtimeapi.ScopeCluster
	}
	if n.UplinkUp {
		s.Uplink = n.UplinkAddr.String()
	}
	for _, p := range n.Pools {
		pool := runtimeapi.PoolStatus{ID: p.ID, Subnet: p.Subnet, Range: p.Range, Used: p.Used}
		if p.Free != nil {
			pool.Free = p.Free.String()
		}
		pool.Blocks = blocks(n, p)
		s.Pools = append(s.Pools, pool)
	}
	for _, e := range n.Endpoints {
		s.Endpoints = append(s.Endpoints, runtimeapi.EndpointStatus{
			ID: e.ID, Container: e.Container, Name: e.Name, IPv4: e.IPv4, IPv6: e.IPv6,
			Pid: e.Pid, Cgroup: e.Cgroup, State: e.State(), Own: e.Link != "", Reason: e.Reason, Since: e.Created,
			Denied: denied(e.Container, e.Guarded), Guests: guests(e, denied),
		})
	}
	return s
}

func blocks(n fabric.NetworkView, p fabric.PoolView) []runtimeapi.BlockStatus {
	var all []runtimeapi.BlockStatus
	for _, b := range p.Blocks {
		s := runtimeapi.BlockStatus{Prefix: b.Prefix, Used: b.Used, Free: b.Free.String(), State: runtimeapi.BlockServing}
		switch {
		case b.Leaving:
			s.State = runtimeapi.BlockLeaving
		case n.Suspended:
			s.State = runtimeapi.BlockSuspended
		}
		all = append(all, s)
	}
	return all
}

func guests(e fabric.Endpoint, denied denials) []runtimeapi.GuestStatus {
	var all []runtimeapi.GuestStatus
	for _, g := range e.Guests {
		all = append(all, runtimeapi.GuestStatus{
			Container: g.Container, Name: g.Name, Pid: g.Pid, Cgroup: g.Cgroup, Denied: denied(g.Container, g.Guarded), Since: g.Claimed,
		})
	}
	return all
}
