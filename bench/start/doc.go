// Command start measures how long Docker takes to start a burst of containers on
// different kinds of networks, and shows it as a demonstration with -demo.
//
// # Model
//
// A lab host (package internal/lab) with a Docker Engine of its own is booted on
// this machine, particle is installed in it the way anybody would install it, and
// every round starts the same number of containers, a fixed number at a time, on
// each variant in turn:
//
//	host       the host's own network: no network work at all, the floor
//	none       a network namespace with nothing in it
//	bridge     a user-defined network of Docker's bridge driver
//	overlay    an attachable overlay network of Docker Swarm
//	particle   a network of this project
//	own        the same, each container with a namespace of its own
//
// A round makes a network, starts a collector on it, starts the containers, waits
// until the collector has heard of each from an address of its own, and removes
// everything. The clock runs over create and start, as `docker run -d` does them,
// and on to the collector's last report. Making the network and removing the
// containers are timed separately.
//
// # Invariants
//
//   - The variants of one round run one after the other on one engine, and the
//     order rotates from round to round: a machine that grows slower or busier
//     does so for all of them. Ratios are taken within a round, then the median.
//   - Every variant's containers are given the same image, program and options;
//     host mode, which has no addresses to give, reports from loopback addresses
//     that the benchmark hands out.
//   - Nothing outside the lab is touched, and the lab goes when the program ends,
//     however it ends.
//   - No figure is compared with an expectation: the program fails when a container
//     fails or when two containers turn out to have one address, never on a time.
package main
