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
			r.add(q, ownWay, v*[]float64{2, 2, 8}[round])
		}
	}
	var text strings.Builder
	r.print(&text)
	table := strings.Join(strings.Fields(text.String()), " ")
	for _, want := range []string{
		"particle 20.00 [2.00..800.00] - 2.000 [2.00..8.00] aim 0.95: met 4.000 [4.00..16.00] aim 1.00: met",
		"particle 20.00 [2.00..800.00] - 0.500 [0.12..0.50] aim 0.95: MISSED 0.250 [0.06..0.25] aim 1.00: MISSED",
		"plain VXLAN 10.00 [1.00..100.00] - - 2.000 [2.00..2.00]",
	} {
		if !strings.Contains(table, want) {
			t.Errorf("the table lacks %q:\n%s", want, text.String())
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
