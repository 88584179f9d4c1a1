package main

import (
	"fmt"
	"io"
	"text/tabwriter"
	"time"
)

// result is everything a run found; -json writes it.
type result struct {
	When    time.Time   `json:"when"`
	Command string      `json:"command"`
	Engine  engineInfo  `json:"engine"`
	Machine machineInfo `json:"machine"`
	N       int         `json:"n"`
	C       int         `json:"c"`
	Rounds  int         `json:"rounds"`
	CLI     bool        `json:"cli"`
	Report  bool        `json:"report"`
	Summary []summary   `json:"summary"`
	Figures []figures   `json:"figures"`
}

// print writes the table for people.
func (r result) print(out io.Writer) error {
	fmt.Fprintf(out, "\n%d containers, %d at a time, %s\n\n", r.N, r.C, rounds(r.Rounds))
	w := tabwriter.NewWriter(out, 0, 8, 3, ' ', 0)
	fmt.Fprint(w, "NETWORK\tALL STARTED\tRATIO\tREPORTED\tONE p50\tp99\tCPU\tRATIO\tREMOVED\tNETWORK\n",
		"\ts, median [min..max]\tto host\ts\tms\tms\tms each\tto host\ts\tmade, ms\n")
	for _, s := range r.Summary {
		reported, made := "-", "-"
		if r.Report && s.Variant.reports() {
			reported = fmt.Sprintf("%.2f", s.Reported.Median)
		}
		if !s.Variant.ready() {
			made = fmt.Sprintf("%.0f", 1e3*s.Network.Median)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%.0f\t%.0f\t%.0f\t%.2f\t%.2f\t%s\n", s.Variant, s.Started, s.StartedRatio, reported,
			1e3*s.P50, 1e3*s.P99, 1e3*s.CPU.Median/float64(r.N), s.CPURatio.Median, s.Removed.Median, made)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(out, "\nengine: Docker %s (%s), containerd %s, runc %s\nmachine: %s, load %.1f before\n",
		r.Engine.Version, r.Engine.Kind, r.Engine.Containerd, r.Engine.Runc, r.Machine, r.Machine.Load)
	return err
}

func rounds(n int) string {
	if n == 1 {
		return "1 round"
	}
	return fmt.Sprintf("%d rounds, the networks taking turns", n)
}

// String is for the table.
func (s spread) String() string {
	return fmt.Sprintf("%.2f [%.2f..%.2f]", s.Median, s.Min, s.Max)
}
