package main

import (
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// progress tells on a terminal how far a turn is, and writes a line per turn.
type progress struct {
	out    *os.File
	live   bool // out is a terminal
	rounds int

	mu    sync.Mutex // guards the rest
	title string
	begun time.Time
	done  int
	of    int
}

func newProgress(out *os.File, rounds int) *progress {
	_, err := unix.IoctlGetTermios(int(out.Fd()), unix.TCGETS)
	return &progress{out: out, live: err == nil, rounds: rounds}
}

// begin starts a turn of a round; 0 is the unmeasured one.
func (p *progress) begin(round int, v variant, of int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.title = fmt.Sprintf("round %d/%d  %-8s", round, p.rounds, v)
	if round == 0 {
		p.title = fmt.Sprintf("warming up %-8s", v)
	}
	p.begun, p.done, p.of = time.Now(), 0, of
	p.draw()
}

// count notes one container more.
func (p *progress) count() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.done++
	p.draw()
}

// draw repaints the live line; "\x1b[K" clears what is left of a longer one.
func (p *progress) draw() {
	if p.live {
		fmt.Fprintf(p.out, "\r%s %4d/%d containers  %5.1f s\x1b[K", p.title, p.done, p.of, time.Since(p.begun).Seconds())
	}
}

// note writes a line of its own and draws the turn's again.
func (p *progress) note(text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.live {
		fmt.Fprint(p.out, "\r\x1b[K")
	}
	fmt.Fprintln(p.out, text)
	p.draw()
}

// end replaces the live line by the turn's result.
func (p *progress) end(f figures) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.live {
		fmt.Fprint(p.out, "\r\x1b[K")
	}
	reported := ""
	if len(f.Sources) > 0 {
		reported = fmt.Sprintf(", all reported after %.2f s", f.Reported)
	}
	fmt.Fprintf(p.out, "%s %d containers started in %.2f s%s\n", p.title, len(f.Containers), f.Started, reported)
}
