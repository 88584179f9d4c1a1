package main

import (
	"context"
	"fmt"

	"github.com/particle-net/particle/internal/fault"
)

// plan says what to measure.
type plan struct {
	n, c, rounds int
	variants     []variant
	report, cli  bool
}

func (p plan) check() error {
	const op = "read command line"
	switch {
	case p.n < 1 || p.n > 10000:
		return fault.New(op, "-n", fmt.Sprintf("%d containers", p.n), "give 1 to 10000")
	case p.c < 1 || p.c > 1000:
		return fault.New(op, "-c", fmt.Sprintf("%d at a time", p.c), "give 1 to 1000")
	case p.rounds < 1 || p.rounds > maxRounds:
		return fault.New(op, "-rounds", fmt.Sprintf("%d rounds", p.rounds), fmt.Sprintf("give 1 to %d", maxRounds))
	}
	return nil
}

// order is the order of a round (from 0): each variant comes first, second and so on
// equally often.
func (p plan) order(round int) []variant {
	k := round % len(p.variants)
	return append(append([]variant{}, p.variants[k:]...), p.variants[:k]...)
}

// measure runs all rounds, after a short unmeasured one that makes the engine load
// what it loads once: kernel modules, rule tables, its own and our programs.
func measure(ctx context.Context, b *bed, p plan, show *progress) ([]figures, error) {
	warm := p
	warm.n = min(p.n, p.c)
	for _, v := range p.variants {
		show.begin(0, v, warm.n)
		if _, err := turn(ctx, b, warm, v, 0, show); err != nil {
			return nil, err
		}
	}
	var all []figures
	for i := range p.rounds {
		for place, v := range p.order(i) {
			show.begin(i+1, v, p.n)
			f, err := turn(ctx, b, p, v, i+1, show)
			if err != nil {
				return nil, err
			}
			f.Round, f.Turn = i+1, place+1
			all = append(all, f)
			show.end(f)
		}
	}
	return all, nil
}

// turn runs one variant once, and waits until its aftermath is over.
func turn(ctx context.Context, b *bed, p plan, v variant, number int, show *progress) (figures, error) {
	r := &round{api: b.api, starter: overAPI{b.api}, cpu: cpuMeter{b.host.Root()}, plan: p, variant: v, round: number,
		prefix: fmt.Sprintf("%s-%d", v, number), started: show.count, note: show.note}
	if p.cli {
		r.starter = overCLI{b.host.DockerHost()}
	}
	f, err := r.run(ctx)
	if err != nil {
		return f, err
	}
	return f, settle(ctx)
}
