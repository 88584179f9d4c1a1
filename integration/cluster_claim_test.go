package integration

import (
	"bufio"
	"context"
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/particle-net/particle/internal/hostpath"
	"github.com/particle-net/particle/internal/runtimeapi"
)

// BenchmarkClaimToRoute has one host claim address after address outside its
// blocks, and reports how long it takes until another host's kernel has the route:
// from Docker's request, so the claim itself is in it.
func BenchmarkClaimToRoute(b *testing.B) {
	const claims = 200
	for _, engine := range engines() {
		b.Run(engine, func(b *testing.B) {
			first := benchCluster(b, engine)
			for range b.N {
				took, err := first.claimsToRoutes(b.Context(), claims)
				if err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(milliseconds(took[len(took)/2]), "p50-ms")
				b.ReportMetric(milliseconds(took[len(took)*99/100]), "p99-ms")
				b.ReportMetric(0, "ns/op")
			}
		})
	}
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// claimsToRoutes gives the times of n claims, in ascending order.
func (b *bed) claimsToRoutes(ctx context.Context, n int) ([]time.Duration, error) {
	other, err := b.on("h2")
	if err != nil {
		return nil, err
	}
	here, err := b.network(ctx, "shared")
	if err != nil {
		return nil, err
	}
	there, err := other.network(ctx, "shared")
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	routes, err := other.watchRoutes(ctx, there)
	if err != nil {
		return nil, err
	}
	docker := newCaller(b)
	var took []time.Duration
	for i := 0; len(took) < n; i++ {
		// The last block of the range: nobody claims that one.
		a := netip.AddrFrom4([4]byte{10, 77, 255, byte(1 + i%250)})
		ask := object{"PoolID": here.Pools[0].ID, "Address": a.String()}
		began := time.Now()
		if err := docker.call(ctx, "IpamDriver.RequestAddress", ask, nil); err != nil {
			return nil, err
		}
		at, err := arrival(ctx, routes, a)
		switch {
		case err == nil:
			took = append(took, at.Sub(began))
		case len(took) > 0 || i == 10: // before, ip may not have listened yet
			return nil, err
		}
		if err := docker.call(ctx, "IpamDriver.ReleaseAddress", ask, nil); err != nil {
			return nil, err
		}
	}
	slices.Sort(took)
	return took, nil
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

// arrival waits for the route to an address.
func arrival(ctx context.Context, routes <-chan route, a netip.Addr) (time.Time, error) {
	const limit = 5 * time.Second
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		select {
		case r, open := <-routes:
			if !open {
				return time.Time{}, fmt.Errorf("routes are not told any more")
			}
			if strings.HasPrefix(r.line, a.String()+" ") {
				return r.at, nil
			}
		case <-ctx.Done():
			return time.Time{}, fmt.Errorf("no route to %s within %s", a, limit)
		}
	}
}
