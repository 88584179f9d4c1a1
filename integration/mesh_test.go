package integration

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sync/errgroup"

	"github.com/particle-net/particle/internal/lab"
	"github.com/particle-net/particle/internal/runtimeapi"
)

// station is a container that answers by TCP and UDP on all its addresses, and reaches
// others in all these ways: probe station, probe reach.
type station struct {
	bed       *bed
	network   string
	name      string // of the container
	addresses []netip.Addr
}

// stationName is the container's name, and with the host's what it answers with.
func stationName(network string) string { return "mesh-" + network }

// targets are how reach is told to find the station, under a name: mtu is that of the
// network between them, or 0.
func (s station) targets(name string, mtu int) (all []string) {
	for _, a := range s.addresses {
		to := name + "=" + netip.AddrPortFrom(a, 80).String()
		if mtu > 0 {
			to += fmt.Sprintf(",%d", mtu)
		}
		all = append(all, to)
	}
	return all
}

func (s station) answer() string { return s.name + "-" + s.bed.host.Name() }

// cmdMesh says whether all hosts reach all others on a network: mesh NETWORK [OTHER].
// Each host has one container there, which stays. All reach all, and each itself, over
// all families that the network has: much by TCP, and by UDP what fits the MTU, unbroken.
// The answers tell them their own addresses.
//
// Of two networks of the same subnets, the second's containers have addresses outside
// their hosts' blocks. One of the first has one of these addresses, too, and all reach
// their own network's; and what only the first has, refuses the second's.
func cmdMesh(ts *testscript.TestScript, neg bool, networks []string) {
	if neg || len(networks) == 0 || len(networks) > 2 {
		ts.Fatalf("usage: mesh NETWORK [OTHER]")
	}
	ts.Check(sessionOf(ts).bed.mesh(context.Background(), networks))
}

func (b *bed) mesh(ctx context.Context, networks []string) error {
	first, err := b.stations(ctx, networks[0], nil)
	if err != nil {
		return err
	}
	var apart []string
	for _, s := range first {
		apart = append(apart, s.targets("nobody", 0)...)
	}
	if len(networks) == 1 {
		return meet(ctx, first, nil)
	}
	second, err := b.stations(ctx, networks[1], claimed)
	if err != nil {
		return err
	}
	n, err := b.network(ctx, networks[0])
	if err != nil {
		return err
	}
	// The second's first host has its address.
	twin, err := first[1].bed.station(ctx, networks[0], "mesh-twin", claimed(n, 1))
	if err != nil {
		return err
	}
	var both errgroup.Group
	both.Go(func() error { return meet(ctx, append(first, twin), nil) })
	both.Go(func() error { return meet(ctx, second, apart) })
	return both.Wait()
}

// meet has all stations reach all, and find nobody at the targets that are apart.
func meet(ctx context.Context, all []station, apart []string) error {
	n, err := all[0].bed.network(ctx, all[0].network)
	if err != nil {
		return err
	}
	var reaching errgroup.Group
	for _, s := range all {
		args := append([]string{"exec", s.name, "probe", "reach"}, apart...)
		for _, other := range all {
			mtu := n.MTU
			if other.bed.host.Name() == s.bed.host.Name() {
				mtu = 0
			}
			args = append(args, other.targets(other.answer(), mtu)...)
		}
		reaching.Go(func() error {
			return until(ctx, func() error {
				_, err := s.bed.docker(ctx, args...)
				return err
			})
		})
	}
	return reaching.Wait()
}

// stations are those of a network, one on each host in order. args has docker run take
// the addresses of the host with the number.
func (b *bed) stations(ctx context.Context, network string, args func(n runtimeapi.NetworkStatus, host int) []string) ([]station, error) {
	beds := b.all()
	all := make([]station, len(beds))
	var starting errgroup.Group
	for i, b := range beds {
		starting.Go(func() error {
			var n runtimeapi.NetworkStatus
			err := until(ctx, func() (err error) {
				n, err = b.network(ctx, network)
				return err
			})
			var options []string
			if args != nil {
				options = args(n, i+1)
			}
			if err == nil {
				all[i], err = b.station(ctx, network, stationName(network), options)
			}
			return err
		})
	}
	return all, starting.Wait()
}

// station is a container on the host, which is started if it is not there.
func (b *bed) station(ctx context.Context, network, name string, args []string) (station, error) {
	s := station{bed: b, network: network, name: name}
	if out, err := b.docker(ctx, "inspect", "-f", "{{.State.Running}}", name); err != nil || out != "true" {
		args = append([]string{"run", "-d", "--name", name, "--network", network}, args...)
		if _, err := b.docker(ctx, append(args, lab.TestImage, "probe", "station", "-name", s.answer())...); err != nil {
			return s, err
		}
	}
	v4, v6, err := b.addresses(ctx, name)
	if err != nil {
		return s, err
	}
	for _, text := range []string{v4, v6} {
		// What the docker command prints of no address is no address.
		if a, err := netip.ParseAddr(text); err == nil {
			s.addresses = append(s.addresses, a)
		}
	}
	if len(s.addresses) == 0 {
		return s, fmt.Errorf("%s has no address", name)
	}
	return s, nil
}

// claimed asks for the addresses of a network that are the host's with the number when
// it claims them by name: far from all blocks.
func claimed(n runtimeapi.NetworkStatus, host int) (args []string) {
	for _, pool := range n.Pools {
		option, raw := "--ip", pool.Subnet.Addr().AsSlice()
		raw[len(raw)-2] = 200 // the block of 256 addresses
		if pool.Subnet.Addr().Is6() {
			option, raw[len(raw)-2], raw[len(raw)-3] = "--ip6", 0, 200 // of 65,536
		}
		raw[len(raw)-1] = byte(host)
		a, _ := netip.AddrFromSlice(raw)
		args = append(args, option, a.String())
	}
	return args
}
