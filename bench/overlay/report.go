package main

import (
	"fmt"
	"io"
	"slices"
	"text/tabwriter"

	"github.com/particle-net/particle/bench/rig"
)

// report is what one run measured, and where.
type report struct {
	rig.Machine
	Rounds  int     `json:"rounds"`
	Seconds float64 `json:"seconds"` // that each measurement took
	Cells   []cell  `json:"cells"`
}

// cell is a quantity by one way.
type cell struct {
	Quantity quantity  `json:"quantity"`
	Way      string    `json:"way"`
	Values   []float64 `json:"values"` // of the rounds, in their order
}

func newReport(p plan) *report {
	r := &report{Machine: rig.Describe(), Rounds: p.rounds, Seconds: p.length.Seconds()}
	return r
}

func (r *report) cell(q quantity, way string) *cell {
	i := slices.IndexFunc(r.Cells, func(c cell) bool { return c.Quantity == q && c.Way == way })
	if i < 0 {
		return nil
	}
	return &r.Cells[i]
}

func (r *report) add(q quantity, way string, v float64) {
	c := r.cell(q, way)
	if c == nil {
		r.Cells = append(r.Cells, cell{Quantity: q, Way: way})
		c = &r.Cells[len(r.Cells)-1]
	}
	c.Values = append(c.Values, v)
}

// print writes a table for each quantity.
func (r *report) print(w io.Writer) {
	r.Machine.Print(w)
	fmt.Fprintf(w, "load when started: %s; %d rounds of %g s each\n", r.Load, r.Rounds, r.Seconds)
	fmt.Fprintf(w, "better: how many times as good, by the medians of the rounds' ratios\n")
	var seen []quantity
	for _, c := range r.Cells {
		if !slices.Contains(seen, c.Quantity) {
			seen = append(seen, c.Quantity)
			r.table(w, c.Quantity)
		}
	}
}

func (r *report) table(w io.Writer, q quantity) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	defer t.Flush()
	fmt.Fprintf(t, "\n%s\tmedian [least..most]\tbetter than %s\tthan %s\n", q.Name, plainWay, swarmWay)
	for _, way := range []string{underlayWay, plainWay, swarmWay, ownWay, guardedWay} {
		c := r.cell(q, way)
		if c == nil {
			continue
		}
		fmt.Fprintf(t, "%s\t%.2f [%.2f..%.2f]", way, rig.Median(c.Values), slices.Min(c.Values), slices.Max(c.Values))
		for _, other := range []string{plainWay, swarmWay} {
			fmt.Fprintf(t, "\t%.2f", better(q, c, r.cell(q, other)))
		}
		fmt.Fprintln(t)
	}
}

// better is how many times as good c is as other; 0 if that was not measured.
func better(q quantity, c, other *cell) float64 {
	if other == nil {
		return 0
	}
	var ratios []float64
	for i := range min(len(c.Values), len(other.Values)) {
		ratio := c.Values[i] / other.Values[i]
		if !q.More {
			ratio = 1 / ratio
		}
		ratios = append(ratios, ratio)
	}
	return rig.Median(ratios)
}
