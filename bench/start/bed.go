package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"time"

	"github.com/docker/docker/api/types/swarm"
	"github.com/docker/docker/client"

	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/internal/lab"
)

// bed is the lab host the measurement runs on.
type bed struct {
	lab    *lab.Lab
	host   *lab.Host
	api    *client.Client
	engine engineInfo
}

// engineInfo names what was measured.
type engineInfo struct {
	Kind       string `json:"kind"`    // debian or current
	Version    string `json:"version"` // of dockerd
	Containerd string `json:"containerd"`
	Runc       string `json:"runc"`
}

// makeBed boots the host and prepares it for the plan. On failure nothing is left.
func makeBed(ctx context.Context, o options) (*bed, error) {
	// Tied: should this program be killed, the host goes with it.
	l, err := lab.Up(ctx, lab.Options{Name: o.lab, Hosts: 1, Engine: o.engine, Tied: true, Progress: os.Stderr})
	if err != nil {
		return nil, err
	}
	b := &bed{lab: l, host: l.Hosts()[0]}
	if err := b.prepare(ctx, o); err != nil {
		return nil, errors.Join(err, b.remove(ctx))
	}
	return b, nil
}

func (b *bed) prepare(ctx context.Context, o options) error {
	var err error
	if b.api, err = openAPI(b.host.DockerHost(), o.c); err != nil {
		return err
	}
	// Before installing: afterwards the engine names our runtime instead of runc.
	if err := b.describe(ctx, o.engine); err != nil {
		return err
	}
	fmt.Fprintln(os.Stderr, "loading the test image")
	if err := lab.LoadImage(ctx, b.host); err != nil {
		return err
	}
	if slices.ContainsFunc(o.variants, variant.ours) {
		if err := installParticle(ctx, b.host.DockerHost(), os.Stderr); err != nil {
			return err
		}
	}
	if slices.Contains(o.variants, variantOverlay) {
		return b.joinSwarm(ctx)
	}
	return nil
}

// openAPI connects with room for c requests at a time and some more for the
// collector: with the client's own pool of six, every third would dial anew.
func openAPI(host string, c int) (*client.Client, error) {
	pool := &http.Client{Transport: &http.Transport{MaxIdleConns: c + 8, MaxIdleConnsPerHost: c + 8}}
	api, err := client.NewClientWithOpts(client.WithHTTPClient(pool), client.WithHost(host), client.WithAPIVersionNegotiation())
	if err != nil {
		return nil, &fault.Error{Op: "open Docker API", On: host, Err: err}
	}
	return api, nil
}

// joinSwarm makes the host a swarm of one: Docker's overlay driver wants it.
func (b *bed) joinSwarm(ctx context.Context) error {
	fmt.Fprintln(os.Stderr, "making the host a swarm of one, for the overlay network")
	addr := b.host.Addr4().String()
	_, err := b.api.SwarmInit(ctx, swarm.InitRequest{
		ListenAddr: addr + ":2377", AdvertiseAddr: addr, DataPathAddr: addr,
		// Not 4789, which particle's VXLAN devices on the same host use.
		DataPathPort: 4790,
	})
	if err != nil {
		return &fault.Error{Op: "make a swarm", On: b.host.Name(), Err: err, Fix: "leave overlay out of -variants"}
	}
	return nil
}

func (b *bed) describe(ctx context.Context, kind string) error {
	v, err := b.api.ServerVersion(ctx)
	if err != nil {
		return &fault.Error{Op: "ask the engine's version", On: b.host.Name(), Err: err}
	}
	b.engine = engineInfo{Kind: kind, Version: v.Version}
	for _, part := range v.Components {
		switch part.Name {
		case "containerd":
			b.engine.Containerd = part.Version
		case "runc":
			b.engine.Runc = part.Version
		}
	}
	return nil
}

// remove takes the lab down, also when ctx has ended. On a busy machine the kernel
// may take its time to end the processes of hundreds of containers.
func (b *bed) remove(ctx context.Context) error {
	if b.api != nil {
		b.api.Close()
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Minute)
	defer cancel()
	return b.lab.Down(ctx)
}
