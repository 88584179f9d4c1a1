package main

import (
	"context"
	"encoding/json"
	"flag"
	"io"
	"os"
	"strings"
	"time"

	"github.com/particle-net/particle/bench/rig"
	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/internal/lab"
)

// options are the command line.
type options struct {
	plan
	engine string
	lab    string
	json   string
	demo   bool
}

func main() {
	lab.MaybeInit()
	rig.MainUntilInterrupted("start", func(ctx context.Context, args []string) error {
		o, err := parseFlags(args, os.Stderr)
		if err != nil {
			return err
		}
		return run(ctx, o)
	})
}

func parseFlags(args []string, out io.Writer) (options, error) {
	var o options
	var names string
	f := flag.NewFlagSet("start", flag.ContinueOnError)
	f.SetOutput(out)
	f.IntVar(&o.n, "n", 100, "containers per round, 1 to 10000")
	f.IntVar(&o.c, "c", 8, "containers started at a time")
	f.IntVar(&o.rounds, "rounds", 5, "rounds, 1 to 49; each runs every variant once")
	f.StringVar(&names, "variants", "host,bridge,particle,own,overlay", "comma separated, of host, none, bridge, overlay, particle, own; host is always needed")
	f.BoolVar(&o.report, "report", true, "let each container report to a collector; false: measure the start alone")
	f.BoolVar(&o.cli, "cli", false, "start containers with the docker command instead of the API (measures the command too)")
	f.StringVar(&o.engine, "engine", lab.EngineDebian, "engine of the lab host: debian or current")
	f.StringVar(&o.lab, "lab", "bench-start", "name of the lab; another one for a second run at the same time")
	f.StringVar(&o.json, "json", "", "file to write all raw figures to")
	f.BoolVar(&o.demo, "demo", false, "one round of host, bridge and particle, with explanations")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	if f.NArg() > 0 {
		return o, fault.New("read command line", f.Arg(0), "not an option", "see -help")
	}
	if o.demo {
		o.rounds, names = 1, "host,bridge,particle"
	}
	var err error
	if o.variants, err = parseVariants(names); err != nil {
		return o, err
	}
	return o, o.check()
}

// run measures, prints, and leaves nothing.
func run(ctx context.Context, o options) (err error) {
	if os.Geteuid() != 0 {
		return fault.New("boot a Docker host", "", "namespaces, mounts and cgroups need root", "run it with sudo")
	}
	tell := teller{out: io.Discard}
	if o.demo {
		tell.out = os.Stdout
	}
	tell.opening(o)
	bed, err := makeBed(ctx, o)
	if err != nil {
		return err
	}
	defer func() { err = rig.Removed(ctx, err, bed.remove) }()
	tell.network(o)
	machine := describeMachine()
	begun := time.Now()
	show := newProgress(os.Stderr, o.rounds)
	rounds, err := measure(ctx, bed, o.plan, show)
	if err != nil {
		return err
	}
	r := result{
		When: begun.UTC().Truncate(time.Second), Command: "go run ./bench/start " + strings.Join(os.Args[1:], " "),
		Engine: bed.engine, Machine: machine, N: o.n, C: o.c, Rounds: o.rounds, CLI: o.cli, Report: o.report,
		Figures: rounds, Summary: summarise(o.variants, rounds),
	}
	tell.findings(r)
	if err := r.print(os.Stdout); err != nil {
		return err
	}
	tell.closing()
	return r.save(o.json)
}

// save writes the result as JSON unless path is empty.
func (r result) save(path string) error {
	if path == "" {
		return nil
	}
	raw, err := json.MarshalIndent(r, "", "  ")
	if err == nil {
		err = os.WriteFile(path, append(raw, '\n'), 0o644)
	}
	if err != nil {
		return &fault.Error{Op: "write figures", On: path, Err: err}
	}
	return nil
}
