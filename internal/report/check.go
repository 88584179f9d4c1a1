package report

import (
	"fmt"
	"io"
	"strings"
)

// Grade is how a check came out.
type Grade string

// The grades, from best to worst.
const (
	OK      Grade = "ok"
	Warn    Grade = "warn"    // works, but not for everything or not as well
	Missing Grade = "missing" // does not work without
)

// Check is one thing a host must have or should have.
type Check struct {
	Name    string `json:"name"`
	Grade   Grade  `json:"grade"`
	Finding string `json:"finding"`          // what was found, without a full stop
	Remedy  string `json:"remedy,omitempty"` // what to do, as an imperative; empty when the grade is OK
}

// Failed tells whether something is missing.
func Failed(checks []Check) bool {
	for _, c := range checks {
		if c.Grade == Missing {
			return true
		}
	}
	return false
}

// Checks writes a line for each check, below it the remedy if there is one, and
// a summary.
func Checks(w io.Writer, checks []Check) error {
	width, count := 0, map[Grade]int{}
	for _, c := range checks {
		width = max(width, len(c.Name))
		count[c.Grade]++
	}
	var b strings.Builder
	for _, c := range checks {
		fmt.Fprintf(&b, "%-7s  %-*s  %s\n", c.Grade, width, c.Name, c.Finding)
		if c.Remedy != "" && c.Grade != OK {
			fmt.Fprintf(&b, "%-7s  %-*s  -> %s\n", "", width, "", c.Remedy)
		}
	}
	b.WriteString("\n" + summary(count[Missing], count[Warn]) + "\n")
	return write(w, b.String())
}

func summary(missing, warnings int) string {
	switch {
	case missing > 0 && warnings > 0:
		return fmt.Sprintf("%s missing, %s.", things(missing), plural(warnings, "warning"))
	case missing > 0:
		return fmt.Sprintf("%s missing.", things(missing))
	case warnings > 0:
		return fmt.Sprintf("Nothing is missing; %s.", plural(warnings, "warning"))
	default:
		return "Everything is in place."
	}
}

func things(n int) string {
	if n == 1 {
		return "1 thing is"
	}
	return fmt.Sprintf("%d things are", n)
}

func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
