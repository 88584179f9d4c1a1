package main

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"path/filepath"
	"strconv"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/client"

	"github.com/particle-net/particle/bench/rig"
	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/internal/lab"
	"github.com/particle-net/particle/internal/process"
)

// host is a lab host, and what it is used by.
type host struct {
	*lab.Host
	space *space
	api   *client.Client
}

func (h *host) connect() (err error) {
	h.api, err = client.NewClientWithOpts(client.WithHost(h.DockerHost()), client.WithAPIVersionNegotiation())
	if err != nil {
		return &fault.Error{Op: "open Docker API", On: h.Name(), Err: err}
	}
	return nil
}

func (h *host) close() {
	if h.api != nil {
		h.api.Close()
	}
}

// version is the engine's.
func (h *host) version(ctx context.Context) (string, error) {
	v, err := h.api.ServerVersion(ctx)
	if err != nil {
		return "", &fault.Error{Op: "ask the engine's version", On: h.Name(), Err: err}
	}
	return v.Version, nil
}

// particle gives the host the particle command.
func (h *host) particle(ctx context.Context, p rig.Particle, args ...string) (string, error) {
	cmd := p.Command(ctx, h.DockerHost(), args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return "", &fault.Error{Op: "particle " + args[0], On: "on " + h.Name(), Err: fmt.Errorf("%w: %s", err, bytes.TrimSpace(errs.Bytes()))}
	}
	return string(bytes.TrimSpace(out.Bytes())), nil
}

// makeNetwork makes a network whose MTU is what the driver makes of the underlay's.
func (h *host) makeNetwork(ctx context.Context, name string, o network.CreateOptions, subnet string) error {
	o.IPAM.Config = []network.IPAMConfig{{Subnet: subnet}}
	if _, err := h.api.NetworkCreate(ctx, name, o); err != nil {
		return &fault.Error{Op: "create network " + name, On: "on " + h.Name(), Err: err}
	}
	return nil
}

// resident is a container that runs.
type resident struct {
	namespace string // its network namespace, as the machine finds it
	cgroup    cgroup
	addr      netip.Addr
}

// run starts a container on a network; a runtime "" is the engine's own choice.
func (h *host) run(ctx context.Context, on, runtime string) (r resident, err error) {
	fail := func(op string, err error) (resident, error) {
		return r, &fault.Error{Op: op + " of a container", On: "on " + h.Name(), Err: err}
	}
	made, err := h.api.ContainerCreate(ctx, &container.Config{Image: lab.TestImage, Cmd: []string{"probe", "sleep"}},
		&container.HostConfig{NetworkMode: container.NetworkMode(on), Runtime: runtime}, nil, nil, "")
	if err == nil {
		err = h.api.ContainerStart(ctx, made.ID, container.StartOptions{})
	}
	if err != nil {
		return fail("start", err)
	}
	seen, err := h.api.ContainerInspect(ctx, made.ID)
	if err != nil {
		return fail("inspection", err)
	}
	// Through the host's own /proc: the engine tells the host's number of the process.
	table := process.Table{Root: filepath.Join(h.Root(), "proc")}
	r.namespace = table.Namespace(seen.State.Pid)
	if r.cgroup, err = cgroupOf(filepath.Join(table.Root, strconv.Itoa(seen.State.Pid))); err != nil {
		return fail("cgroup", err)
	}
	end := seen.NetworkSettings.Networks[on]
	if end == nil {
		return fail("address", fmt.Errorf("no endpoint on %s is told of", on))
	}
	if r.addr, err = netip.ParseAddr(end.IPAddress); err != nil {
		return fail("address", err)
	}
	return r, nil
}
