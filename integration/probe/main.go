// Command probe is the program test containers run: it tells what a container sees
// of its network, serves, connects and reports. It is static and needs nothing of
// the image it is in.
//
// Where an address is asked for, the host part "self" means the process's own IPv4
// address as Docker wrote it to /etc/hosts, and "self6" its IPv6 address.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// run is one subcommand.
type run func(ctx context.Context, out io.Writer, args []string) error

func commands() map[string]run {
	return map[string]run{
		"addr": addr, "serve": serve, "get": get, "report": report, "collect": collect,
		"udp-send": udpSend, "lookup": lookup, "dns": serveDNS,
		"caps": caps, "sleep": sleep, "echo": echo, "talk": talk, "pester": pester,
		"station": station, "reach": reach, "forge": forge, "deny": deny, "occupy": occupy, "vacate": vacate,
	}
}

const usage = `usage: probe COMMAND
  addr                                        print the own addresses, one per line
  serve -listen ADDR:PORT [-name N]           HTTP server: "N local=... peer=..."
  get URL|ADDR:PORT [-source self] [-timeout D]
  report -to ADDR:PORT [-timeout D]           connect from the own address and say so
  collect -listen ADDR:PORT -n N              wait for N distinct reporters
  udp-send ADDR:PORT TEXT [-source self] [-timeout D]
  echo -listen ADDR:PORT                      TCP and UDP
  talk ADDR:PORT [-udp] [-timeout D]          keep one connection to an echo busy
  lookup NAME [-server ADDR:PORT] [-timeout D]
  dns -listen ADDR:PORT NAME=ADDR...          authoritative for these names
  pester ADDR:PORT                            try to bind what is another's, until it is allowed
  station [-name N]                           answer by TCP and UDP, over IPv4 and IPv6
  reach NAME=ADDR:PORT[,MTU]... [-timeout D]  all these stations, in all ways
  forge ADDR:PORT -vni N -mac MAC -source ADDR:PORT -to ADDR:PORT TEXT
                                              send a VXLAN packet with a datagram in it
  deny bpf|notify|bpf,notify PROGRAM [ARG]... execute it where bpf(2), or a filter whose calls others answer,
                                              is denied to it and to all that it starts
  occupy DIR, vacate DIR                      attach a program that bears none beside it to a cgroup, and detach it
  caps                                        print the capability sets
  sleep                                       until a signal
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if len(os.Args) < 2 || commands()[os.Args[1]] == nil {
		fmt.Fprint(os.Stderr, usage)
		os.Exit(2)
	}
	if err := commands()[os.Args[1]](ctx, os.Stdout, os.Args[2:]); err != nil {
		fmt.Fprintf(os.Stderr, "probe %s: %v\n", os.Args[1], err)
		os.Exit(1)
	}
}

// options are the flags the commands share.
type options struct {
	listen, name, source, to, server, mac string
	n, vni                                int
	udp                                   bool
	timeout                               time.Duration
}

// parse reads flags before, between and after the arguments.
func parse(args []string) (options, []string, error) {
	var o options
	f := flag.NewFlagSet("probe", flag.ContinueOnError)
	f.StringVar(&o.listen, "listen", "", "address and port to listen on")
	f.StringVar(&o.name, "name", "probe", "name to answer with")
	f.StringVar(&o.source, "source", "", "address to connect from")
	f.StringVar(&o.to, "to", "", "address and port to report to")
	f.StringVar(&o.server, "server", "", "name server instead of resolv.conf's")
	f.IntVar(&o.n, "n", 1, "number of reporters")
	f.IntVar(&o.vni, "vni", 0, "of a VXLAN packet")
	f.StringVar(&o.mac, "mac", "", "link address a VXLAN packet is for")
	f.BoolVar(&o.udp, "udp", false, "datagrams instead of a connection")
	f.DurationVar(&o.timeout, "timeout", 10*time.Second, "longest time to wait")
	var rest []string
	for {
		if err := f.Parse(args); err != nil {
			return o, nil, err
		}
		if f.NArg() == 0 {
			return o, rest, nil
		}
		rest = append(rest, f.Arg(0))
		args = f.Args()[1:]
	}
}

// sleep waits for a signal.
func sleep(ctx context.Context, _ io.Writer, _ []string) error {
	<-ctx.Done()
	return nil
}
