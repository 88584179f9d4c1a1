// Command overlay measures what containers of two hosts have of each other, for
// several ways to connect them, on the kernel it runs on:
//
//	go run ./bench/overlay -rounds 5 -seconds 0.5 -json FILE
//
// # Model
//
// Two lab hosts (package internal/lab) with a Docker Engine each are booted on this
// machine. They are a cluster of particle's, installed the way anybody would install
// it, and a Docker Swarm, both at once. So all ways between their containers have the
// same hosts, links and processors under them:
//
//   - underlay: the hosts themselves, without a network between containers.
//   - plain VXLAN: a VXLAN device in a namespace on each host, with its peer's
//     entries, and nothing else. It is the least that VXLAN can cost.
//   - Swarm's overlay: a container on each host, on an attachable overlay network of
//     Docker's.
//   - particle: a container on each host, on a network of this project.
//
// # Invariants
//
//   - One process makes the sockets of all ways, in the namespaces of their
//     containers, and uses them in the same manner from the same processors, so that
//     only the way differs. Those of particle's containers are made in the
//     containers' cgroups, where the address guard looks at them; all others are made
//     where no program of particle's looks at any.
//   - A virtual link would carry packets of 64 KB. Here the hosts' links take packets of
//     their MTU alone, and the receiver puts them together again as a network card's
//     driver does. All three networks have the same MTU, which is looked up.
//   - Plain VXLAN and Swarm have a UDP port of their own (-port), so that they are as
//     on hosts without particle. Its rules for its port spare its packets the tracking of
//     connections, which all hosts with Docker do; with -port 4789 all share that port, and
//     those of the others are tracked only where they leave.
//   - Rounds are interleaved, and each begins with another way; ratios are taken within
//     a round, then the median. That an aim is met or missed is said without a question
//     mark only if the rounds differ so little that other rounds would not say otherwise.
//   - Nothing outside the lab is touched, and the lab goes when the program ends,
//     however it ends.
//
// What is measured: TCP throughput of one connection, with what the receiver has
// got, by cubic, Linux's default, and by bbr if the machine has it; the time of a
// round trip of one byte by TCP, and how many there are; and how many datagrams of 64
// bytes arrive of as many as can be sent. Sender and receiver have a CPU each, if
// there are two. Compare rows of one run only.
//
// It needs root.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/particle-net/particle/bench/rig"
	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/internal/lab"
)

// options are the command line.
type options struct {
	rounds int
	length time.Duration // of one measurement
	json   string
	engine string
	lab    string
	port   int // UDP, of the ways that are not particle's
}

func main() {
	lab.MaybeInit()
	rig.MainUntilInterrupted("overlay", func(ctx context.Context, args []string) error {
		o, err := parseFlags(args, os.Stderr)
		if err != nil {
			return err
		}
		return measure(ctx, o)
	})
}

func parseFlags(args []string, out io.Writer) (o options, err error) {
	f := flag.NewFlagSet("overlay", flag.ContinueOnError)
	f.SetOutput(out)
	f.IntVar(&o.rounds, "rounds", 5, "how often to measure each way")
	seconds := f.Float64("seconds", 0.5, "how long each measurement takes")
	f.StringVar(&o.json, "json", "", "file to write all measurements to")
	f.StringVar(&o.engine, "engine", lab.EngineDebian, "engine of the lab hosts: debian or current")
	f.StringVar(&o.lab, "lab", "bench-overlay", "name of the lab; another one for a second run at the same time")
	f.IntVar(&o.port, "port", 4790, "UDP port of plain VXLAN and of Swarm's; 4789 is particle's")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	o.length = time.Duration(*seconds * float64(time.Second))
	switch {
	case f.NArg() > 0:
		err = fault.New("read command line", f.Arg(0), "not an option", "see -help")
	case o.rounds < 1 || o.length <= 0:
		err = fault.New("read command line", "", "there is nothing to measure", "give -rounds and -seconds more than 0")
	case o.port < 1024 || o.port > 49151: // what Swarm takes
		err = fault.New("read command line", fmt.Sprint("-port ", o.port), "Swarm does not take it", "use one of 1024 to 49151")
	}
	return o, err
}

// measure runs the plan and reports. What was measured before an error is
// reported too.
func measure(ctx context.Context, o options) (err error) {
	r := newReport(o)
	b, err := newBed(ctx, o)
	if err != nil && ctx.Err() != nil {
		return fmt.Errorf("interrupted: %w", err)
	}
	if err != nil {
		return err
	}
	defer func() { err = rig.Removed(ctx, err, b.close) }()
	if r.Docker, err = b.hosts[0].version(ctx); err != nil {
		return err
	}
	err = r.fill(ctx, b, o)
	r.print(os.Stdout)
	if o.json != "" {
		err = errors.Join(err, rig.Save(o.json, r))
	}
	return err
}

func (r *report) fill(ctx context.Context, b *bed, o options) error {
	for round := range o.rounds {
		for _, load := range loads() {
			for i := range b.ways {
				if ctx.Err() != nil {
					return ctx.Err()
				}
				w := b.ways[(i+round)%len(b.ways)]
				values, err := load.run(w, o.length)
				if err != nil {
					return &fault.Error{Op: "measure " + load.name, On: fmt.Sprintf("%s, round %d", w.name, round+1), Err: err}
				}
				for _, v := range values {
					r.add(v.quantity, w.name, v.value)
					fmt.Fprintf(os.Stderr, "round %d/%d  %-17s %-26s %10.2f\n", round+1, o.rounds, w.name, v.quantity.Name, v.value)
				}
			}
		}
	}
	return nil
}
