package main

import (
	"context"
	"fmt"

	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/api/types/swarm"

	"github.com/particle-net/particle/bench/rig"
	"github.com/particle-net/particle/internal/fault"
)

// networks are the names of those that Docker makes for the ways.
const (
	ownNetwork   = "bench-particle"
	swarmNetwork = "bench-swarm"
)

// joinCluster makes the hosts a cluster of particle's.
func (b *bed) joinCluster(ctx context.Context, p rig.Particle) error {
	first, second := b.hosts[0], b.hosts[1]
	if _, err := first.particle(ctx, p, "cluster", "init"); err != nil {
		return err
	}
	token, err := first.particle(ctx, p, "cluster", "token", "-q")
	if err == nil {
		_, err = second.particle(ctx, p, "cluster", "join", first.Addr4().String(), "--token", token)
	}
	return err
}

// joinSwarm makes the hosts a swarm whose VXLAN has the port.
func (b *bed) joinSwarm(ctx context.Context, port int) error {
	first, second := b.hosts[0], b.hosts[1]
	fail := func(h *host, err error) error {
		return &fault.Error{Op: "make a swarm", On: "on " + h.Name(), Err: err, Fix: "give another -port, or look into " + h.ServiceLog("dockerd")}
	}
	addr := first.Addr4().String()
	_, err := first.api.SwarmInit(ctx, swarm.InitRequest{
		ListenAddr: addr + ":2377", AdvertiseAddr: addr, DataPathAddr: addr, DataPathPort: uint32(port),
	})
	if err != nil {
		return fail(first, err)
	}
	made, err := first.api.SwarmInspect(ctx)
	if err != nil {
		return fail(first, err)
	}
	own := second.Addr4().String()
	err = second.api.SwarmJoin(ctx, swarm.JoinRequest{
		ListenAddr: own + ":2377", AdvertiseAddr: own, DataPathAddr: own, RemoteAddrs: []string{addr + ":2377"}, JoinToken: made.JoinTokens.Worker,
	})
	if err != nil {
		return fail(second, err)
	}
	return nil
}

// swarm is Docker's own overlay network.
func (b *bed) swarm(ctx context.Context, _ options) (way, error) {
	w := way{name: swarmWay}
	o := network.CreateOptions{Driver: "overlay", Attachable: true, IPAM: &network.IPAM{Driver: "default"}}
	if err := b.hosts[0].makeNetwork(ctx, swarmNetwork, o, "10.51.0.0/16"); err != nil {
		return w, err
	}
	// Particle's runtime, once installed, stands in front of all containers that do not
	// name another. The second host has the network when a container asks for it.
	err := b.residents(ctx, &w, swarmNetwork, "runc")
	return w, err
}

// own is the product.
func (b *bed) own(ctx context.Context, _ options) (way, error) {
	w := way{name: ownWay}
	o := network.CreateOptions{Driver: "particle", IPAM: &network.IPAM{Driver: "particle"}}
	if err := b.hosts[0].makeNetwork(ctx, ownNetwork, o, "10.52.0.0/16"); err != nil {
		return w, err
	}
	if err := b.hosts[1].awaitNetwork(ctx, ownNetwork); err != nil {
		return w, err
	}
	err := b.residents(ctx, &w, ownNetwork, "")
	return w, err
}

// residents starts a container on each host, between which the way is.
func (b *bed) residents(ctx context.Context, w *way, on, runtime string) error {
	for i, h := range b.hosts {
		r, err := h.run(ctx, on, runtime)
		if err != nil {
			return err
		}
		if w.ends[i], err = b.open(r.namespace); err != nil {
			return err
		}
		w.addrs[i] = r.addr
		if on == ownNetwork {
			w.as[i] = r.cgroup
		}
	}
	return nil
}

// awaitNetwork waits until the host has a network that another one made.
func (h *host) awaitNetwork(ctx context.Context, name string) error {
	err := until(ctx, func() error {
		_, err := h.api.NetworkInspect(ctx, name, network.InspectOptions{})
		return err
	})
	if err != nil {
		return &fault.Error{Op: "wait for network " + name, On: "on " + h.Name(), Err: err,
			Fix: fmt.Sprintf("look into %s", h.ServiceLog("dockerd"))}
	}
	return nil
}
