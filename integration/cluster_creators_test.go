package integration

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/client"
	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sync/errgroup"

	"github.com/particle-net/particle/internal/runtimeapi"
)

// cmdCreators has all hosts of a cluster create a network of one name at the same
// moment, again and again until at least two have done so before they knew of each
// other's; and has each round end as it must: creators NAME alike|apart. Apart, each
// host names another subnet.
func cmdCreators(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: creators NAME alike|apart")
	}
	c := creators{bed: sessionOf(ts).bed, name: args[0], apart: args[1] == "apart"}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for {
		made, err := c.round(ctx)
		ts.Check(err)
		ts.Logf("%d of %d hosts made network %s", len(made), len(c.bed.lab.Hosts()), c.name)
		if len(made) > 1 {
			return
		}
	}
}

// creators are the hosts of a bed that make a network of one name.
type creators struct {
	bed   *bed
	name  string
	apart bool
}

// round lets the hosts create the network, and removes it again. It tells the ids of
// those that Docker has made for their users.
func (c creators) round(ctx context.Context) (made map[string]string, err error) {
	if made, err = c.create(ctx); err != nil {
		return nil, err
	}
	if len(made) == 0 {
		return nil, errors.New("no host could create the network")
	}
	var winner string
	if err := until(ctx, func() (err error) { winner, err = c.decided(ctx, made); return err }); err != nil {
		return nil, err
	}
	if c.apart {
		if err := c.yield(ctx, made, winner); err != nil {
			return nil, err
		}
	}
	if err := until(ctx, func() error { return c.agree(ctx) }); err != nil {
		return nil, err
	}
	first, err := c.bed.on("h1")
	if err == nil {
		_, err = first.docker(ctx, "network", "rm", c.name)
	}
	if err != nil {
		return nil, err
	}
	return made, c.bed.each(func(b *bed) error { return until(ctx, func() error { return c.gone(ctx, b) }) })
}

// create asks all engines at once. That one knows of another's network is no error.
func (c creators) create(ctx context.Context) (made map[string]string, err error) {
	hosts := c.bed.lab.Hosts()
	ids, start := make([]string, len(hosts)), make(chan struct{})
	var ready, all errgroup.Group
	for i, host := range hosts {
		api, err := client.NewClientWithOpts(client.WithHost(host.DockerHost()), client.WithAPIVersionNegotiation())
		if err != nil {
			return nil, err
		}
		defer api.Close()
		ready.Go(func() error { _, err := api.Ping(ctx); return err })
		options := network.CreateOptions{Driver: "particle", IPAM: &network.IPAM{Driver: "particle"}, Labels: map[string]string{"by": "script"}}
		if c.apart {
			options.IPAM.Config = []network.IPAMConfig{{Subnet: fmt.Sprintf("10.9%d.0.0/16", i+1)}}
		}
		all.Go(func() error {
			<-start
			created, err := api.NetworkCreate(ctx, c.name, options)
			if ids[i] = created.ID; err != nil && !strings.Contains(err.Error(), "already exists") {
				return fmt.Errorf("create on %s: %w", host.Name(), err)
			}
			return nil
		})
	}
	err = ready.Wait() // nobody connects any more when all start
	close(start)
	err = errors.Join(err, all.Wait())
	made = map[string]string{}
	for i, host := range hosts {
		if ids[i] != "" {
			made[host.Name()] = ids[i]
		}
	}
	return made, err
}

// decided says which host's network is the cluster's, once each host has it or tells
// why not.
func (c creators) decided(ctx context.Context, made map[string]string) (winner string, err error) {
	var shared []string
	for _, host := range c.bed.lab.Hosts() {
		b, err := c.bed.on(host.Name())
		if err != nil {
			return "", err
		}
		n, troubles, err := c.view(ctx, b)
		if err != nil {
			return "", err
		}
		if len(troubles) > 0 && c.apart {
			for _, t := range troubles {
				if t.State != "conflict" || !strings.Contains(t.Problem, "with other subnets; remove it") && !strings.Contains(t.Problem, "which was first; this one stays on this host alone") {
					return "", fmt.Errorf("%s: network %s is %s: %s", host.Name(), t.Name, t.State, t.Problem)
				}
			}
			continue
		}
		if n == nil || len(troubles) > 0 {
			return "", fmt.Errorf("%s has no network %s, or a problem with it: %v", host.Name(), c.name, troubles)
		}
		shared = append(shared, string(n.Shared))
	}
	slices.Sort(shared)
	if shared = slices.Compact(shared); len(shared) != 1 {
		return "", fmt.Errorf("hosts have the networks %v", shared)
	}
	for host, id := range made {
		if id == shared[0] {
			return host, nil
		}
	}
	return "", fmt.Errorf("network %s is none of those that were made: %v", shared[0], made)
}

// yield has users remove the networks that were not the first.
func (c creators) yield(ctx context.Context, made map[string]string, winner string) error {
	for host, id := range made {
		if host == winner {
			continue
		}
		b, err := c.bed.on(host)
		if err == nil {
			_, err = b.docker(ctx, "network", "rm", id)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// agree says whether all hosts have the same network, and no problem with it.
func (c creators) agree(ctx context.Context) error {
	var first *runtimeapi.NetworkStatus
	for _, host := range c.bed.lab.Hosts() {
		b, err := c.bed.on(host.Name())
		if err != nil {
			return err
		}
		n, troubles, err := c.view(ctx, b)
		if err != nil {
			return err
		}
		if n == nil || len(troubles) > 0 {
			return fmt.Errorf("%s has no network %s, or a problem with it: %v", host.Name(), c.name, troubles)
		}
		if first == nil {
			first = n
		}
		if n.Shared != first.Shared || n.VNI != first.VNI || n.Pools[0].Subnet != first.Pools[0].Subnet {
			return fmt.Errorf("%s has %+v, and another host %+v", host.Name(), n, first)
		}
	}
	return nil
}

// gone says whether a host has forgotten the network.
func (c creators) gone(ctx context.Context, b *bed) error {
	n, troubles, err := c.view(ctx, b)
	if err == nil && (n != nil || len(troubles) > 0) {
		err = fmt.Errorf("%s still has network %s: %v", b.host.Name(), c.name, troubles)
	}
	return err
}

// view is the one network of the name on a host, if there is one, and what the host
// tells of those in trouble. Docker up to 24 makes two of one name at the same moment:
// if they are not alike that is a conflict, which the host tells.
func (c creators) view(ctx context.Context, b *bed) (found *runtimeapi.NetworkStatus, troubles []runtimeapi.ClusterNetwork, err error) {
	s, err := b.status(ctx)
	if err != nil {
		return nil, nil, err
	}
	if s.Cluster == nil {
		return nil, nil, fmt.Errorf("%s is in no cluster", b.host.Name())
	}
	for _, n := range s.Cluster.Networks {
		if n.Name == c.name {
			troubles = append(troubles, n)
		}
	}
	for _, n := range s.Networks {
		if n.Name != c.name {
			continue
		}
		if found != nil && (!c.apart || len(troubles) == 0) {
			return nil, nil, fmt.Errorf("%s has two networks %s", b.host.Name(), c.name)
		}
		found = &n
	}
	return found, troubles, nil
}
