package integration

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/particle-net/particle/internal/lab"
)

// TestBurstWrites starts and ends many containers on three hosts at once. None of them
// costs the store a write: each block that a host claims does, and nothing else.
func TestBurstWrites(t *testing.T) {
	firstEngine(t, func(t *testing.T, engine string) {
		first := newTestBed(t, lab.Options{Engine: engine, Hosts: 3})
		if err := first.cluster(t.Context()); err != nil {
			t.Fatal(err)
		}
		for _, b := range []burstOf{
			{network: "wide", bits: 24, containers: 10},
			{network: "wide", bits: 24, containers: 100},
			{network: "narrow", bits: 28, containers: 40, claims: 2 * 3}, // fifteen addresses to a block
		} {
			if err := b.costs(t, first); err != nil {
				t.Errorf("%+v: %v", b, err)
			}
		}
	})
}

// burstOf is so many containers on each host at once.
type burstOf struct {
	network    string
	bits       int // of the network's blocks
	containers int
	claims     int64 // of blocks, at least; 0: none
}

// costs says whether the burst costs the store what it may.
func (o burstOf) costs(t *testing.T, first *bed) error {
	t.Helper()
	ctx := t.Context()
	if _, err := first.network(ctx, o.network); err != nil { // the first burst on it
		if err := first.shares(ctx, o.network, "--subnet", "10.77.0.0/16", "-o", fmt.Sprintf("particle.block=%d", o.bits)); err != nil {
			return err
		}
	}
	had, err := first.blocks(ctx, o.network)
	if err != nil {
		return err
	}
	before, err := first.revision(ctx)
	if err != nil {
		return err
	}
	if err := first.each(func(b *bed) error { return b.burst(ctx, o.containers, o.network) }); err != nil {
		return err
	}
	claimed, writes, err := o.paid(ctx, first, had, before)
	t.Logf("%+v: %d blocks claimed, %d writes", o, claimed, writes)
	if err != nil || claimed < o.claims || o.claims == 0 && claimed != 0 {
		return errors.Join(err, fmt.Errorf("%d blocks claimed", claimed))
	}
	if err := first.each(func(b *bed) error { return b.clear(ctx) }); err != nil {
		return err
	}
	_, _, err = o.paid(ctx, first, had, before)
	return err
}

// paid waits until there was one write for each block that was claimed. One may be being
// claimed.
func (o burstOf) paid(ctx context.Context, first *bed, had, before int64) (claimed, writes int64, err error) {
	err = until(ctx, func() error {
		has, err := first.blocks(ctx, o.network)
		now, err2 := first.revision(ctx)
		claimed, writes = has-had, now-before
		if err = errors.Join(err, err2); err == nil && claimed != writes {
			err = fmt.Errorf("%d blocks claimed, and %d writes", claimed, writes)
		}
		return err
	})
	return claimed, writes, err
}

// blocks counts those that all hosts have of a network.
func (b *bed) blocks(ctx context.Context, network string) (all int64, err error) {
	for _, b := range b.all() {
		n, err := b.network(ctx, network)
		if err != nil {
			return 0, err
		}
		for _, pool := range n.Pools {
			all += int64(len(pool.Blocks))
		}
	}
	return all, nil
}
