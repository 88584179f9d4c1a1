package rig

import (
	"encoding/json"
	"os"
	"slices"
)

// Median is the middle of the values, or the mean of the two in the middle. There
// must be one at least.
func Median(values []float64) float64 {
	s := slices.Sorted(slices.Values(values))
	k := len(s) / 2
	if len(s)%2 == 1 {
		return s[k]
	}
	return (s[k-1] + s[k]) / 2
}

// Save writes a report as JSON.
func Save(path string, report any) error {
	text, err := json.MarshalIndent(report, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(text, '\n'), 0o644)
}
