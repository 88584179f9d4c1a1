package integration

import (
	"bufio"
	"context"
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/particle-net/particle/internal/hostpath"
	"github.com/particle-net/particle/internal/lab"
	"github.com/particle-net/particle/internal/runtimeapi"
)

// BenchmarkClaimToRoute has one host claim address after address outside its blocks, and
// block after block, and reports how long it takes until the kernel of each other host has
// the route: from Docker's request, so the claim itself is in it. The store is the first
// host's, or an etcd beside the hosts.
func BenchmarkClaimToRoute(b *testing.B) {
	const count = 200
	for _, engine := range engines() {
		for name, store := range map[string]func(*bed) clusterStore{
			"own":   func(b *bed) clusterStore { return ownStore{b} },
			"other": func(on *bed) clusterStore { return newOtherStore(b, on.lab, lab.EtcdCurrent) },
		} {
			b.Run(engine+"/"+name, func(b *testing.B) {
				first := benchCluster(b, engine, store)
				if err := first.shares(b.Context(), "blocks", "--subnet", "10.78.0.0/16", "-o", "particle.block=30"); err != nil {
					b.Fatal(err)
				}
				for what, c := range map[string]claims{"address": eachAddress, "block": eachBlock} {
					b.Run(what, func(b *testing.B) {
						for range b.N {
							took, err := first.claimsToRoutes(b.Context(), count, c)
							if err != nil {
								b.Fatal(err)
							}
							b.ReportMetric(milliseconds(took[len(took)/2]), "p50-ms")
							b.ReportMetric(milliseconds(took[len(took)*99/100]), "p99-ms")
							b.ReportMetric(0, "ns/op")
						}
					})
				}
			})
		}
	}
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// claims are what one request for an address after the other has a host claim.
type claims struct {
	network string
	// next says which address to ask for, if not any, and how the line of the route begins
	// that comes of it.
	next func(i int) (address, route string)
	// left is how many addresses the host has to give just before; 0: any number.
	left int
}

// eachAddress asks for one that is in nobody's block: of the last of the range, which
// nobody claims.
var eachAddress = claims{"shared", func(i int) (string, string) {
	a := netip.AddrFrom4([4]byte{10, 77, 255, byte(1 + i%250)}).String()
	return a, a + " "
}, 0}

// eachBlock asks for any address, of a network whose blocks have three to give: the next
// is claimed when one is left.
var eachBlock = claims{"blocks", func(int) (string, string) { return "", "10.78." }, 2}

// claimsToRoutes gives the times of n claims, in ascending order.
func (b *bed) claimsToRoutes(ctx context.Context, n int, c claims) ([]time.Duration, error) {
	here, err := b.network(ctx, c.network)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var routes []<-chan route
	for _, other := range b.all()[1:] {
		there, err := other.network(ctx, c.network)
		if err != nil {
			return nil, err
		}
		told, err := other.watchRoutes(ctx, there)
		if err != nil {
			return nil, err
		}
		routes = append(routes, told)
	}
	docker := newCaller(b)
	var took []time.Duration
	for i := 0; len(took) < n; i++ {
		if err := b.leaves(ctx, docker, c); err != nil {
			return nil, err
		}
		address, route := c.next(i)
		ask := object{"PoolID": here.Pools[0].ID, "Address": address}
		began := time.Now()
		if err := docker.call(ctx, "IpamDriver.RequestAddress", ask, nil); err != nil {
			return nil, err
		}
		at, err := arrival(ctx, routes, route)
		switch {
		case err == nil:
			took = append(took, at.Sub(began))
		case len(took) > 0 || i == 10: // before, ip may not have listened yet
			return nil, err
		}
		if address == "" {
			continue // it would be given out again, in place of a new one
		}
		if err := docker.call(ctx, "IpamDriver.ReleaseAddress", ask, nil); err != nil {
			return nil, err
		}
	}
	slices.Sort(took)
	return took, nil
}

// leaves uses up addresses until so many are left. The block that was claimed last is the
// host's own to give from a moment after it is the others' to reach.
func (b *bed) leaves(ctx context.Context, docker *caller, c claims) error {
	if c.left == 0 {
		return nil
	}
	return until(ctx, func() error {
		for {
			n, err := b.network(ctx, c.network)
			if err != nil {
				return err
			}
			left := 0
			for _, block := range n.Pools[0].Blocks {
				free, err := strconv.Atoi(block.Free)
				if err != nil {
					return err
				}
				left += free
			}
			if left == c.left {
				return nil
			}
			if left < c.left {
				return fmt.Errorf("%d addresses left, want %d", left, c.left)
			}
			if err := docker.call(ctx, "IpamDriver.RequestAddress", object{"PoolID": n.Pools[0].ID}, nil); err != nil {
				return err
			}
		}
	})
}

func (b *bed) network(ctx context.Context, name string) (runtimeapi.NetworkStatus, error) {
	s, err := b.status(ctx)
	if err != nil {
		return runtimeapi.NetworkStatus{}, err
	}
	i := slices.IndexFunc(s.Networks, func(n runtimeapi.NetworkStatus) bool { return n.Name == name })
	if i < 0 {
		return runtimeapi.NetworkStatus{}, fmt.Errorf("%s has no network %s", b.host.Name(), name)
	}
	return s.Networks[i], nil
}

// route is one that the kernel has told of.
type route struct {
	line string
	at   time.Time
}

// watchRoutes follows the routes of a network's namespace until ctx ends.
func (b *bed) watchRoutes(ctx context.Context, n runtimeapi.NetworkStatus) (<-chan route, error) {
	namespace := b.host.Root() + hostpath.NamespaceDir + "/" + string(n.ID)
	cmd := exec.CommandContext(ctx, "nsenter", "--net="+namespace, "ip", "monitor", "route")
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	routes := make(chan route, 1024)
	lines := bufio.NewScanner(out)
	go func() {
		defer close(routes)
		defer func() { _ = cmd.Wait() }() // it was killed
		for lines.Scan() {
			routes <- route{lines.Text(), time.Now()}
		}
	}()
	return routes, nil
}

// arrival waits until each host has a route whose line begins so.
func arrival(ctx context.Context, all []<-chan route, begins string) (last time.Time, err error) {
	const limit = 5 * time.Second
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("no route to %s within %s", begins, limit))
	defer cancel()
	for _, routes := range all {
		at, err := arrivalAt(ctx, routes, begins)
		if err != nil {
			return last, err
		}
		if at.After(last) {
			last = at
		}
	}
	return last, nil
}

func arrivalAt(ctx context.Context, routes <-chan route, begins string) (time.Time, error) {
	for {
		select {
		case r, open := <-routes:
			if !open {
				return time.Time{}, fmt.Errorf("routes are not told any more")
			}
			if strings.HasPrefix(r.line, begins) {
				return r.at, nil
			}
		case <-ctx.Done():
			return time.Time{}, context.Cause(ctx)
		}
	}
}
