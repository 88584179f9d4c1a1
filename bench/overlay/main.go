// Command overlay measures what containers of two hosts have of each other, for
// several ways to connect them, on the kernel it runs on:
//
//	go run ./bench/overlay -rounds 5 -seconds 2 -json FILE
//
// The hosts are network namespaces with a wire between them. The ways:
//
//   - underlay: the hosts themselves, without a network between containers.
//   - plain VXLAN: a VXLAN device in each container's namespace, with its peer's
//     entries, and nothing else. It is the least that VXLAN can cost.
//   - Swarm's overlay: what Docker's overlay driver makes. A container has one end of
//     a veth pair, the other is in a bridge in a namespace of the network, beside
//     the VXLAN device.
//   - particle: what this repository makes, by overlay.Host: with other hosts, the
//     members of the cluster, and an uplink.
//   - particle, guarded: the same with the address guard, as containers have it.
//
// A virtual wire would carry packets of 64 KB. Here it takes packets of its MTU
// alone, and the receiver puts them together again as a network card's driver does. On each host connections are tracked, as on every
// host with Docker.
//
// What is measured: TCP throughput of one connection, with what the receiver has
// got, by cubic, Linux's default, and by bbr if the machine has it; the time of a
// round trip of one byte by TCP, and how many there are; and how many datagrams of 64
// bytes arrive of as many as can be sent. Sender and receiver have a CPU each, if there are two. Rounds are interleaved, and each begins with
// another way; ratios are the medians of those of the rounds. Compare rows of one
// run only.
//
// It needs root.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"time"

	"github.com/particle-net/particle/bench/rig"
)

func main() { rig.Main("overlay", run) }

// plan is what to measure.
type plan struct {
	rounds int
	length time.Duration // of one measurement
	json   string
}

func run(args []string) error {
	flags := flag.NewFlagSet("overlay", flag.ContinueOnError)
	var p plan
	flags.IntVar(&p.rounds, "rounds", 5, "how often to measure each way")
	seconds := flags.Float64("seconds", 0.5, "how long each measurement takes")
	flags.StringVar(&p.json, "json", "", "file to write all measurements to")
	if err := flags.Parse(args); err != nil {
		return err
	}
	p.length = time.Duration(*seconds * float64(time.Second))
	if p.rounds < 1 || p.length <= 0 {
		return errors.New("there is nothing to measure: -rounds and -seconds must be more than 0")
	}
	return rig.Contain(args, func() error { return measure(p) })
}

// measure runs the plan and reports. What was measured before an error is
// reported too.
func measure(p plan) (err error) {
	b, err := newBed()
	if b != nil {
		defer func() { err = errors.Join(err, b.close()) }()
	}
	if err != nil {
		return fmt.Errorf("prepare hosts: %w", err)
	}
	r := newReport(p)
	err = r.fill(b, p)
	r.print(os.Stdout)
	if p.json != "" {
		err = errors.Join(err, rig.Save(p.json, r))
	}
	return err
}

func (r *report) fill(b *bed, p plan) error {
	for round := range p.rounds {
		for _, load := range loads() {
			for i := range b.ways {
				w := b.ways[(i+round)%len(b.ways)]
				values, err := load.run(w, p.length)
				if err != nil {
					return fmt.Errorf("%s, %s, round %d: %w", w.name, load.name, round+1, err)
				}
				for _, v := range values {
					r.add(v.quantity, w.name, v.value)
					fmt.Fprintf(os.Stderr, "round %d/%d  %-17s %-26s %10.2f\n", round+1, p.rounds, w.name, v.quantity.Name, v.value)
				}
			}
		}
	}
	return nil
}
