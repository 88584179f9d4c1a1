package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/particle-net/particle/internal/fault"
	"github.com/particle-net/particle/internal/lab"
)

func newCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "particle-lab",
		Short: "Boot Docker hosts in namespaces of this machine",
		Long: "Boot real Docker hosts in namespaces of this machine, wired to one underlay,\n" +
			"and let things go wrong with them. Needs root; leaves nothing behind.",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.AddCommand(upCommand(), downCommand(), lsCommand(), execCommand(), imageCommand(), engineCommand(), checkCommand())
	root.AddCommand(faultCommands()...)
	return root
}

func nameFlag(cmd *cobra.Command, name *string) {
	cmd.Flags().StringVar(name, "name", lab.DefaultName, "name of the lab")
}

func upCommand() *cobra.Command {
	var o lab.Options
	var config string
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Boot a lab and wait until its Docker Engines answer",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if config != "" {
				raw, err := os.ReadFile(config)
				if err != nil {
					return &fault.Error{Op: "read daemon.json", Err: err}
				}
				o.DaemonJSON = raw
			}
			o.Progress = cmd.ErrOrStderr()
			l, err := lab.Up(cmd.Context(), o)
			if err != nil {
				return err
			}
			describe(cmd.OutOrStdout(), l)
			return nil
		},
	}
	nameFlag(cmd, &o.Name)
	cmd.Flags().IntVar(&o.Hosts, "hosts", 1, "number of hosts, named h1, h2, ...")
	cmd.Flags().StringVar(&o.Engine, "engine", lab.EngineDebian, "debian (the distribution's) or current (built from Go modules)")
	cmd.Flags().BoolVar(&o.LiveRestore, "live-restore", false, "let containers survive a restart of dockerd")
	cmd.Flags().BoolVar(&o.Systemd, "systemd", false, "systemd is process 1 of each host, with cgroups of version 2 alone")
	cmd.Flags().StringVar(&config, "daemon-json", "", "file to use as /etc/docker/daemon.json on every host")
	cmd.Flags().BoolVar(&o.Replace, "replace", false, "take a running lab of the name down first")
	return cmd
}

// describe prints how to use a lab, as shell lines.
func describe(w io.Writer, l *lab.Lab) {
	for _, h := range l.Hosts() {
		fmt.Fprintf(w, "export DOCKER_HOST=%s  # %s, %s\n", h.DockerHost(), h.Name(), h.Addr4())
	}
	fmt.Fprintf(w, "# a shell on a host: %s exec --name %s h1 -- bash\n", os.Args[0], l.Name())
	fmt.Fprintf(w, "# take it down:      %s down --name %s\n", os.Args[0], l.Name())
}

func downCommand() *cobra.Command {
	var name string
	var all bool
	cmd := &cobra.Command{
		Use:   "down",
		Short: "Take a lab down and leave nothing of it",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !all {
				return lab.Down(cmd.Context(), name)
			}
			labs, err := lab.List()
			for _, one := range labs {
				err = errors.Join(err, lab.Down(cmd.Context(), one.Name))
			}
			return err
		},
	}
	nameFlag(cmd, &name)
	cmd.Flags().BoolVar(&all, "all", false, "take every lab of this machine down")
	cmd.MarkFlagsMutuallyExclusive("name", "all")
	return cmd
}

func lsCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "ls",
		Short: "List labs",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			labs, err := lab.List()
			if err != nil {
				return err
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 8, 2, ' ', 0)
			fmt.Fprintln(w, "NAME\tENGINE\tHOSTS\tSTATE\tCREATED")
			for _, one := range labs {
				state := "broken, take it down"
				if one.Running {
					state = "running"
				}
				fmt.Fprintf(w, "%s\t%s\t%d\t%s\t%s\n", one.Name, one.Engine, one.Hosts, state, one.Created.Format("2006-01-02 15:04:05"))
			}
			return w.Flush()
		},
	}
}

func execCommand() *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use:   "exec HOST -- COMMAND...",
		Short: "Run a command on a host (or on the node \"internet\")",
		Args:  cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := lab.Open(name)
			if err != nil {
				return err
			}
			node := l.Internet()
			if args[0] != node.Name() {
				h, err := l.Host(args[0])
				if err != nil {
					return err
				}
				node = h.Node
			}
			// Flag parsing stops at the host's name, so the dashes after it arrive here.
			argv := args[1:]
			if argv[0] == "--" {
				argv = argv[1:]
			}
			if len(argv) == 0 {
				return fault.New("run on "+args[0], "", "no command given", "use particle-lab exec HOST -- COMMAND")
			}
			return attach(node.Command(context.WithoutCancel(cmd.Context()), argv...))
		},
	}
	cmd.Flags().SetInterspersed(false)
	nameFlag(cmd, &name)
	return cmd
}

func imageCommand() *cobra.Command {
	return hostCommand("image", "Load the test image "+lab.TestImage+" (busybox and the probe)", lab.LoadImage)
}

func engineCommand() *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use:   "engine",
		Short: "Install or build an engine and print the directory of its programs",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			engine, err := lab.FindEngine(cmd.Context(), name, cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			dir := engine.Bin
			if dir == "" {
				dir = "/usr/sbin"
			}
			fmt.Fprintln(cmd.OutOrStdout(), dir)
			return nil
		},
	}
	cmd.Flags().StringVar(&name, "engine", lab.EngineDebian, "debian or current")
	return cmd
}

func checkCommand() *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use:   "check",
		Short: "List what the machine still holds of a lab, and fail if there is anything",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			found, err := lab.Leaks(name)
			if err != nil {
				return err
			}
			for _, line := range found {
				fmt.Fprintln(cmd.OutOrStdout(), line)
			}
			if len(found) > 0 {
				return fault.New("check lab", name, fmt.Sprintf("%d things are left of it", len(found)), "run particle-lab down --name "+name)
			}
			return nil
		},
	}
	nameFlag(cmd, &name)
	return cmd
}

// attach becomes the command, so that the terminal, signals and the exit code are
// the command's own.
func attach(c *exec.Cmd) error {
	if c.Err != nil {
		return c.Err
	}
	return &fault.Error{Op: "run", On: c.Path, Err: syscall.Exec(c.Path, c.Args, c.Env)}
}
