package main

import (
	"fmt"
	"io"
	"math"
	"slices"
	"text/tabwriter"

	"github.com/particle-net/particle/bench/rig"
)

// report is what one run measured, and where.
type report struct {
	rig.Machine
	Docker  string  `json:"docker"` // the engines' version
	Port    int     `json:"port"`   // of VXLAN that is not particle's
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

func newReport(o options) *report {
	return &report{Machine: rig.Describe(), Port: o.port, Rounds: o.rounds, Seconds: o.length.Seconds()}
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
	fmt.Fprintf(w, "two hosts with Docker %s; VXLAN by port 4789, that of others than particle by %d\n", r.Docker, r.Port)
	fmt.Fprintf(w, "load when started: %s; %d rounds of %g s each\n", r.Load, r.Rounds, r.Seconds)
	fmt.Fprintf(w, "to: how many times as good, the median of the rounds' ratios, and between which it surely is (95%%);\n")
	fmt.Fprintf(w, "with a question mark where that leaves open whether an aim is met\n")
	var seen []quantity
	for _, c := range r.Cells {
		if !slices.Contains(seen, c.Quantity) {
			seen = append(seen, c.Quantity)
			r.table(w, c.Quantity)
		}
	}
}

// aim is what particle is to be, at least, in comparison to another way.
type aim struct {
	against string
	least   float64
}

// aims are in the order of the columns; underlay has none.
func aims() []aim { return []aim{{underlayWay, 0}, {plainWay, 0.95}, {swarmWay, 1}} }

func (r *report) table(w io.Writer, q quantity) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	defer t.Flush()
	fmt.Fprintf(t, "\n%s\tmedian [least..most]", q.Name)
	for _, a := range aims() {
		fmt.Fprintf(t, "\tto %s", a.against)
	}
	fmt.Fprintln(t)
	for _, way := range []string{underlayWay, plainWay, swarmWay, ownWay} {
		c := r.cell(q, way)
		if c == nil {
			continue
		}
		fmt.Fprintf(t, "%s\t%.2f [%.2f..%.2f]", way, rig.Median(c.Values), slices.Min(c.Values), slices.Max(c.Values))
		for _, a := range aims() {
			fmt.Fprintf(t, "\t%s", a.compare(q, c, r.cell(q, a.against)))
		}
		fmt.Fprintln(t)
	}
}

// compare tells how c stands to the other way, and for particle's whether that is
// what is aimed at.
func (a aim) compare(q quantity, c, other *cell) string {
	ratios := better(q, c, other)
	if len(ratios) == 0 || c.Way == a.against {
		return "-"
	}
	middle := rig.Median(ratios)
	least, most := surely(ratios)
	text := fmt.Sprintf("%.3f [%.2f..%.2f]", middle, least, most)
	if c.Way != ownWay || a.least == 0 {
		return text
	}
	verdict := "met"
	if middle < a.least {
		verdict = "MISSED"
	}
	if least < a.least && a.least <= most {
		verdict += "?"
	}
	return fmt.Sprintf("%s aim %.2f: %s", text, a.least, verdict)
}

// surely is between which two of the values, which are in ascending order, the median
// of ever so many would be, with 95%: each is as likely above it as below.
func surely(values []float64) (least, most float64) {
	n := float64(len(values))
	outside := max(0, int((n-1.96*math.Sqrt(n))/2)-1)
	return values[outside], values[len(values)-1-outside]
}

// better is how many times as good c is as other, in each round, in ascending
// order; nothing if one was not measured.
func better(q quantity, c, other *cell) (ratios []float64) {
	if other == nil {
		return nil
	}
	for i := range min(len(c.Values), len(other.Values)) {
		ratio := c.Values[i] / other.Values[i]
		if !q.More {
			ratio = 1 / ratio
		}
		ratios = append(ratios, ratio)
	}
	slices.Sort(ratios)
	return ratios
}
