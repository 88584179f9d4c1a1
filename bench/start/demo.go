package main

import (
	"fmt"
	"io"
	"net/netip"
	"slices"
)

// teller explains the demonstration as it goes.
type teller struct{ out io.Writer }

func (t teller) opening(o options) {
	fmt.Fprintf(t.out, `particle gives every container of a job an address of its own, and sets up no
network for any of them: the containers of one network share one network namespace,
which is made once.

This demonstration boots a Docker host of its own inside namespaces of this machine,
with its own dockerd (the %s engine), root, /run, cgroups and addresses. It installs
particle there with "particle install" (a managed plugin, a runtime in front of runc,
one entry in that host's daemon.json), and then starts %d containers, %d at a time, on
the host's own network, on Docker's bridge and on a particle network. The machine's own
Docker is not touched, and all of this is removed at the end, also after Ctrl-C.

`, o.engine, o.n, o.c)
}

func (t teller) network(o options) {
	fmt.Fprintf(t.out, `
The host is ready. What it is asked to do next is

    docker network create -d particle --ipam-driver particle jobs
    docker run -d --network jobs IMAGE

where the second line is repeated %d times, %d at a time, and each container learns its
address, binds it and reports to a collector on the same network; and the same with
--network host, and on a network of Docker's bridge driver.

`, o.n, o.c)
}

// findings tells what the collectors saw.
func (t teller) findings(r result) {
	for _, f := range r.Figures {
		switch {
		case f.Variant.ready() || len(f.Sources) == 0:
			continue
		case f.Variant == variantParticle:
			fmt.Fprintf(t.out, "\nThe collector on the particle network heard from %d distinct addresses, %s.\n",
				len(f.Sources), ends(f.Sources))
		default:
			fmt.Fprintf(t.out, "\nThe collector on Docker's %s heard from %d distinct addresses, %s.\n",
				f.Variant, len(f.Sources), ends(f.Sources))
		}
	}
}

func ends(all []netip.Addr) string {
	return fmt.Sprintf("%s to %s", slices.MinFunc(all, netip.Addr.Compare), slices.MaxFunc(all, netip.Addr.Compare))
}

func (t teller) closing() {
	fmt.Fprint(t.out, `
One round tells little on a busy machine: "make bench-start" takes the median of five
and measures Docker Swarm's overlay too.

What to try next:

    make lab HOSTS=3    three Docker hosts on this machine, to play with
    make install        particle in the Docker Engine you already run
    make uninstall      and out of it again

The demonstration's host is removed now.
`)
}
