package main

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"time"

	"github.com/particle-net/particle/bench/rig"
)

// row is one way to connect endpoints.
type row struct {
	Name    string
	limit   int // largest number of endpoints to measure
	measure func(n int) (time.Duration, error)
}

// names of rows that the report refers to
const (
	movedRow = "per container, moved (paper's baseline)"
	bestRow  = "per container, in place (best of today)"
	ownRow   = "particle"
)

func rows(l limits) []row {
	return []row{
		{movedRow, l.moved, baseline(true, each((*host).connectMoved))},
		{"per container, one end moved (Docker's bridge)", l.moved, baseline(true, each((*host).connectBridged))},
		{bestRow, l.inPlace, baseline(false, each((*host).connectInPlace))},
		{"shared, moved (Particle as published)", l.published, baseline(true, (*host).connectPublished)},
		{ownRow, maxEndpoints, particle{}.measure},
		{"particle, namespace ready", maxEndpoints, particle{ready: true}.measure},
		{"particle, a namespace and a branch each", l.branches, particle{ready: true, branch: true}.measure},
		{"particle, ready, with sandbox keys", maxEndpoints, particle{ready: true, expose: true}.measure},
	}
}

// baseline measures connect on a host with a tunnel namespace.
func baseline(ipv6 bool, connect func(h *host, n int) error) func(n int) (time.Duration, error) {
	return func(n int) (time.Duration, error) {
		h, err := newHost(ipv6)
		if h != nil {
			defer h.close()
		}
		if err != nil {
			return 0, fmt.Errorf("prepare host: %w", err)
		}
		start := time.Now()
		if err := connect(h, n); err != nil {
			return 0, err
		}
		took := time.Since(start)
		return took, usable(n - 1) // the thread is in the last container's namespace
	}
}

func each(connect func(h *host, i int) error) func(h *host, n int) error {
	return func(h *host, n int) error {
		for i := range n {
			if err := connect(h, i); err != nil {
				return fmt.Errorf("container %d: %w", i, err)
			}
		}
		return nil
	}
}

// measure runs the plan and reports. What was measured before an error is
// reported too.
func measure(p plan) error {
	report := newReport(p)
	err := report.fill(p)
	report.print(os.Stdout)
	if p.json != "" {
		err = errors.Join(err, rig.Save(p.json, report))
	}
	return err
}

func (r *report) fill(p plan) error {
	for round := range p.rounds {
		for _, n := range p.sizes {
			for _, way := range rows(p.limits) {
				if n > way.limit {
					continue
				}
				runtime.GC() // not while measuring
				var took time.Duration
				err := rig.OnThread(func() (err error) {
					took, err = way.measure(n)
					return err
				})
				err = errors.Join(err, settled())
				if err != nil {
					return fmt.Errorf("%s, %d endpoints, round %d: %w", way.Name, n, round+1, err)
				}
				r.add(way.Name, n, took)
				fmt.Fprintf(os.Stderr, "round %d/%d  n=%-6d %-42s %10.3f ms\n", round+1, p.rounds, n, way.Name, milliseconds(took))
			}
		}
	}
	return nil
}
