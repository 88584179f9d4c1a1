package main

import (
	"math"
	"slices"

	"github.com/particle-net/particle/bench/rig"
)

// summary is one variant over all rounds. Times are in seconds.
type summary struct {
	Variant  variant `json:"variant"`
	Started  spread  `json:"started"`
	Reported spread  `json:"reported"` // zero where nothing reports
	Removed  spread  `json:"removed"`
	Network  spread  `json:"networkCreate"`
	CPU      spread  `json:"cpu"`
	P50      float64 `json:"p50"` // of the single containers of all rounds
	P99      float64 `json:"p99"`

	// Ratios to host mode: one per round, then the median. 0 where it has none.
	StartedRatio  spread `json:"startedRatio"`
	ReportedRatio spread `json:"reportedRatio"`
	CPURatio      spread `json:"cpuRatio"`
}

// spread is the middle and the ends of some values.
type spread struct {
	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
}

// spreadOf ignores the order of the values. Of none it is zero.
func spreadOf(values []float64) spread {
	if len(values) == 0 {
		return spread{}
	}
	return spread{Median: rig.Median(values), Min: slices.Min(values), Max: slices.Max(values)}
}

// percentile is the smallest value that p percent of the values do not exceed
// (nearest rank). Of none it is zero.
func percentile(values []float64, p float64) float64 {
	if len(values) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(values))
	rank := int(math.Ceil(p / 100 * float64(len(s))))
	return s[max(rank, 1)-1]
}

// summarise lists the variants in the given order.
func summarise(variants []variant, all []figures) []summary {
	floor := map[int]figures{}
	for _, f := range all {
		if f.Variant == variantHost {
			floor[f.Round] = f
		}
	}
	var list []summary
	for _, v := range variants {
		list = append(list, summariseOne(v, all, floor))
	}
	return list
}

func summariseOne(v variant, all []figures, floor map[int]figures) summary {
	var started, reported, removed, network, cpu, single, startedRatio, reportedRatio, cpuRatio []float64
	for _, f := range all {
		if f.Variant != v {
			continue
		}
		started = append(started, f.Started)
		removed = append(removed, f.Removed)
		network = append(network, f.Network)
		single = append(single, f.Containers...)
		host := floor[f.Round]
		if host.Started > 0 {
			startedRatio = append(startedRatio, f.Started/host.Started)
		}
		cpu = append(cpu, f.CPU)
		if host.CPU > 0 {
			cpuRatio = append(cpuRatio, f.CPU/host.CPU)
		}
		if f.Reported > 0 {
			reported = append(reported, f.Reported)
		}
		if f.Reported > 0 && host.Reported > 0 {
			reportedRatio = append(reportedRatio, f.Reported/host.Reported)
		}
	}
	return summary{
		Variant: v, Started: spreadOf(started), Reported: spreadOf(reported), Removed: spreadOf(removed), Network: spreadOf(network),
		CPU: spreadOf(cpu), P50: percentile(single, 50), P99: percentile(single, 99),
		StartedRatio: spreadOf(startedRatio), ReportedRatio: spreadOf(reportedRatio), CPURatio: spreadOf(cpuRatio),
	}
}
