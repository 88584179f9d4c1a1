package main

import (
	"errors"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/particle-net/particle/internal/netnstest"
)

func TestMain(m *testing.M) { os.Exit(netnstest.Main(m)) }

// Every way carries every load. How much is for the program to say.
func TestEveryWayCarriesEveryLoad(t *testing.T) {
	netnstest.New(t) // or skip
	b, err := newBed()
	if b != nil {
		defer func() {
			if err := b.close(); err != nil {
				t.Error(err)
			}
		}()
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range b.ways {
		for _, l := range loads() {
			values, err := l.run(w, 20*time.Millisecond)
			if err != nil || len(values) == 0 {
				t.Errorf("%s, %s: %v, %v", w.name, l.name, values, err)
			}
		}
		// The guard is on one way, and on no other.
		if w.name != ownWay && w.name != guardedWay {
			continue
		}
		w.addrs[0] = w.addrs[0].Next()
		fd, err := udp(w, 0, netip.AddrPort{})
		if err == nil {
			_ = unix.Close(fd)
		}
		if errors.Is(err, unix.EADDRNOTAVAIL) != (w.name == guardedWay) {
			t.Errorf("%s: bind to another's address: %v", w.name, err)
		}
	}
}

func TestBetterIsTheMedianOfRatios(t *testing.T) {
	more, less := quantity{"speed", true}, quantity{"time", false}
	r := newReport(plan{rounds: 3})
	for round, v := range []float64{1, 10, 100} { // the machine's mood
		for _, q := range []quantity{more, less} {
			r.add(q, plainWay, v)
			r.add(q, ownWay, v*[]float64{2, 2, 8}[round])
		}
	}
	if got := better(more, r.cell(more, ownWay), r.cell(more, plainWay)); got != 2 {
		t.Errorf("twice as fast is %v times as good", got)
	}
	if got := better(less, r.cell(less, ownWay), r.cell(less, plainWay)); got != 0.5 {
		t.Errorf("twice as slow is %v times as good", got)
	}
	var text strings.Builder
	r.print(&text)
	for _, want := range []string{"20.00 [2.00..800.00]  2.00", "20.00 [2.00..800.00]  0.50"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("the table lacks %q:\n%s", want, text.String())
		}
	}
}
