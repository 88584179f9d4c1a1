package main

import (
	"fmt"
	"io"
	"maps"
	"runtime/debug"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/particle-net/particle/bench/rig"
)

// report is what one run measured, and where.
type report struct {
	rig.Machine
	Libraries map[string]string `json:"libraries"`
	Rounds    int               `json:"rounds"`
	Cells     []cell            `json:"cells"`
}

// cell is a row at one number of endpoints.
type cell struct {
	Row       string    `json:"row"`
	Endpoints int       `json:"endpoints"`
	Times     []float64 `json:"milliseconds"` // in the order measured
}

func newReport(p plan) *report {
	r := &report{Machine: rig.Describe(), Rounds: p.rounds, Libraries: map[string]string{}}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, dep := range info.Deps {
			if strings.HasPrefix(dep.Path, "github.com/vishvananda/") {
				r.Libraries[dep.Path] = dep.Version
			}
		}
	}
	return r
}

func (r *report) add(row string, n int, took time.Duration) {
	i := slices.IndexFunc(r.Cells, func(c cell) bool { return c.Row == row && c.Endpoints == n })
	if i < 0 {
		i = len(r.Cells)
		r.Cells = append(r.Cells, cell{Row: row, Endpoints: n})
	}
	r.Cells[i].Times = append(r.Cells[i].Times, milliseconds(took))
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// print writes the times, and then each row's time as a multiple of ours.
func (r *report) print(w io.Writer) {
	r.Machine.Print(w)
	for _, path := range slices.Sorted(maps.Keys(r.Libraries)) {
		fmt.Fprintln(w, path, r.Libraries[path])
	}
	fmt.Fprintf(w, "load when started: %s; %d rounds\n\n", r.Load, r.Rounds)
	fmt.Fprintln(w, "Time to connect N endpoints, ms: median [shortest..longest]")
	r.table(w, func(c cell) string {
		return fmt.Sprintf("%.2f [%.2f..%.2f]", rig.Median(c.Times), slices.Min(c.Times), slices.Max(c.Times))
	})
	fmt.Fprintf(w, "\nThe same, in multiples of %q\n", ownRow)
	r.table(w, func(c cell) string {
		own, ok := r.cell(ownRow, c.Endpoints)
		if !ok {
			return ""
		}
		return fmt.Sprintf("%.3g", rig.Median(c.Times)/rig.Median(own.Times))
	})
}

func (r *report) table(w io.Writer, text func(cell) string) {
	var names []string
	var sizes []int
	for _, c := range r.Cells {
		if !slices.Contains(names, c.Row) {
			names = append(names, c.Row)
		}
		if !slices.Contains(sizes, c.Endpoints) {
			sizes = append(sizes, c.Endpoints)
		}
	}
	slices.Sort(sizes)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	defer t.Flush()
	for _, n := range sizes {
		fmt.Fprintf(t, "\tN=%d", n)
	}
	fmt.Fprintln(t)
	for _, name := range names {
		fmt.Fprint(t, name)
		for _, n := range sizes {
			value := "-"
			if c, ok := r.cell(name, n); ok {
				value = text(c)
			}
			fmt.Fprint(t, "\t", value)
		}
		fmt.Fprintln(t)
	}
}

func (r *report) cell(row string, n int) (cell, bool) {
	i := slices.IndexFunc(r.Cells, func(c cell) bool { return c.Row == row && c.Endpoints == n })
	if i < 0 {
		return cell{}, false
	}
	return r.Cells[i], true
}
