package main

import (
	"io"
	"strings"
	"testing"
)

func TestAimsAreMetByTheMedianOfRatios(t *testing.T) {
	more, less := quantity{"speed", true}, quantity{"time", false}
	r := newReport(options{rounds: 3})
	for round, v := range []float64{1, 10, 100} { // the machine's mood
		for _, q := range []quantity{more, less} {
			r.add(q, plainWay, v)
			r.add(q, swarmWay, v/2)
			r.add(q, ownWay, v*[]float64{2, 2, 0.8}[round])
		}
	}
	var text strings.Builder
	r.print(&text)
	table := strings.Join(strings.Fields(text.String()), " ")
	for _, want := range []string{
		"particle 20.00 [2.00..80.00] - 2.000 [0.80..2.00] aim 0.95: met? 4.000 [1.60..4.00] aim 1.00: met ",
		"particle 20.00 [2.00..80.00] - 0.500 [0.50..1.25] aim 0.95: MISSED? 0.250 [0.25..0.62] aim 1.00: MISSED",
		"plain VXLAN 10.00 [1.00..100.00] - - 2.000 [2.00..2.00]",
	} {
		if !strings.Contains(table, want) {
			t.Errorf("the table lacks %q:\n%s", want, text.String())
		}
	}
}

// By the binomial distribution 95.7% of the medians lie between the 7th and the 18th of
// 24, and 93.8% between the first and the last of 5.
func TestWhereTheMedianSurelyIs(t *testing.T) {
	for n, want := range map[int][2]float64{1: {1, 1}, 5: {1, 5}, 24: {7, 18}} {
		var values []float64
		for i := range n {
			values = append(values, float64(i+1))
		}
		if least, most := surely(values); least != want[0] || most != want[1] {
			t.Errorf("of %d: %v to %v, want %v", n, least, most, want)
		}
	}
}

func TestOptionsThatMeasureNothing(t *testing.T) {
	for _, args := range []string{"-rounds 0", "-seconds 0", "-port 80", "more", "-rounds many"} {
		if _, err := parseFlags(strings.Fields(args), io.Discard); err == nil {
			t.Errorf("%s is taken", args)
		}
	}
}
