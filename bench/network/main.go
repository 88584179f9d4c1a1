// Command network measures how long it takes to connect endpoints to a network
// of one host, for several ways to do it, on the kernel it runs on:
//
//	go run ./bench/network -n 1,100,1000,10000 -rounds 5 -json FILE
//
// The ways, each in network namespaces of its own that are thrown away:
//
//   - per container, moved: what Docker's overlay driver does and the Particle
//     paper (SoCC '20, Figure 2) takes as its baseline. A namespace and a veth
//     pair for each container, both ends moved to where they belong, the one into
//     a bridge, the other configured.
//   - per container, one end moved: what Docker's bridge driver does up to Docker
//     27, without its rules for iptables.
//   - per container, in place: the best that can be done per container today. The
//     pair is created with each end where it belongs, with one queue, IPv6 off.
//   - shared, moved: Particle as the paper describes it. One namespace and one
//     pair, moved, and one secondary address for each container.
//   - particle: what this repository does. overlay.Host.Apply, and no network work
//     at all for each endpoint; from nothing, with an empty namespace at hand, and
//     with the one thing Docker up to 27 makes necessary for each container, the
//     bind mount of its sandbox key.
//   - particle, a namespace and a branch each: what a container costs that must not
//     share one.
//
// The first four find their tunnel namespace, bridge and VXLAN device made; the
// rows of particle include theirs. All go through the same netlink library, one
// message after another. Taking down is not measured, but waited for, so that no
// row pays for the one before it. Rounds are interleaved: each measures every row
// once. Times are medians with their range; compare rows of one run only.
//
// It needs root, and memory for the namespaces (about 0.3 MB each).
package main

import (
	"flag"
	"fmt"
	"strconv"
	"strings"

	"github.com/particle-net/particle/bench/rig"
)

func main() { rig.Main("network", run) }

// plan is what to measure.
type plan struct {
	sizes  []int // numbers of endpoints
	rounds int
	limits limits
	json   string
}

// limits are the largest numbers of endpoints for ways that take long.
type limits struct {
	moved, inPlace, published, branches int
}

func run(args []string) error {
	flags := flag.NewFlagSet("network", flag.ContinueOnError)
	var p plan
	sizes := flags.String("n", "1,100,1000,10000", "numbers of endpoints, separated by commas")
	flags.IntVar(&p.rounds, "rounds", 5, "how often to measure each row")
	flags.StringVar(&p.json, "json", "", "file to write all measurements to")
	flags.IntVar(&p.limits.moved, "max-moved", 100, "largest n for the ways that move links (a bridge takes 1023)")
	flags.IntVar(&p.limits.inPlace, "max-in-place", 1000, "largest n for \"per container, in place\" (a bridge takes 1023)")
	flags.IntVar(&p.limits.published, "max-shared", 10000, "largest n for \"shared, moved\"")
	flags.IntVar(&p.limits.branches, "max-branches", 1000, "largest n for branches")
	if err := flags.Parse(args); err != nil {
		return err
	}
	for _, text := range strings.Split(*sizes, ",") {
		n, err := strconv.Atoi(strings.TrimSpace(text))
		if err != nil || n < 1 || n > maxEndpoints {
			return fmt.Errorf("number of endpoints %q is not from 1 to %d", text, maxEndpoints)
		}
		p.sizes = append(p.sizes, n)
	}
	p.limits.moved, p.limits.inPlace = min(p.limits.moved, bridgePorts), min(p.limits.inPlace, bridgePorts)
	return rig.Contain(args, func() error { return measure(p) })
}
