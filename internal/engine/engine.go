package engine

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/events"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/client"
	"github.com/sirupsen/logrus"

	"github.com/particle-net/particle/fabric"
	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/topology"
)

// Engine is one Docker daemon. It is safe for concurrent use.
type Engine struct {
	api     *client.Client
	drivers []string // names that Docker knows our driver by
	log     *logrus.Entry
}

// New prepares the client; it does not connect.
func New(socket string, drivers []string, log *logrus.Entry) (*Engine, error) {
	api, err := client.NewClientWithOpts(client.WithHost("unix://"+socket), client.WithAPIVersionNegotiation())
	if err != nil {
		return nil, &fault.Error{Op: "open Docker API at", On: socket, Err: err}
	}
	return &Engine{api: api, drivers: drivers, log: log}, nil
}

// Close drops the connections.
func (e *Engine) Close() error { return e.api.Close() }

func explain(op, on string, err error) error {
	return &fault.Error{Op: op, On: on, Err: err, Fix: "check that the Docker daemon answers"}
}

// Networks lists all of Docker's networks. One of another driver may have its
// addresses from our IPAM.
func (e *Engine) Networks(ctx context.Context) ([]fabric.EngineNetwork, error) {
	list, err := e.api.NetworkList(ctx, network.ListOptions{})
	if err != nil {
		return nil, explain("list Docker's networks", "", err)
	}
	all := make([]fabric.EngineNetwork, 0, len(list))
	for _, n := range list {
		all = append(all, e.convert(n))
	}
	return all, nil
}

func (e *Engine) convert(n network.Inspect) fabric.EngineNetwork {
	converted := fabric.EngineNetwork{ID: topology.NetworkID(n.ID), Name: n.Name, Ours: slices.Contains(e.drivers, n.Driver)}
	if slices.Contains(e.drivers, n.IPAM.Driver) {
		for _, c := range n.IPAM.Config {
			if subnet, err := netip.ParsePrefix(c.Subnet); err == nil {
				converted.Pools = append(converted.Pools, subnet.Masked())
			}
		}
	}
	return converted
}

// Network resolves a name, an id or the start of one.
func (e *Engine) Network(ctx context.Context, ref string) (fabric.EngineNetwork, bool, error) {
	n, err := e.api.NetworkInspect(ctx, ref, network.InspectOptions{})
	if errdefs.IsNotFound(err) {
		return fabric.EngineNetwork{}, false, nil
	}
	if err != nil {
		return fabric.EngineNetwork{}, false, explain("look up Docker's network", ref, err)
	}
	return e.convert(n), true, nil
}

// Endpoints lists the endpoints Docker knows on a network. A network it does
// not know has none.
func (e *Engine) Endpoints(ctx context.Context, id topology.NetworkID) (map[topology.EndpointID]fabric.EngineContainer, error) {
	n, err := e.api.NetworkInspect(ctx, string(id), network.InspectOptions{})
	if errdefs.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, explain("list the endpoints of network", id.Short(), err)
	}
	all := make(map[topology.EndpointID]fabric.EngineContainer, len(n.Containers))
	for key, c := range n.Containers {
		holder := fabric.EngineContainer{Name: c.Name}
		// The key is "ep-<endpoint id>" until the container has joined.
		if !strings.HasPrefix(key, "ep-") {
			holder.ID = topology.ContainerID(key)
		}
		all[topology.EndpointID(c.EndpointID)] = holder
	}
	return all, nil
}

// Seen is told what Watch hears of.
type Seen struct {
	Created func(topology.NetworkID, string)   // a network of ours, and its name
	Renamed func(topology.ContainerID, string) // any container, and its new name
	Resync  func(context.Context)              // it has connected: what happened before is not reported
}

// Watch reports each network of ours that Docker has made and each container that was
// renamed, until ctx ends.
func (e *Engine) Watch(ctx context.Context, seen Seen) {
	const first, last = 250 * time.Millisecond, 10 * time.Second
	for wait := first; ctx.Err() == nil; wait = min(2*wait, last) {
		began := time.Now()
		err := e.follow(ctx, seen)
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > last {
			wait = first
		}
		e.log.WithError(err).Debug("Docker's events broke off; connecting again")
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return
		}
	}
}

func (e *Engine) follow(ctx context.Context, seen Seen) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// Two, since one for both would be told of every container that is made.
	networks, lost := e.api.Events(ctx, eventsOf(events.NetworkEventType, events.ActionCreate))
	renames, lostRenames := e.api.Events(ctx, eventsOf(events.ContainerEventType, events.ActionRename))
	if _, err := e.api.Ping(ctx); err != nil {
		return err
	}
	seen.Resync(ctx)
	for {
		select {
		case m := <-networks:
			if slices.Contains(e.drivers, m.Actor.Attributes["type"]) {
				seen.Created(topology.NetworkID(m.Actor.ID), m.Actor.Attributes["name"])
			}
		case m := <-renames:
			seen.Renamed(topology.ContainerID(m.Actor.ID), m.Actor.Attributes["name"])
		case err := <-lost:
			return err
		case err := <-lostRenames:
			return err
		}
	}
}

func eventsOf(kind events.Type, action events.Action) events.ListOptions {
	return events.ListOptions{Filters: filters.NewArgs(filters.Arg("type", string(kind)), filters.Arg("event", string(action)))}
}
