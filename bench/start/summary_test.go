package main

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestPercentileIsAValueOfTheList(t *testing.T) {
	var hundred []float64
	for i := 100; i >= 1; i-- {
		hundred = append(hundred, float64(i))
	}
	for _, c := range []struct {
		values  []float64
		p, want float64
	}{
		{hundred, 50, 50}, {hundred, 99, 99}, {hundred, 100, 100}, {hundred, 0.1, 1},
		{[]float64{7}, 99, 7}, {[]float64{1, 2, 3}, 50, 2}, {nil, 50, 0},
	} {
		if got := percentile(c.values, c.p); got != c.want {
			t.Errorf("percentile(%d values, %v) = %v, want %v", len(c.values), c.p, got, c.want)
		}
	}
}

// The machine gets slower from round to round. The ratio within each round stays,
// and a ratio of the medians over all rounds would be another one.
func TestRatiosAreTakenWithinARound(t *testing.T) {
	all := []figures{
		{Variant: variantHost, Round: 1, Started: 1, Reported: 2, CPU: 1, Containers: []float64{0.1}},
		{Variant: variantParticle, Round: 1, Started: 1.1, Reported: 2, CPU: 2, Containers: []float64{0.3, 0.5}},
		{Variant: variantParticle, Round: 2, Started: 11, Reported: 10, CPU: 2, Containers: []float64{0.4}},
		{Variant: variantHost, Round: 2, Started: 10, Reported: 10, CPU: 1},
		{Variant: variantHost, Round: 3, Started: 100, Reported: 100, CPU: 1},
		{Variant: variantParticle, Round: 3, Started: 400, Reported: 400, CPU: 2},
	}
	got := summarise([]variant{variantHost, variantParticle}, all)
	if len(got) != 2 || got[0].Variant != variantHost || got[1].Variant != variantParticle {
		t.Fatalf("summaries of %v, want host and particle", got)
	}
	if want := (spread{Median: 1, Min: 1, Max: 1}); got[0].StartedRatio != want {
		t.Errorf("host to host: %+v, want %+v", got[0].StartedRatio, want)
	}
	particle := got[1]
	particle.StartedRatio.Median = float64(int(particle.StartedRatio.Median*1000+0.5)) / 1000
	particle.StartedRatio.Min = float64(int(particle.StartedRatio.Min*1000+0.5)) / 1000
	want := summary{
		Variant:       variantParticle,
		Started:       spread{Median: 11, Min: 1.1, Max: 400},
		Reported:      spread{Median: 10, Min: 2, Max: 400},
		CPU:           spread{Median: 2, Min: 2, Max: 2},
		P50:           0.4,
		P99:           0.5,
		StartedRatio:  spread{Median: 1.1, Min: 1.1, Max: 4},
		ReportedRatio: spread{Median: 1, Min: 1, Max: 4},
		CPURatio:      spread{Median: 2, Min: 2, Max: 2},
	}
	if diff := cmp.Diff(want, particle); diff != "" {
		t.Errorf("summary (-want +got):\n%s", diff)
	}
}
