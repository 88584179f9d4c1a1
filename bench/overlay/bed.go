package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/particle-net/particle/bench/rig"
	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/internal/lab"
)

// names of ways that the report refers to
const (
	underlayWay = "underlay"
	plainWay    = "plain VXLAN"
	swarmWay    = "Swarm's overlay"
	ownWay      = "particle"
)

// mtu is what each network has, which is VXLAN's over Ethernet and IPv4.
const mtu = 1450

// way is one way to connect a container of one host with one of the other.
type way struct {
	name  string
	ends  [2]*space
	addrs [2]netip.Addr
	// as are whose the sockets are, if that matters.
	as [2]cgroup
}

// do runs fn on a thread at an end, as who lives there.
func (w way) do(end int, fn func() error) error {
	return w.as[end].do(func() error { return w.ends[end].do(fn) })
}

// bed is two hosts, and all ways between their containers at once.
type bed struct {
	lab    *lab.Lab
	hosts  []*host
	spaces []*space
	ways   []way
}

// newBed boots the hosts and connects them. On failure nothing is left.
func newBed(ctx context.Context, o options) (*bed, error) {
	fmt.Fprintln(os.Stderr, "building particle")
	programs, err := rig.BuildParticle(ctx)
	if err != nil {
		return nil, err
	}
	defer programs.Remove()
	// Tied: should this program be killed, the hosts go with it.
	l, err := lab.Up(ctx, lab.Options{Name: o.lab, Hosts: 2, Engine: o.engine, Tied: true, Progress: os.Stderr})
	if err != nil {
		return nil, err
	}
	b := &bed{lab: l}
	if err := b.prepare(ctx, o, programs); err != nil {
		return nil, errors.Join(err, b.close(ctx))
	}
	return b, nil
}

func (b *bed) prepare(ctx context.Context, o options, programs rig.Particle) error {
	for _, h := range b.lab.Hosts() {
		s, err := b.open(h.NetNS())
		if err != nil {
			return err
		}
		known := &host{Host: h, space: s}
		b.hosts = append(b.hosts, known)
		if err := errors.Join(known.connect(), s.wireLike("eth0")); err != nil {
			return err
		}
	}
	fmt.Fprintln(os.Stderr, "installing particle and the test image")
	err := b.each(func(h *host) error {
		if err := lab.LoadImage(ctx, h.Host); err != nil {
			return err
		}
		_, err := h.particle(ctx, programs, "install", "--yes")
		return err
	})
	if err != nil {
		return err
	}
	fmt.Fprintln(os.Stderr, "making the hosts a cluster, and a swarm")
	var group errgroup.Group
	group.Go(func() error { return b.joinCluster(ctx, programs) })
	group.Go(func() error { return b.joinSwarm(ctx, o.port) })
	if err := group.Wait(); err != nil {
		return err
	}
	return b.connect(ctx, o)
}

// connect makes the ways.
func (b *bed) connect(ctx context.Context, o options) error {
	for _, connect := range []func(context.Context, options) (way, error){b.underlay, b.plain, b.swarm, b.own} {
		w, err := connect(ctx, o)
		if err == nil {
			err = errors.Join(w.await(ctx), w.comparable())
		}
		if err != nil {
			return &fault.Error{Op: "connect hosts", On: "by " + w.name, Err: err}
		}
		b.ways = append(b.ways, w)
	}
	return nil
}

// each does something on both hosts at once.
func (b *bed) each(do func(*host) error) error {
	var group errgroup.Group
	for _, h := range b.hosts {
		group.Go(func() error { return do(h) })
	}
	return group.Wait()
}

// open opens a namespace, which the bed closes.
func (b *bed) open(path string) (*space, error) {
	s, err := openSpace(path)
	if err == nil {
		b.spaces = append(b.spaces, s)
	}
	return s, err
}

// close takes the lab down, also when ctx has ended.
func (b *bed) close(ctx context.Context) error {
	for _, s := range b.spaces {
		s.close()
	}
	for _, h := range b.hosts {
		h.close()
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Minute)
	defer cancel()
	return b.lab.Down(ctx)
}

// await waits until the way carries a connection. Swarm's hosts tell each other of
// their containers some time after these have started.
func (w way) await(ctx context.Context) error {
	return until(ctx, func() error {
		client, server, err := dial(w)
		if err == nil {
			err = errors.Join(client.Close(), server.Close())
		}
		return err
	})
}

// until repeats try until it succeeds, for a minute at most; then it gives its last error.
func until(ctx context.Context, try func() error) error {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for limit := time.Now().Add(time.Minute); ; {
		err := try()
		if err == nil || time.Now().After(limit) {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// comparable looks whether packets can be as large as by every other way.
func (w way) comparable() error {
	for i, end := range w.ends {
		got, err := end.mtu(w.addrs[1-i])
		if err != nil {
			return err
		}
		if got != mtu && w.name != underlayWay {
			return fmt.Errorf("the MTU is %d, not %d", got, mtu)
		}
	}
	return nil
}
