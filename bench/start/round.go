package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/client"
	"github.com/docker/docker/pkg/stdcopy"
	"golang.org/x/sync/errgroup"

	"github.com/particle-net/particle/internal/fault"
)

// figures are what one round measured of one variant. Times are in seconds.
type figures struct {
	Variant    variant   `json:"variant"`
	Round      int       `json:"round"`              // from 1
	Turn       int       `json:"turn"`               // place within the round, from 1
	Network    float64   `json:"networkCreate"`      // making the network; 0 where there is none to make
	Started    float64   `json:"started"`            // until the last start had returned
	Reported   float64   `json:"reported,omitempty"` // until the collector had heard of all
	Removed    float64   `json:"removed"`            // removing all containers, as many at a time
	CPU        float64   `json:"cpu,omitempty"`      // spent on the host in that time, by everything that runs there
	Containers []float64 `json:"containers"`         // create and start of each

	Sources []netip.Addr `json:"sources,omitempty"` // that the collector saw
}

// round is one variant's turn.
type round struct {
	api     *client.Client
	starter starter
	cpu     cpuMeter
	plan    plan
	variant variant
	network string
	prefix  string       // of container names
	round   int          // 0 is the warm-up
	started func()       // called after each start, by several goroutines
	note    func(string) // called with what the reader should know
}

// run makes the network, measures and removes everything.
func (r *round) run(ctx context.Context) (f figures, err error) {
	f.Variant = r.variant
	if f.Network, err = r.makeNetwork(ctx); err != nil {
		return f, err
	}
	defer func() {
		after, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Minute)
		defer cancel()
		took, removeErr := r.remove(after)
		f.Removed = took
		err = errors.Join(err, removeErr)
	}()
	program := []string{"sleep", "86400"}
	var c *collector
	if r.plan.report && r.variant.reports() {
		if c, err = startCollector(ctx, r.api, r.variant, r.spec(-1), r.plan.n); err != nil {
			return f, err
		}
		defer c.close()
		program = []string{"sh", "-c", "probe report -timeout 60s -to " + c.target + " && exec sleep 86400"}
	}
	spent, begun := r.cpu.read(), time.Now()
	if f.Containers, err = r.startAll(ctx, program); err != nil {
		return f, err
	}
	f.Started = time.Since(begun).Seconds()
	if c != nil {
		if f.Sources, err = c.sources(ctx, r.plan.n); err != nil {
			return f, &fault.Error{Op: "collect reports on network", On: r.network, Err: errors.Join(err, r.complaint(ctx))}
		}
		f.Reported = time.Since(begun).Seconds()
	}
	f.CPU = (r.cpu.read() - spent).Seconds()
	return f, r.complaint(ctx)
}

// name is that of container i; -1 is the collector.
func (r *round) name(i int) string {
	if i < 0 {
		return r.prefix + "-collector"
	}
	return fmt.Sprintf("%s-%d", r.prefix, i)
}

// spec is that of container i, without its program.
func (r *round) spec(i int) spec {
	return spec{name: r.name(i), network: r.network, runtime: r.variant.runtime(), label: r.variant.label()}
}

func (r *round) makeNetwork(ctx context.Context) (float64, error) {
	if r.variant.ready() {
		r.network = string(r.variant)
		return 0, nil
	}
	r.network = r.prefix
	begun := time.Now()
	if _, err := r.api.NetworkCreate(ctx, r.network, r.variant.options(r.round)); err != nil {
		return 0, &fault.Error{Op: "make network", On: r.network, Err: err}
	}
	return time.Since(begun).Seconds(), nil
}

// startAll starts the containers and returns each one's time. The first failure
// ends it.
func (r *round) startAll(ctx context.Context, program []string) ([]float64, error) {
	took := make([]float64, r.plan.n)
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(r.plan.c)
	for i := range r.plan.n {
		if ctx.Err() != nil {
			break
		}
		s := r.spec(i)
		s.program = program
		if r.variant == variantHost && r.plan.report {
			// The probe looks its own address up in /etc/hosts, by the host name.
			s.hostname = s.name
			s.hosts = []string{s.name + ":" + loopback(i+1).String()}
		}
		g.Go(func() error {
			begun := time.Now()
			if err := r.starter.start(ctx, s); err != nil {
				return err
			}
			took[i] = time.Since(begun).Seconds()
			r.started()
			return nil
		})
	}
	return took, g.Wait()
}

// complaint is an error that quotes a container that should run and does not.
func (r *round) complaint(ctx context.Context) error {
	all, err := r.api.ContainerList(ctx, container.ListOptions{All: true})
	if err != nil {
		return &fault.Error{Op: "list containers", Err: err}
	}
	for _, c := range all {
		name := strings.TrimPrefix(c.Names[0], "/")
		if c.State != container.StateRunning && name != r.name(-1) {
			return &fault.Error{Op: "look at container", On: name, Err: fmt.Errorf("%s: %s", c.Status, r.said(ctx, c.ID))}
		}
	}
	return nil
}

// said is what a container has printed.
func (r *round) said(ctx context.Context, id string) string {
	logs, err := r.api.ContainerLogs(ctx, id, container.LogsOptions{ShowStdout: true, ShowStderr: true, Tail: "5"})
	if err != nil {
		return err.Error()
	}
	defer logs.Close()
	var text strings.Builder
	if _, err := stdcopy.StdCopy(&text, &text, io.LimitReader(logs, 4<<10)); err != nil {
		return err.Error()
	}
	return strings.TrimSpace(text.String())
}

// remove takes away what the round has made and returns how long the containers took.
func (r *round) remove(ctx context.Context) (float64, error) {
	begun := time.Now()
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(r.plan.c)
	for i := range r.plan.n {
		g.Go(func() error { return r.removeContainer(gctx, r.name(i)) })
	}
	err := g.Wait()
	took := time.Since(begun).Seconds()
	if err == nil {
		err = r.removeContainer(ctx, r.name(-1))
	}
	if err == nil && !r.variant.ready() {
		err = r.removeNetwork(ctx)
	}
	return took, err
}

func (r *round) removeContainer(ctx context.Context, name string) error {
	err := r.api.ContainerRemove(ctx, name, container.RemoveOptions{Force: true})
	if err != nil && !errdefs.IsNotFound(err) {
		return &fault.Error{Op: "remove container", On: name, Err: err}
	}
	return nil
}

// removeNetwork repeats what the engine refuses: up to Docker 20.10 a container
// counts as gone before it has left its network, and a swarm takes networks back
// some time after the last container.
//
// Docker 20.10 may also miscount when containers leave at the same time, whatever
// the driver: the network then "has active endpoints", none of which exists, until
// dockerd starts again. Such a network stays behind in the lab, and goes with it.
func (r *round) removeNetwork(ctx context.Context) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	patience, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	for {
		err := r.api.NetworkRemove(ctx, r.network)
		if err == nil || errdefs.IsNotFound(err) {
			return nil
		}
		if patience.Err() != nil && r.miscounted(ctx, err) {
			r.note(fmt.Sprintf("the engine says that network %s has active endpoints, and lists none; it stays until the end", r.network))
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return &fault.Error{Op: "remove network", On: r.network, Err: err}
		}
	}
}

// miscounted tells whether the engine refuses for endpoints that do not exist.
func (r *round) miscounted(ctx context.Context, refusal error) bool {
	if refusal == nil || !strings.Contains(refusal.Error(), "has active endpoints") {
		return false
	}
	n, err := r.api.NetworkInspect(ctx, r.network, network.InspectOptions{})
	return err == nil && len(n.Containers) == 0
}
