package table

import (
	"encoding/json"
	"io"
	"slices"
	"time"

	"github.com/particle-net/particle/integration/sockets/sock"
)

// Ports of the cases: above those of the partner, below those the kernel chooses.
const (
	partnerPorts = 7000
	firstPort    = 8000
	portsPerCase = 4
)

// patience bounds each call: what does not come over loopback within it is lost.
const patience = time.Second

// testCase is one case of the table.
type testCase struct {
	name string
	run  func(t *trial)
}

func cases() []testCase {
	return slices.Concat(bindCases(), conflictCases(), mistakeCases(), connectCases(), streamCases(), oddStreamCases(),
		datagramCases(), oddDatagramCases(), optionCases(), answerCases(), pingCases(), groupCases(), unixCases(), familyCases(), peerCases())
}

// Names lists the cases in order.
func Names() []string {
	var names []string
	for _, c := range cases() {
		names = append(names, c.name)
	}
	return names
}

// Run writes a Line for each case. The peer is a container that runs a victim of
// package attack.
func Run(out io.Writer, self, peer Party) error {
	encoder := json.NewEncoder(out)
	encoder.SetEscapeHTML(false)
	for i, c := range cases() {
		line, err := runOne(c, uint16(firstPort+i*portsPerCase), self, peer)
		if err != nil {
			return err
		}
		if err := encoder.Encode(line); err != nil {
			return err
		}
	}
	return nil
}

func runOne(c testCase, port uint16, self, peer Party) (Line, error) {
	kernel, err := sock.Open(sock.Syscall, patience)
	if err != nil {
		return Line{}, err
	}
	defer kernel.Close()
	t := &trial{kernel: kernel, self: self, peer: peer, port: port, line: Line{Name: c.name}}
	c.run(t)
	if !t.broken {
		t.line.Result = "ok"
	}
	return t.line, nil
}
