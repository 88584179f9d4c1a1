package integration

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/particle-net/particle/internal/lab"
)

const (
	burstSize   = 100 // containers on each host
	burstWidth  = 8   // started at a time
	burstRounds = 3
)

// BenchmarkClusterBurst starts containers on three hosts at once, on a network
// that they share and on one that each has for itself, in turns. It reports the
// time of the former as a ratio to the latter, and what the store was asked for.
func BenchmarkClusterBurst(b *testing.B) {
	for _, engine := range engines() {
		b.Run(engine, func(b *testing.B) {
			first := benchCluster(b, engine, func(b *bed) clusterStore { return ownStore{b} })
			log, err := ownStore{first}.ctl().logWrites(b.Context())
			if err != nil {
				b.Fatal(err)
			}
			for range b.N {
				measureBursts(b, first, log)
			}
		})
	}
}

// benchCluster is three hosts with a network that they share, named shared, and one
// that each has for itself, named alone.
func benchCluster(b *testing.B, engine string, store func(*bed) clusterStore) *bed {
	b.Helper()
	ctx := b.Context()
	first, err := newBed(ctx, lab.Options{Engine: engine, Hosts: 3}, false)
	if first != nil {
		b.Cleanup(func() {
			if err := first.close(); err != nil {
				b.Error(err)
			}
		})
	}
	if err == nil {
		err = store(first).join(ctx, first.all())
	}
	if err == nil {
		err = first.burstNetworks(ctx)
	}
	if err != nil {
		b.Fatal(err)
	}
	return first
}

func (b *bed) burstNetworks(ctx context.Context) error {
	const driver = "particle"
	if err := b.shares(ctx, "shared", "--subnet", "10.77.0.0/16"); err != nil {
		return err
	}
	return b.each(func(b *bed) error {
		_, err := b.docker(ctx, "network", "create", "-d", driver, "--ipam-driver", driver, "--subnet", "10.77.0.0/16",
			"-o", "particle.scope=local", "alone")
		return err
	})
}

func measureBursts(b *testing.B, first *bed, log *writeLog) {
	ctx := b.Context()
	var ratios []float64
	writes := 0
	for round := range burstRounds + 1 {
		took := map[string]time.Duration{}
		order := []string{"alone", "shared"}
		if round%2 == 1 {
			slices.Reverse(order)
		}
		for _, network := range order {
			before, err := log.written(ctx)
			if err == nil {
				took[network], err = first.burstEverywhere(ctx, network)
			}
			after, err2 := log.written(ctx)
			if err := cmp.Or(err, err2); err != nil {
				b.Fatal(err)
			}
			if network == "shared" {
				writes = max(writes, len(after)-len(before))
			}
		}
		b.Logf("round %d: alone %s, shared %s", round, took["alone"].Round(time.Millisecond), took["shared"].Round(time.Millisecond))
		if round > 0 { // the first warms up
			ratios = append(ratios, took["shared"].Seconds()/took["alone"].Seconds())
		}
	}
	slices.Sort(ratios)
	b.ReportMetric(ratios[len(ratios)/2], "shared/alone")
	b.ReportMetric(float64(writes), "most-store-writes/300-containers")
	b.ReportMetric(0, "ns/op")
}

// burstEverywhere makes containers on every host, starts them all, and removes
// them. Only the start is timed: from the first on any host to the last on all.
func (b *bed) burstEverywhere(ctx context.Context, network string) (time.Duration, error) {
	err := b.each(func(b *bed) error {
		for i := range burstSize {
			if _, err := b.docker(ctx, "create", "--name", burstName(i), "--network", network, lab.TestImage, "probe", "sleep"); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	began := time.Now()
	err = b.each(func(b *bed) error { return b.startBurst(ctx) })
	took := time.Since(began)
	if err != nil {
		return 0, err
	}
	return took, b.each(func(b *bed) error { return b.clear(ctx) })
}

func burstName(i int) string { return fmt.Sprintf("burst-%d", i) }

// startBurst starts a host's containers with a few docker commands side by side,
// so that the commands themselves cost little.
func (b *bed) startBurst(ctx context.Context) error {
	var group errgroup.Group
	for w := range burstWidth {
		args := []string{"start"}
		for i := w; i < burstSize; i += burstWidth {
			args = append(args, burstName(i))
		}
		group.Go(func() error {
			_, err := b.docker(ctx, args...)
			return err
		})
	}
	return group.Wait()
}
